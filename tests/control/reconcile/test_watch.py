"""kopf stays a watch engine: what it may hold, and how it is set."""

from __future__ import annotations

import pytest

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
