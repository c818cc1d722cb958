"""kopf stays a watch engine: what it may hold, and how it is set."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_operator.cluster.kubernetes_access import Access
from windlass_operator.cluster.kubernetes_kinds import WATCHED
from windlass_operator.domain import labels
from windlass_operator.reconcile import watch
from windlass_operator.settings import OperatorSettings


@pytest.fixture
def registry():
    async def load_access():
        return Access("https://x", "a test")

    return watch.build_registry(lambda event_type, manifest: None, load_access)


def test_the_registry_holds_nothing_but_event_handlers_and_a_login(registry):
    """A change handler, timer or daemon would put annotations and finalizers on the users' objects."""
    assert registry._changing.get_all_handlers() == []
    assert registry._spawning.get_all_handlers() == []
    assert registry._indexing.get_all_handlers() == []
    assert registry._webhooks.get_all_handlers() == []
    assert [handler.activity.value for handler in registry._activities.get_all_handlers()] == ["authentication"]


def test_every_watched_kind_has_exactly_one_handler_by_its_exact_name(registry):
    handlers = registry._watching.get_all_handlers()

    served = {(handler.selector.group, handler.selector.version, handler.selector.any_name) for handler in handlers}

    assert len(handlers) == len(WATCHED)
    assert served == {(kind.group, kind.version, kind.plural) for kind in WATCHED}


async def test_an_event_reaches_the_cache_with_its_type_and_object():
    taken = []

    async def load_access():
        return Access("https://x", "a test")

    registry = watch.build_registry(lambda event_type, manifest: taken.append((event_type, manifest)), load_access)
    handler = registry._watching.get_all_handlers()[0]
    await handler.fn(event={"type": "DELETED", "object": {"kind": "Pod"}}, name="ignored")

    assert taken == [("DELETED", {"kind": "Pod"})]


def test_children_are_watched_by_label_and_our_own_kinds_whole():
    selectors = watch.build_settings(OperatorSettings()).watching.label_selectors
    by_plural = {selector.any_name: text for selector, text in selectors.items()}

    assert by_plural["deployments"] == f"{labels.MANAGED_BY}={labels.MANAGER}"
    assert {"inferenceservices", "tenants", "gpuclasses", "nodes"}.isdisjoint(by_plural)


def test_kopf_writes_nothing_by_itself():
    settings = watch.build_settings(OperatorSettings())

    assert (settings.posting.enabled, settings.scanning.disabled, settings.peering.standalone) == (False, True, True)


def test_kopf_keeps_no_copy_of_an_object_and_leaves_no_mark_on_it():
    settings, patch = watch.build_settings(OperatorSettings()), {}
    diffs, progress = settings.persistence.diffbase_storage, settings.persistence.progress_storage
    body = {"metadata": {"name": "chat"}, "spec": {"a": 1}}

    essence = diffs.build(body=body, extra_fields=())
    diffs.store(body=body, patch=patch, essence=essence)
    progress.store(key="k", record={}, body=body, patch=patch)
    progress.touch(body=body, patch=patch, value="now")

    assert (essence, diffs.fetch(body=body), progress.clear(essence=essence), patch) == ({}, {}, {}, {})


def test_a_first_listing_is_not_throttled_by_idle_workers():
    settings = watch.build_settings(OperatorSettings())

    objects_per_s = settings.queueing.worker_limit / settings.queueing.idle_timeout

    assert objects_per_s >= 1000


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        pytest.param(
            Access("https://x", "s", authorization="Bearer t"), {"scheme": "Bearer", "token": "t"}, id="token"
        ),
        pytest.param(
            Access("https://x", "s", authorization="Basic dTpw"), {"scheme": "Basic", "token": "dTpw"}, id="basic"
        ),
        pytest.param(
            Access("https://x", "s", ca_file="/ca", cert_file="/c", key_file="/k"),
            {"ca_path": "/ca", "certificate_path": "/c", "private_key_path": "/k", "token": None},
            id="certificates",
        ),
        pytest.param(Access("https://x", "s", verify=False), {"insecure": True}, id="no verification"),
    ],
)
def test_kopf_logs_in_as_we_do(access, expected):
    connection = watch.connection_of(access)

    assert {name: getattr(connection, name) for name in expected} == expected


def test_requests_of_watches_are_repeated_without_an_end_and_soon():
    """kopf's own list ends after a minute, and the operator with it."""
    waits = list(itertools.islice(watch.build_settings(OperatorSettings()).networking.error_backoffs, 100))

    assert len(waits) == 100
    assert max(waits) <= 2.0


class Server:
    """An API server with two of our kinds; `refuse` names one whose watch it does not know."""

    def __init__(self) -> None:
        self.refuse = ""
        self.watched: list[str] = []
        self.closing = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        plural = request.path.rpartition("/")[2]
        if request.query.get("watch"):
            return await self.watch(request, plural)
        return web.json_response(DISCOVERY.get(request.path, {"items": [], "metadata": {"resourceVersion": "1"}}))

    async def watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        if plural == self.refuse:
            return web.json_response({"kind": "Status", "message": "not served"}, status=404)
        self.watched.append(plural)
        response = web.StreamResponse()
        await response.prepare(request)
        await self.closing.wait()
        return response


VERBS = ["list", "watch", "patch"]
DISCOVERY = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {
        "resources": [
            {"name": "namespaces", "kind": "Namespace", "singularName": "", "namespaced": False, "verbs": VERBS}
        ]
    },
    "/apis": {
        "groups": [
            {
                "name": "windlass.dev",
                "versions": [{"version": "v1alpha1"}],
                "preferredVersion": {"version": "v1alpha1"},
            }
        ]
    },
    "/apis/windlass.dev/v1alpha1": {
        "resources": [
            {"name": "tenants", "kind": "Tenant", "singularName": "tenant", "namespaced": False, "verbs": VERBS},
        ]
    },
}


async def test_a_failed_watch_ends_all_of_them_and_watching_can_begin_again():
    """kopf alone would leave the other watches running, and begin them a second time."""
    server, app = Server(), web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    async with TestServer(app) as running:

        async def load_access():
            return Access(str(running.make_url("")).rstrip("/"), "a test", authorization="Bearer t")

        def begin():
            return watch.watch(
                watch.build_registry(lambda event_type, manifest: None, load_access),
                watch.build_settings(OperatorSettings()),
                namespaces=(),
                take_signals=lambda: None,
            )

        server.refuse = "tenants"
        with pytest.raises(Exception, match="not served"):
            await asyncio.wait_for(begin(), 20)
        left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(watch.WATCHER)]
        server.refuse, server.watched = "", []
        again = asyncio.create_task(begin())
        while len(server.watched) < 2:
            await asyncio.sleep(0.01)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        server.closing.set()

    assert left == []
    assert sorted(server.watched) == ["namespaces", "tenants"]
