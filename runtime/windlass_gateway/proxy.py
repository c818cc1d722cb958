"""The life of one request: who is it, where to, pass on, count. The one place that turns refusals into answers."""

from __future__ import annotations

import logging
import uuid
from typing import Final

from aiohttp import web

from windlass_contract.endpoints import METRICS_PATH, Route
from windlass_gateway import answers, metrics, relay
from windlass_gateway.bodies import BodyStore
from windlass_gateway.entrance import Entrance
from windlass_gateway.header_rules import CANARY, REQUEST_ID, SESSION, choose_request_id, headers_to_replica
from windlass_gateway.routes import RouteSource
from windlass_gateway.settings import Settings
from windlass_gateway.sleepers import Sleepers
from windlass_gateway.splitting import Splitter
from windlass_gateway.targets import Target, TargetError, parse_target
from windlass_gateway.tenants import Refusal, authorize
from windlass_gateway.turnstile import Turnstile, Visit
from windlass_gateway.upstream import STABLE, BusyAnswer, Call, Part

_log = logging.getLogger(__name__)

LIVE: Final = "/healthz"
READY: Final = "/readyz"

_REFUSALS: Final = {
    Refusal.NO_KEY: answers.NO_KEY,
    Refusal.UNKNOWN_KEY: answers.UNKNOWN_KEY,
    Refusal.NO_SUCH_SERVICE: answers.NO_SUCH_SERVICE,
}


class Proxy:
    """Handles every request of one gateway."""

    def __init__(
        self,
        settings: Settings,
        routes: RouteSource,
        turnstile: Turnstile,
        entrance: Entrance,
        splitter: Splitter,
        sleepers: Sleepers,
        counts: metrics.Metrics,
    ) -> None:
        self._settings = settings
        self._routes = routes
        self._turnstile = turnstile
        self._entrance = entrance
        self._splitter = splitter
        self._sleepers = sleepers
        self._metrics = counts
        self._bodies = BodyStore(settings)
        self.draining = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Cancelled when the client leaves."""
        own = self.answer_own(request)
        if own is not None and not self._settings.separate_probes:
            return own
        request_id = choose_request_id(request.headers.get(REQUEST_ID), uuid.uuid4().hex)
        try:
            route, target = self._admit(request)
        except answers.Refused as exc:
            self._metrics.refused(exc.problem.status)
            return self._last_words(answers.render_problem(exc.problem, request_id))
        with self._metrics.watch(route) as outcome, self._sleepers.count(route):
            try:
                delivery = await self._forward(request, route, target, request_id, outcome)
            except answers.Refused as exc:
                delivery = relay.Delivery(answers.render_problem(exc.problem, request_id), exc.problem.status)
            outcome.status = delivery.status
            return self._last_words(delivery.response)

    def answer_own(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """Answer health and metrics; None for every other path."""
        path = request.path if request.method == "GET" else ""
        if path == LIVE:
            return web.Response(text="alive\n")
        if path == READY:
            return self._readiness()
        if path == METRICS_PATH:
            self._metrics.show_sleepers(self._sleepers.readings(self._routes.directory.routes.values()))
            return web.Response(body=self._metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})
        return None

    def _readiness(self) -> web.Response:
        if self.draining:
            return web.Response(status=503, text="draining\n")
        if not self._routes.loaded:
            return web.Response(status=503, text="no routing table yet\n")
        return web.Response(text="ready\n")

    def _admit(self, request: web.BaseRequest) -> tuple[Route, Target]:
        """Decide who asks for what, from the head alone. Raises Refused."""
        try:
            target = parse_target(request.raw_path)
        except TargetError as exc:
            raise answers.Refused(answers.unsafe_target(str(exc))) from exc
        if target is None:
            raise answers.Refused(answers.NO_SUCH_PATH)
        authorizations = request.headers.getall("Authorization", [])
        authorization = authorizations[0] if len(authorizations) == 1 else ""
        verdict = authorize(self._routes.directory, target.namespace, target.service, authorization)
        if isinstance(verdict, Refusal):
            raise answers.Refused(_REFUSALS[verdict])
        if request.method not in ("GET", "POST"):
            raise answers.Refused(answers.METHOD_NOT_ALLOWED)
        return verdict, target

    def _choose_part(self, request: web.BaseRequest, route: Route) -> Part:
        """Decide which revision answers. Raises Refused for a canary that is not there."""
        asked = request.headers.get(CANARY, "")
        if asked:
            if all(canary.name != asked for canary in route.canaries):
                raise answers.Refused(answers.NO_SUCH_CANARY)
            return Part(asked, only=True)
        canary = self._splitter.choose(route, request.headers.get(SESSION, ""))
        return Part(canary.name) if canary is not None else STABLE

    async def _forward(
        self, request: web.BaseRequest, route: Route, target: Target, request_id: str, outcome: metrics.Outcome
    ) -> relay.Delivery:
        with self._turnstile.enter(route) as visit:
            async with self._entrance.enter(route):
                return await self._answer(request, route, target, request_id, outcome, visit)

    async def _answer(
        self,
        request: web.BaseRequest,
        route: Route,
        target: Target,
        request_id: str,
        outcome: metrics.Outcome,
        visit: Visit,
    ) -> relay.Delivery:
        async with self._bodies.hold(request, route.tenant) as body:
            visit.reserve(request.method, body)
            part = self._choose_part(request, route)
            outcome.canary = part.canary
            headers = headers_to_replica(
                request.headers, request_id, tenant=route.tenant, tenant_key=self._settings.tenant_key
            )
            call = Call(request.method, target.path_and_query, headers, body, request_id)
            answer = await self._sleepers.send(route, call, part)
        own_headers = {**visit.headers(), REQUEST_ID: request_id}
        if isinstance(answer, BusyAnswer):
            return relay.Delivery(relay.render_busy(answer, own_headers), answer.status)
        outcome.canary = answer.canary
        if answer.canary:
            own_headers[CANARY] = answer.canary
        with answer:
            visit.answered(answer.response.status)
            return await relay.relay(request, answer, own_headers, visit.meter, self._settings.client_stall_s)

    def _last_words(self, response: web.StreamResponse) -> web.StreamResponse:
        """While draining, tell clients to open their next connection elsewhere."""
        if self.draining and not response.prepared:
            response.force_close()
        return response
