"""kopf as the watch engine and nothing else: its handlers only pass raw events on.

No create, update or delete handlers, no timers, no daemons: those would put kopf's annotations and finalizers on the
users' objects, make Argo CD see drift, and freeze deletion while the operator is down.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import kopf

from windlass_operator.cluster.kubernetes_access import Access, AccessLoader
from windlass_operator.cluster.kubernetes_kinds import WATCHED, ApiKind, selector_of
from windlass_operator.settings import OperatorSettings

Absorb = Callable[[str | None, Mapping[str, Any]], None]
"""Takes an event type (None for the first listing) and the object."""

WORKER_IDLE_S = 0.05
"""How long kopf keeps the worker of a quiet object. Idle workers count against the limit below: with kopf's 5 s, 64
workers would take in no more than 13 objects per second of a first listing."""
WORKER_LIMIT = 64
END_TIMEOUT_S = 10.0
WATCHER = "watcher for "
"""How the names of kopf's tasks begin that hold one watch."""


class Backoffs:
    """Waits between attempts of one request, without an end: kopf would give up after a minute and take the operator
    down, for trouble that a restart does not cure. Short, because every second of it is one without events.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.2, 0.5, 1.0), itertools.repeat(2.0))


class NoDiffBase(kopf.DiffBaseStorage):
    """No memory of earlier versions: only change handlers compare, and there are none.

    kopf would copy every object several times per event for it, a third of the operator's work in a burst.
    """

    def build(self, **_: Any) -> Any:
        """Return nothing to compare."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Return what `build` returns: no difference, ever."""
        return {}

    def store(self, **_: Any) -> None:
        """Write no annotation."""


class NoProgress(kopf.ProgressStorage):
    """No progress of handlers on the users' objects, for the same reason."""

    def fetch(self, **_: Any) -> None:
        """Nothing is under way."""

    def store(self, **_: Any) -> None:
        """Write no annotation."""

    def purge(self, **_: Any) -> None:
        """Remove nothing."""

    def touch(self, **_: Any) -> None:
        """Touch nothing."""

    def clear(self, *, essence: Any) -> Any:
        """Return the empty essence as it is."""
        return essence


def build_registry(absorb: Absorb, load_access: AccessLoader) -> kopf.OperatorRegistry:
    """Return a registry of event handlers for every watched kind, and the login."""
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_of(await load_access())

    async def take(event: Mapping[str, Any], **_: Any) -> None:
        absorb(event["type"], event["object"])

    kopf.on.login(registry=registry)(login)
    for kind in WATCHED:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"watch-{kind.plural}")(take)
    return registry


def build_settings(settings: OperatorSettings) -> kopf.OperatorSettings:
    """Return kopf's settings, every one we rely on set explicitly."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.scanning.disabled = True
    result.peering.standalone = True
    result.persistence.diffbase_storage = NoDiffBase()
    result.persistence.progress_storage = NoProgress()
    result.networking.request_timeout = settings.request_timeout_s
    result.networking.connect_timeout = min(10.0, settings.request_timeout_s)
    result.networking.error_backoffs = Backoffs()
    result.process.ultimate_exiting_timeout = None  # kopf would kill the process that starts it again
    result.watching.server_timeout = settings.watch_timeout_s
    result.watching.connect_timeout = min(10.0, settings.request_timeout_s)
    result.watching.chunk_size = settings.page_size
    result.queueing.worker_limit = WORKER_LIMIT
    result.queueing.idle_timeout = WORKER_IDLE_S
    for kind in WATCHED:
        selector = selector_of(kind.kind)
        if selector:
            result.watching.label_selectors[kind.group, kind.version, kind.plural] = selector
    return result


def connection_of(access: Access) -> kopf.ConnectionInfo:
    """Translate our access into kopf's."""
    scheme, _, credentials = access.authorization.partition(" ")
    return kopf.ConnectionInfo(
        server=access.server,
        ca_path=access.ca_file or None,
        insecure=not access.verify,
        scheme=scheme or None,
        token=credentials or None,
        certificate_path=access.cert_file or None,
        private_key_path=access.key_file or None,
        proxy_url=access.proxy or None,
    )


async def watch(
    registry: kopf.OperatorRegistry,
    settings: kopf.OperatorSettings,
    *,
    namespaces: Sequence[str],
    take_signals: Callable[[], None],
) -> None:
    """Watch until cancelled; raises what kopf takes for fatal. May be called again after that.

    `take_signals` is called once kopf has installed its signal handlers, to install ours instead: on SIGTERM running
    reconciles are finished first.
    """
    stop = asyncio.Event()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=tuple(namespaces),
        stop_flag=stop,
    )
    take_signals()
    # Not kopf.run_tasks: it would cancel every task of the loop that it does not know, ours too.
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        # When one watch fails, kopf leaves the others running.
        ending = {*tasks, *(task for task in asyncio.all_tasks() if task.get_name().startswith(WATCHER))}
        for task in ending:
            task.cancel()
        await asyncio.wait(ending, timeout=END_TIMEOUT_S)
    for task in done:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure


def served_kinds(registry: kopf.OperatorRegistry) -> tuple[ApiKind, ...]:
    """Return the kinds the registry has event handlers for."""
    handled = {handler.id for handler in registry._watching.get_all_handlers()}
    return tuple(kind for kind in WATCHED if f"watch-{kind.plural}" in handled)
