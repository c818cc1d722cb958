"""Keeps both directions of trust: that the API server trusts the adapter's certificate, and whom the adapter trusts.

The Secret exists (the chart makes it, empty), so the adapter needs no right to create Secrets, with which it could ask
for the token of any account of its namespace. Its replicas agree through the Secret's resourceVersion. An APIService
that points at somebody else's adapter is left alone.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_client import APPLY, KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import ApiKind
from windlass_operator.serve.answers import GROUPS
from windlass_operator.serve.certificates import (
    Bundle,
    Renewal,
    choose_renewal,
    expiry_of,
    issue_bundle,
    service_hosts,
)
from windlass_operator.serve.paths import CUSTOM_GROUP, EXTERNAL_GROUP
from windlass_operator.serve.settings import CUSTOM, AdapterSettings
from windlass_operator.serve.telemetry import Telemetry
from windlass_operator.serve.tls import ServingContext
from windlass_operator.serve.users import CONFIG_PATH, FrontProxy, parse_front_proxy

log = logging.getLogger(__name__)

FIELD_MANAGER: Final = "windlass-metrics-adapter"
"""Field manager of `caBundle` in the APIServices. Changing it would leave the old field behind in every cluster."""
SECRET: Final = ApiKind("v1", "Secret", "secrets")
API_SERVICE: Final = ApiKind("apiregistration.k8s.io/v1", "APIService", "apiservices", namespaced=False)
ATTEMPTS: Final = 3
"""Times to look again when another replica wrote the Secret at the same moment."""
RETRY_S: Final = 2.0


class TrustKeeper:
    """Holds the certificate in use and the front proxy trusted now. Run it as one task."""

    def __init__(
        self,
        client: KubernetesClient,
        serving: ServingContext,
        settings: AdapterSettings,
        wall_clock: Callable[[], datetime.datetime],
        telemetry: Telemetry,
    ) -> None:
        self._client, self._serving, self._settings = client, serving, settings
        self._wall_clock, self._telemetry = wall_clock, telemetry
        self._in_use: tuple[Bundle, str] | None = None
        self._front_proxy: FrontProxy | None = None
        self._said: dict[str, str] = {}
        self.ready = asyncio.Event()
        """Set once the API can be served."""

    @property
    def front_proxy(self) -> FrontProxy:
        """Whom to trust; valid once `ready` is set."""
        assert self._front_proxy is not None, "nobody is trusted yet"
        return self._front_proxy

    async def run(self) -> None:
        """Refresh for ever; an error is said once and tried again soon."""
        while True:
            try:
                await self.refresh()
            except errors.WindlassError as exc:
                self._say("trust", str(exc))
                await asyncio.sleep(min(RETRY_S, self._settings.trust_interval_s))
            else:
                self._say("trust", "")
                await asyncio.sleep(self._settings.trust_interval_s)

    async def refresh(self) -> None:
        """Look at everything once. Raises WindlassError when the API server does not say, or refuses."""
        front_proxy = parse_front_proxy(await self._client.get_at(CONFIG_PATH))
        bundle = await self._shared_bundle()
        if self._in_use != (bundle, front_proxy.authority):
            try:
                await asyncio.to_thread(self._serving.renew, bundle, front_proxy.authority)
            except OSError as exc:  # ssl.SSLError is one
                raise errors.RetryLater(f"certificates cannot be used: {exc}") from exc
            self._in_use = (bundle, front_proxy.authority)
            ends = expiry_of(bundle)
            self._telemetry.set_certificate_expiry(ends.timestamp())
            log.info("Serving with a new certificate or for a new authority. certificate_ends=%s", ends.isoformat())
        self._front_proxy = front_proxy
        self.ready.set()
        for api in self._settings.apis:
            await self._announce(CUSTOM_GROUP if api == CUSTOM else EXTERNAL_GROUP, bundle)

    async def _shared_bundle(self) -> Bundle:
        """Return what the Secret holds, renewed first where it is due."""
        settings = self._settings
        path = SECRET.path(settings.namespace, settings.secret_name)
        hosts = service_hosts(settings.service_name, settings.namespace)
        for _ in range(ATTEMPTS):
            secret = await self._client.get_at(path)
            if secret is None:
                raise errors.RetryLater(
                    f"Secret {settings.namespace}/{settings.secret_name}: expected it to exist, found none; "
                    "the chart makes it, empty"
                )
            bundle, now = Bundle.from_data(secret.get("data")), self._wall_clock()
            renewal = choose_renewal(bundle, hosts, now)
            if renewal is Renewal.NOTHING and bundle is not None:
                return bundle
            fresh = await asyncio.to_thread(issue_bundle, bundle, renewal, hosts, now)
            try:
                await self._client.replace(
                    SECRET, {**secret, "data": {**(secret.get("data") or {}), **fresh.to_data()}}
                )
            except errors.ApplyConflict:
                continue  # another replica was faster; take what it wrote
            log.info("Certificate made. secret=%s what=%s", settings.secret_name, renewal.value)
            return fresh
        raise errors.RetryLater(f"Secret {settings.namespace}/{settings.secret_name} keeps changing under us")

    async def _announce(self, group: str, bundle: Bundle) -> None:
        """Let the API server trust our authority for one API. Problems are said: the other API may be fine."""
        name = f"{GROUPS[group]}.{group}"
        try:
            found = await self._client.get_at(API_SERVICE.path(name=name))
            problem = registration_problem(name, found, self._settings)
            if not problem and found is not None:
                await self._apply_authority(name, found, bundle)
        except errors.WindlassError as exc:
            problem = f"APIService {name}: {exc}"
        self._say(name, problem)

    async def _apply_authority(self, name: str, found: Mapping[str, Any], bundle: Bundle) -> None:
        authority = base64.b64encode(bundle.authority.encode()).decode()
        if found["spec"].get("caBundle") == authority:
            return
        body = {
            "apiVersion": API_SERVICE.api_version,
            "kind": API_SERVICE.kind,
            "metadata": {"name": name},
            "spec": {"caBundle": authority},
        }
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        await self._client.request("PATCH", API_SERVICE.path(name=name), body, params=params, content_type=APPLY)
        log.info("The API server trusts our authority. api_service=%s", name)

    def _say(self, subject: str, problem: str) -> None:
        """Log a problem once, and its end."""
        before, self._said[subject] = self._said.get(subject, ""), problem
        if problem and problem != before:
            log.error("Not in order; trying again. error=%s", problem)
        elif before and not problem:
            log.info("In order again. what=%s", subject)


def registration_problem(name: str, found: Mapping[str, Any] | None, settings: AdapterSettings) -> str:
    """Return in words what keeps an APIService from being ours; empty where it is."""
    ours = f"{settings.namespace}/{settings.service_name}"
    if found is None:
        return f"APIService {name}: expected one that points at Service {ours}, found none"
    spec = found.get("spec") or {}
    service = spec.get("service") or {}
    theirs = f"{service.get('namespace', '')}/{service.get('name', '')}"
    if theirs != ours:
        return (
            f"APIService {name}: expected one that points at Service {ours}, found {theirs}; "
            "another adapter serves this API, and only one can"
        )
    if spec.get("insecureSkipTLSVerify"):
        return (
            f"APIService {name}: expected insecureSkipTLSVerify to be off, found it on; our certificate can be checked"
        )
    return ""
