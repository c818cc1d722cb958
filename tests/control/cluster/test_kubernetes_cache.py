from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from windlass_operator.cluster.kubernetes_cache import ObjectCache, replicas_managers
from windlass_operator.cluster.kubernetes_kinds import OWNER_UID, Ref


def build_object(name="web", version="1", uid="u1", kind="Service", owner="owner-1", **extra):
    metadata = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": version, "labels": {OWNER_UID: owner}}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **extra}


WEB = Ref("Service", "ns", "web")


def test_the_echo_of_an_own_write_changes_nothing():
    cache = ObjectCache()
    cache.absorb_reply(build_object(version="7"))

    changed = cache.absorb_event("MODIFIED", build_object(version="7"))

    assert changed is None
    assert cache.get(WEB).watched_version == "7"


def test_an_event_older_than_our_reply_does_not_bring_the_past_back():
    cache = ObjectCache()
    cache.absorb_reply(build_object(version="10", spec={"a": "new"}))

    changed = cache.absorb_event("MODIFIED", build_object(version="9", spec={"a": "old"}))

    assert changed is None
    assert cache.get(WEB).manifest["spec"] == {"a": "new"}


def test_versions_are_compared_as_numbers():
    cache = ObjectCache()
    cache.absorb_event("ADDED", build_object(version="9", spec={"a": 1}))

    assert cache.absorb_event("MODIFIED", build_object(version="10", spec={"a": 2})) == WEB


def test_an_event_that_changes_nothing_we_use_wakes_nobody():
    cache = ObjectCache()
    cache.absorb_event("ADDED", build_object(version="1", spec={"a": 1}))

    assert cache.absorb_event("MODIFIED", build_object(version="2", spec={"a": 1})) is None
    assert cache.get(WEB).version == "2"


def test_a_late_deletion_of_an_earlier_object_spares_its_successor():
    cache = ObjectCache()
    cache.absorb_event("ADDED", build_object(version="5", uid="new"))

    cache.absorb_event("DELETED", build_object(version="4", uid="old"))

    assert cache.get(WEB).uid == "new"
    assert cache.was_deleted("old")


def test_children_are_found_by_the_uid_of_their_owner():
    cache = ObjectCache()
    cache.absorb_event("ADDED", build_object("web", owner="one"))
    cache.absorb_event("ADDED", build_object("api", owner="two", uid="u2"))

    assert [ref.name for ref, _ in cache.children_of("one")] == ["web"]


def test_managed_fields_are_not_kept_but_the_owners_of_replicas_are():
    fields = [
        {"manager": "windlass", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {}}}},
        {"manager": "kubectl", "fieldsV1": {"f:metadata": {}}},
    ]
    deployment = build_object(kind="Deployment")
    deployment["metadata"]["managedFields"] = fields
    cache = ObjectCache()
    cache.absorb_event(None, deployment)
    cached = cache.get(Ref("Deployment", "ns", "web"))

    assert cached.replicas_managers == {"windlass"} == replicas_managers(deployment)
    assert "managedFields" not in cached.manifest["metadata"]


def test_a_status_that_nobody_reads_wakes_nobody():
    """A quota's usage moves with every pod of a tenant."""
    cache = ObjectCache()
    cache.absorb_event("ADDED", build_object(kind="ResourceQuota", version="1", status={"used": {"pods": "1"}}))

    changed = cache.absorb_event(
        "MODIFIED", build_object(kind="ResourceQuota", version="2", status={"used": {"pods": "2"}})
    )

    assert changed is None


class Machine(RuleBasedStateMachine):
    """Events, echoes, replies and deletions in any order never break the indexes, nor let an old version win."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ObjectCache()
        self.newest: dict[str, int] = {}

    names = st.sampled_from("abc")
    versions = st.integers(1, 40)

    @rule(name=names, version=versions, owner=st.sampled_from(["one", "two", ""]), reply=st.booleans())
    def write(self, name, version, owner, reply):
        manifest = build_object(name, str(version), uid=f"uid-{name}", owner=owner, spec={"v": version})
        if reply:
            self.cache.absorb_reply(manifest)
        else:
            self.cache.absorb_event("MODIFIED", manifest)
        self.newest[name] = max(version, self.newest.get(name, 0))

    @rule(name=names)
    def delete(self, name):
        self.cache.absorb_event("DELETED", build_object(name, "99", uid=f"uid-{name}"))
        self.newest.pop(name, None)

    @invariant()
    def holds(self):
        self.cache.check()
        held = {ref.name: int(cached.version) for ref, cached in self.cache.all_of("Service").items()}
        assert held == self.newest


TestTheNewestVersionWinsWhicheverWayItCame = Machine.TestCase
TestTheNewestVersionWinsWhicheverWayItCame.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
