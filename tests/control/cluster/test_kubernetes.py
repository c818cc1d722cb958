"""The rules of KubernetesCluster on a client without a server; tests/e2e shows the same on a real one."""

from __future__ import annotations

import datetime

import pytest

from support.kubernetes_client import FakeKubernetesClient
from windlass_operator import errors
from windlass_operator.cluster.kubernetes import KubernetesCluster
from windlass_operator.cluster.kubernetes_events import EventRecorder
from windlass_operator.cluster.kubernetes_kinds import OWNER, OWNER_UID, Ref
from windlass_operator.cluster.kubernetes_lease import Leadership
from windlass_operator.domain import labels
from windlass_operator.domain.snapshot import Key

CHAT = Key("InferenceService", "team-a", "chat")
TENANT = Key("Tenant", "", "team-a")
DEPLOYMENT = Ref("Deployment", "team-a", "chat")
MANAGED = {labels.MANAGED_BY: labels.MANAGER}


class World:
    """A cluster, its client and an owner that the cluster has seen."""

    def __init__(self) -> None:
        self.client = FakeKubernetesClient()
        self.leadership = Leadership(lambda: 0.0)
        self.leadership._until = 1.0
        self.counted: list[tuple[str, str]] = []
        now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        self.events = EventRecorder(self.client, component="c", instance="i", clock=lambda: 0.0, wall_clock=lambda: now)
        self.cluster = self.restart()
        self.add_owner(CHAT)

    def restart(self) -> KubernetesCluster:
        """A new process: nothing is remembered, the watch brings everything anew."""
        self.cluster = KubernetesCluster(
            self.client, self.leadership, self.events, lambda *write: self.counted.append(write)
        )
        self.cluster.set_filling(())
        for manifest in list(self.client.objects.values()):
            if manifest["metadata"].get("labels", {}).get(labels.MANAGED_BY) or manifest["kind"] in (
                "InferenceService",
                "Tenant",
            ):
                self.cluster.absorb(None, manifest)
        return self.cluster

    def add_owner(self, key: Key, uid: str = "uid-owner") -> None:
        spec = {"model": {"uri": "file:///m"}} if key.kind == "InferenceService" else {"namespaces": ["team-a"]}
        metadata = {"name": key.name, "uid": uid, "generation": 1} | (
            {"namespace": key.namespace} if key.namespace else {}
        )
        stored = self.client.put(
            {"apiVersion": "windlass.dev/v1alpha1", "kind": key.kind, "metadata": metadata, "spec": spec}
        )
        self.cluster.absorb("ADDED", stored)

    def edit(self, manifest: dict) -> None:
        """Somebody else writes; the watch tells."""
        self.cluster.absorb("MODIFIED", self.client.put(manifest))


@pytest.fixture
def world() -> World:
    return World()


def build_deployment(image: str = "runtime:1", replicas: int | None = 2) -> dict:
    owned = {} if replicas is None else {"replicas": replicas}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "team-a", "labels": {labels.INSTANCE: "chat"}},
        "spec": {**owned, "template": {"spec": {"containers": [{"name": "runtime", "image": image}]}}},
    }


def build_child(kind: str, name: str = "chat", namespace: str = "team-a", **body) -> dict:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **body}


async def test_a_first_apply_writes_every_child_and_a_second_one_nothing(world):
    children = [build_child("ServiceAccount"), build_child("Service", spec={"type": "ClusterIP"}), build_deployment()]

    first, second = await world.cluster.apply(CHAT, children), await world.cluster.apply(CHAT, children)

    assert first.written == ("ServiceAccount/chat", "Service/chat", "Deployment/chat")
    assert (second.written, second.pruned, second.problems) == ((), (), {})
    assert len(world.client.writes) == 3


async def test_a_restarted_operator_writes_nothing(world):
    await world.cluster.apply(CHAT, [build_deployment(), build_child("Service")])
    world.client.requests.clear()

    await world.restart().apply(CHAT, [build_deployment(), build_child("Service")])

    assert world.client.requests == []


async def test_children_carry_their_owner_in_a_label_an_annotation_and_a_reference_that_blocks_nothing(world):
    await world.cluster.apply(CHAT, [build_child("Service")])
    metadata = world.client.objects[Ref("Service", "team-a", "chat")]["metadata"]

    assert metadata["labels"] == {**MANAGED, OWNER_UID: "uid-owner"}
    assert metadata["annotations"][OWNER] == "InferenceService/team-a/chat"
    assert metadata["ownerReferences"] == [
        {
            "apiVersion": "windlass.dev/v1alpha1",
            "kind": "InferenceService",
            "name": "chat",
            "uid": "uid-owner",
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]


async def test_an_edit_of_a_field_we_own_is_repaired(world):
    await world.cluster.apply(CHAT, [build_deployment("runtime:1")])
    world.edit(build_deployment("intruder:1"))

    applied = await world.cluster.apply(CHAT, [build_deployment("runtime:1")])

    assert applied.written == ("Deployment/chat",)
    containers = world.client.objects[DEPLOYMENT]["spec"]["template"]["spec"]["containers"]
    assert containers == [{"name": "runtime", "image": "runtime:1"}]


async def test_an_edit_of_a_field_we_do_not_own_is_left_alone(world):
    await world.cluster.apply(CHAT, [build_deployment(replicas=None)])
    world.edit({**build_deployment(replicas=None), "spec": {"replicas": 7}})

    applied = await world.cluster.apply(CHAT, [build_deployment(replicas=None)])

    assert applied.written == ()
    assert world.client.objects[DEPLOYMENT]["spec"]["replicas"] == 7


async def test_a_deleted_child_is_made_anew(world):
    await world.cluster.apply(CHAT, [build_child("Service")])
    gone = world.client.objects.pop(Ref("Service", "team-a", "chat"))
    world.cluster.absorb("DELETED", gone)

    assert (await world.cluster.apply(CHAT, [build_child("Service")])).written == ("Service/chat",)


async def test_a_value_that_a_webhook_insists_on_is_written_once_and_not_for_ever(world):
    world.client.overrides[Ref("Service", "team-a", "chat")] = {"type": "NodePort"}
    wanted = [build_child("Service", spec={"type": "ClusterIP"})]

    writes = [len((await world.cluster.apply(CHAT, wanted)).written) for _ in range(3)]

    assert writes == [1, 0, 0]


async def test_dropping_the_replica_count_does_not_shrink_a_running_fleet(world):
    await world.cluster.apply(CHAT, [build_deployment(replicas=5)])

    await world.cluster.apply(CHAT, [build_deployment(replicas=None)])

    assert world.client.objects[DEPLOYMENT]["spec"]["replicas"] == 5
    assert world.client.writes[-2:] == ["apply as windlass-handover Deployment/chat", "apply Deployment/chat"]


async def test_without_the_handover_the_fleet_would_shrink_to_one(world):
    """Shows that the test above can fail: this is what a plain apply does."""
    await world.client.apply(build_deployment(replicas=5))

    await world.client.apply(build_deployment(replicas=None))

    assert world.client.objects[DEPLOYMENT]["spec"]["replicas"] == 1


async def test_a_handover_that_meets_a_scaling_in_between_is_tried_again(world):
    await world.cluster.apply(CHAT, [build_deployment(replicas=5)])
    world.client.fail("apply as windlass-handover Deployment/chat", errors.ApplyConflict("scaled just now"))

    with pytest.raises(errors.ApplyConflict):
        await world.cluster.apply(CHAT, [build_deployment(replicas=None)])
    await world.cluster.apply(CHAT, [build_deployment(replicas=None)])

    assert world.client.objects[DEPLOYMENT]["spec"]["replicas"] == 5


async def test_an_autoscaler_goes_before_its_replica_count_is_claimed(world):
    await world.cluster.apply(CHAT, [build_deployment(replicas=None), build_child("HorizontalPodAutoscaler")])

    await world.cluster.apply(CHAT, [build_deployment(replicas=3)])

    assert world.client.writes[-2:] == ["delete HorizontalPodAutoscaler/chat", "apply Deployment/chat"]


async def test_children_no_longer_wanted_are_deleted_after_the_others_are_in_place(world):
    await world.cluster.apply(CHAT, [build_child("ConfigMap", "old"), build_deployment()])

    applied = await world.cluster.apply(CHAT, [build_child("ConfigMap", "new"), build_deployment()])

    assert applied.pruned == ("ConfigMap/old",)
    assert world.client.writes[-2:] == ["apply ConfigMap/new", "delete ConfigMap/old"]


async def test_nothing_is_deleted_while_a_replacement_is_refused(world):
    await world.cluster.apply(CHAT, [build_child("ConfigMap", "old")])
    world.client.fail("apply ConfigMap/new", errors.ApplyRejected("exceeded quota: 10 ConfigMaps", "QuotaExceeded"))

    applied = await world.cluster.apply(CHAT, [build_child("ConfigMap", "new"), build_child("Service")])

    assert applied.problems == {"ConfigMap/new": "QuotaExceeded: exceeded quota: 10 ConfigMaps"}
    assert (applied.written, applied.pruned) == (("Service/chat",), ())


async def test_a_namespace_is_neither_owned_nor_deleted(world):
    world.add_owner(TENANT, "uid-tenant")
    namespace = build_child("Namespace", "team-a", namespace="")
    namespace["metadata"]["annotations"] = {labels.PRUNE: labels.PRUNE_NEVER}
    await world.cluster.apply(TENANT, [namespace, build_child("LimitRange")])

    applied = await world.cluster.apply(TENANT, [])

    assert applied.pruned == ("LimitRange/team-a/chat",)
    assert "ownerReferences" not in world.client.objects[Ref("Namespace", "", "team-a")]["metadata"]


async def test_an_existing_namespace_is_taken_over_by_its_tenant(world):
    world.client.put(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a", "labels": {"made-by": "hand"}}}
    )
    world.add_owner(TENANT, "uid-tenant")
    namespace = build_child("Namespace", "team-a", namespace="")
    namespace["metadata"]["annotations"] = {labels.PRUNE: labels.PRUNE_NEVER}

    applied = await world.cluster.apply(TENANT, [namespace])

    assert applied.problems == {}
    assert world.client.objects[Ref("Namespace", "", "team-a")]["metadata"]["labels"]["made-by"] == "hand"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        pytest.param({}, "is not managed by Windlass", id="made by hand"),
        pytest.param({"labels": {labels.MANAGED_BY: "Helm"}}, "'Helm'", id="made by another tool"),
        pytest.param(
            {"labels": {**MANAGED, OWNER_UID: "uid-other"}, "annotations": {OWNER: "InferenceService/team-a/other"}},
            "belongs to InferenceService team-a/other",
            id="another service of ours",
        ),
    ],
)
async def test_an_object_of_somebody_else_is_not_taken(world, metadata, words):
    world.add_owner(Key("InferenceService", "team-a", "other"), "uid-other")
    world.client.put(build_child("Service") | {"metadata": {"name": "chat", "namespace": "team-a", **metadata}})

    applied = await world.cluster.apply(CHAT, [build_child("Service")])

    assert words in applied.problems["Service/chat"]
    assert world.client.writes == []


async def test_a_child_that_lost_our_label_is_still_ours(world):
    await world.cluster.apply(CHAT, [build_child("Service")])
    ref = Ref("Service", "team-a", "chat")
    world.client.objects[ref]["metadata"]["labels"] = {}
    world.cluster.absorb("DELETED", world.client.objects[ref])  # what a watch by label sends

    applied = await world.cluster.apply(CHAT, [build_child("Service")])

    assert applied.written == ("Service/chat",)
    assert world.client.objects[ref]["metadata"]["labels"][OWNER_UID] == "uid-owner"


async def test_children_of_an_earlier_owner_of_the_same_name_are_taken_over(world):
    await world.cluster.apply(CHAT, [build_child("Service")])
    world.cluster.absorb("DELETED", world.client.objects.pop(Ref("InferenceService", "team-a", "chat")))
    world.add_owner(CHAT, "uid-reborn")

    applied = await world.cluster.apply(CHAT, [build_child("Service")])

    assert applied.written == ("Service/chat",)
    assert world.client.objects[Ref("Service", "team-a", "chat")]["metadata"]["labels"][OWNER_UID] == "uid-reborn"


@pytest.mark.parametrize("how", ["gone", "leaving"])
async def test_an_owner_that_is_gone_or_leaving_gets_no_children(world, how):
    owner = world.client.objects[Ref("InferenceService", "team-a", "chat")]
    if how == "gone":
        world.cluster.absorb("DELETED", owner)
    else:
        world.edit({**owner, "metadata": {**owner["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})

    applied = await world.cluster.apply(CHAT, [build_child("Service")])

    assert (applied.written, world.client.writes) == ((), [])


async def test_a_child_that_is_still_leaving_is_waited_for(world):
    await world.cluster.apply(CHAT, [build_child("Service")])
    stored = world.client.objects[Ref("Service", "team-a", "chat")]
    world.edit({**stored, "metadata": {**stored["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})

    with pytest.raises(errors.RetryLater, match="being deleted"):
        await world.cluster.apply(CHAT, [build_child("Service", spec={"new": 1})])


async def test_a_process_without_the_lease_writes_nothing(world):
    world.leadership._until = -1.0

    with pytest.raises(errors.RetryLater, match="lease"):
        await world.cluster.apply(CHAT, [build_child("Service")])
    with pytest.raises(errors.RetryLater, match="lease"):
        await world.cluster.report(CHAT, {"replicas": 1})

    assert world.client.writes == []


async def test_a_lease_lost_between_two_children_stops_before_the_second(world):
    original = world.client.apply

    async def lose_lease(manifest, manager="windlass"):
        world.leadership._until = -1.0
        return await original(manifest, manager)

    world.client.apply = lose_lease
    with pytest.raises(errors.RetryLater):
        await world.cluster.apply(CHAT, [build_child("Service"), build_child("ConfigMap")])

    assert world.client.writes == ["apply Service/chat"]


async def test_status_is_written_only_when_it_changes(world):
    status = {
        "observedGeneration": 1,
        "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": ""}],
    }

    results = [await world.cluster.report(CHAT, status) for _ in range(2)]

    assert results == [True, False]
    assert world.client.writes == ["status InferenceService/chat"]


async def test_a_status_field_that_is_no_longer_wanted_is_removed(world):
    await world.cluster.report(CHAT, {"replicas": 1, "lastFailure": {"reason": "OOMKilled"}})

    await world.cluster.report(CHAT, {"replicas": 1})

    assert world.client.objects[Ref("InferenceService", "team-a", "chat")]["status"] == {"replicas": 1}


async def test_a_status_field_that_an_older_crd_drops_causes_one_write_and_not_a_storm(world):
    world.client.pruned_status_fields.add("newField")

    results = [await world.cluster.report(CHAT, {"replicas": 1, "newField": "x"}) for _ in range(3)]

    assert results == [True, False, False]


async def test_observe_refuses_half_a_picture(world):
    world.cluster.set_filling(("Node", "Pod"))

    with pytest.raises(errors.ClusterUnavailable, match="Node, Pod"):
        await world.cluster.observe(CHAT)


async def test_observe_shows_what_was_just_applied_before_any_event(world):
    await world.cluster.apply(CHAT, [build_deployment(replicas=4)])

    snapshot = await world.cluster.observe(CHAT)

    assert snapshot.workloads[CHAT].wanted == 4


async def test_an_unreadable_object_is_named_with_its_field(world):
    stored = world.client.objects[Ref("InferenceService", "team-a", "chat")]
    world.edit({**stored, "spec": {"model": {"uri": "nonsense"}}})

    with pytest.raises(errors.InvalidInput, match=r"InferenceService team-a/chat: spec\.model\.uri"):
        await world.cluster.observe(CHAT)


async def test_the_snapshot_is_the_same_object_until_something_changes(world):
    one, two = await world.cluster.observe(CHAT), await world.cluster.observe(CHAT)
    world.add_owner(TENANT, "uid-tenant")
    three = await world.cluster.observe(CHAT)

    assert one is two
    assert (set(one.tenants), set(three.tenants)) == (set(), {"team-a"})
