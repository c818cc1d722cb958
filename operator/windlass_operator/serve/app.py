"""The metrics APIs over HTTP: who asks, may they, and what is the answer. Every refusal is a Status object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from aiohttp import web

from windlass_contract import metric_names
from windlass_operator import errors
from windlass_operator.cluster.gateways import Demand
from windlass_operator.serve.access import AccessReviewer
from windlass_operator.serve.answers import (
    Json,
    render_external,
    render_group,
    render_groups,
    render_pods,
    render_refusal,
    render_resources,
    render_service,
)
from windlass_operator.serve.paths import (
    ALL,
    CUSTOM_GROUP,
    EXTERNAL_GROUP,
    Attributes,
    ExternalQuery,
    PodsQuery,
    Query,
    ServiceQuery,
    attributes_of,
    parse_query,
)
from windlass_operator.serve.readings import (
    NoValue,
    Replica,
    external_labels,
    read_demand,
    read_pods,
    read_service,
    read_services,
)
from windlass_operator.serve.samples import METRICS
from windlass_operator.serve.selectors import Selector, accepts, parse_selector
from windlass_operator.serve.shared_read import SharedRead
from windlass_operator.serve.sources import ReplicaDirectory, Source
from windlass_operator.serve.telemetry import Telemetry
from windlass_operator.serve.tls import common_name_of
from windlass_operator.serve.users import FrontProxy, User, mark_authenticated, read_proxied_user

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz"})
"""Answered to everybody, as the API server itself does."""


class Refused(Exception):
    """The request is answered with a Status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class FrontProxyHolder(Protocol):
    """Knows whom to trust at this moment."""

    @property
    def front_proxy(self) -> FrontProxy:
        """Whom to trust when they say who asks."""
        ...


class MetricsApi:
    """Answers GET requests. Holds no state of its own."""

    def __init__(
        self,
        source: Source,
        directory: ReplicaDirectory,
        reviewer: AccessReviewer,
        trust: FrontProxyHolder,
        telemetry: Telemetry,
        demand: SharedRead[Demand],
        *,
        max_age_s: float,
        wall_clock: Callable[[], float],
    ) -> None:
        self._source, self._directory = source, directory
        self._reviewer, self._trust, self._telemetry = reviewer, trust, telemetry
        self._demand = demand
        self._max_age_s, self._wall_clock = max_age_s, wall_clock

    def build_app(self) -> web.Application:
        """Return the application; the caller runs it."""
        app = web.Application(client_max_size=64 * 1024)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        code, body = 200, None
        try:
            if request.path in OPEN_PATHS:
                return web.Response(text="ok")
            await self._admit(request)
            body = await self._answer(request)
        except Refused as exc:
            code, body = exc.code, render_refusal(exc.code, str(exc))
        except NoValue as exc:
            code, body = 404, render_refusal(404, str(exc))
        except errors.WindlassError as exc:
            code, body = 503, render_refusal(503, str(exc))
        except Exception:
            # A bug must not take the connection down with it: the next request may be another one.
            log.exception("Request failed. path=%s", request.path)
            code, body = 500, render_refusal(500, "internal error; see the log of the metrics adapter")
        self._telemetry.count_request(_api_of(request.path), code)
        headers = {"WWW-Authenticate": "Bearer"} if code == 401 else None
        return web.json_response(body, status=code, headers=headers)

    async def _admit(self, request: web.Request) -> None:
        """Raise Refused unless the user is known and may ask."""
        user = await self._user_of(request)
        attributes = attributes_of(request.path)
        attributes = attributes if request.method == "GET" else Attributes(request.method.lower(), request.path)
        if not await self._reviewer.allows(user, attributes):
            what = attributes.path or f"{attributes.resource} of {attributes.group}"
            where = f" in namespace {attributes.namespace}" if attributes.namespace else ""
            raise Refused(403, f"user {user.name!r} may not {attributes.verb} {what}{where}")

    async def _user_of(self, request: web.Request) -> User:
        certificate = request.get_extra_info("peercert")
        user = read_proxied_user(self._trust.front_proxy, common_name_of(certificate), request.headers.items())
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if user is None and scheme.lower() == "bearer" and token.strip():
            user = await self._reviewer.user_of_token(token.strip())
        if user is None:
            raise Refused(401, "expected the API server's client certificate or a valid bearer token, found neither")
        return mark_authenticated(user)

    async def _answer(self, request: web.Request) -> Json:
        if request.method != "GET":
            raise Refused(405, f"expected GET, found {request.method}")
        if document := _discover(request.path):
            return document
        query = parse_query(request.path)
        if query is None:
            raise Refused(404, f"the metrics adapter serves no {request.path}")
        if query.metric not in METRICS:
            raise Refused(404, f"{query.metric}: expected one of {', '.join(METRICS)}")
        if request.query.get("metricLabelSelector"):
            raise Refused(400, "metricLabelSelector: expected none, these metrics have one series per replica")
        try:
            selector = parse_selector(request.query.get("labelSelector", ""))
        except ValueError as exc:
            raise Refused(400, str(exc)) from None
        return await self._read(query, selector)

    async def _read(self, query: Query, selector: Selector) -> Json:
        replicas = await self._directory.replicas()
        if query.metric == metric_names.SERVICE_DEMAND:
            return await self._read_demand(query, selector, replicas)
        samples = await self._source.samples(query.metric)
        now_s, max_age_s, metric = self._wall_clock(), self._max_age_s, query.metric
        try:
            match query:
                case PodsQuery():
                    chosen = [
                        replica
                        for replica in replicas
                        if replica.key.namespace == query.namespace
                        and query.name in (ALL, replica.key.name)
                        and accepts(selector, replica.labels)
                    ]
                    return render_pods(metric, read_pods(metric, chosen, samples, now_s=now_s, max_age_s=max_age_s))
                case ServiceQuery():
                    reading = read_service(
                        metric, query.namespace, query.name, replicas, samples, now_s=now_s, max_age_s=max_age_s
                    )
                    return render_service(metric, reading)
                case ExternalQuery():
                    readings = read_services(
                        metric, query.namespace, selector, replicas, samples, now_s=now_s, max_age_s=max_age_s
                    )
                    return render_external(metric, readings)
        except NoValue as exc:
            why = self._directory.problem or self._source.problem_of(metric)
            raise NoValue(f"{exc} ({why})" if why else str(exc)) from exc

    async def _read_demand(self, query: Query, selector: Selector, replicas: Sequence[Replica]) -> Json:
        """What one service, or the services that a selector names, are asked for; also without a replica."""
        if isinstance(query, PodsQuery):
            raise Refused(404, f"{query.metric}: expected a question about a service, it has no value for a pod")
        demand = await self._demand.get()
        samples = [
            await self._source.samples(metric)
            for metric in (metric_names.REQUESTS_RUNNING, metric_names.REQUESTS_WAITING)
        ]
        if self._demand.problem or self._directory.problem:
            raise NoValue(f"{query.metric}: {self._demand.problem or self._directory.problem}")
        names = [query.name] if isinstance(query, ServiceQuery) else self._services(query.namespace, replicas, demand)
        readings = [
            read_demand(
                query.namespace,
                name,
                replicas,
                demand,
                samples,
                now_s=self._wall_clock(),
                max_age_s=self._max_age_s,
            )
            for name in names
            if isinstance(query, ServiceQuery) or accepts(selector, external_labels(query.namespace, name))
        ]
        if isinstance(query, ServiceQuery):
            return render_service(query.metric, readings[0])
        return render_external(query.metric, readings)

    @staticmethod
    def _services(namespace: str, replicas: Sequence[Replica], demand: Demand) -> list[str]:
        """Services of a namespace that anybody knows of."""
        asked = {name for space, name in demand.by_service if space == namespace}
        return sorted(asked | {item.service for item in replicas if item.key.namespace == namespace and item.service})


def _discover(path: str) -> Json | None:
    match path.strip("/").split("/"):
        case ["apis"]:
            return render_groups()
        case ["apis", group] if group in (CUSTOM_GROUP, EXTERNAL_GROUP):
            return render_group(group)
        case ["apis", group, version]:
            return render_resources(group, version)
    return None


def _api_of(path: str) -> str:
    parts = path.split("/")
    group = parts[2] if len(parts) > 2 else ""
    return {CUSTOM_GROUP: "custom", EXTERNAL_GROUP: "external"}.get(group, "other")
