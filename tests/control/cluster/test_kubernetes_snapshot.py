from __future__ import annotations

import pytest

from windlass_operator.cluster.kubernetes_cache import ObjectCache
from windlass_operator.cluster.kubernetes_kinds import OWNER
from windlass_operator.cluster.kubernetes_snapshot import SnapshotBuilder
from windlass_operator.domain.snapshot import Key

CHAT = Key("InferenceService", "ns", "chat")


def build_manifest(kind, version, name="chat", **body):
    metadata = {"name": name, "namespace": "ns", "uid": f"{kind}-{name}", "resourceVersion": str(version)}
    metadata |= body.pop("metadata", {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **body}


def build_service(version, uri="file:///m", name="chat"):
    return build_manifest("InferenceService", version, name, spec={"model": {"uri": uri}})


def build_deployment(version, replicas=1, **annotations):
    metadata = {
        "labels": {"app.kubernetes.io/instance": "chat"},
        "annotations": {OWNER: "InferenceService/ns/chat", **annotations},
    }
    return build_manifest("Deployment", version, metadata=metadata, spec={"replicas": replicas})


class World:
    """A cache and the builder that follows it."""

    def __init__(self) -> None:
        self.cache = ObjectCache()
        self.builder = SnapshotBuilder(self.cache)

    def see(self, manifest, event="MODIFIED"):
        self.cache.absorb_event(event, manifest)
        self.builder.touch_object(manifest)
        return self.builder.build()


@pytest.fixture
def world() -> World:
    return World()


def test_the_picture_is_the_same_object_while_nothing_in_it_changes(world):
    world.see(build_service(1))
    before = world.see(build_deployment(2))

    assert world.see(build_deployment(3, note="for people")) is before
    assert world.see(build_deployment(4, replicas=2)) is not before


def test_a_picture_that_was_given_out_stays_as_it_was(world):
    before = world.see(build_service(1))
    world.see(build_service(2, uri="file:///other"))
    world.see(build_service(3, name="search"))
    after = world.see(build_service(4), "DELETED")

    assert [str(key) for key in before.services] == ["InferenceService ns/chat"]
    assert before.services[CHAT].spec.model.uri == "file:///m"
    assert [str(key) for key in after.services] == ["InferenceService ns/search"]


def test_only_the_part_that_changed_is_another_object(world):
    before = world.see(build_service(1))
    after = world.see(build_deployment(2))

    assert after.workloads is not before.workloads
    assert (after.services, after.nodes) == (before.services, before.nodes)
    assert after.services is before.services


def test_devices_stay_held_after_their_service_until_the_last_pod_is_gone(world):
    pod = build_manifest(
        "Pod",
        3,
        "chat-1",
        metadata={"labels": {"app.kubernetes.io/instance": "chat", "windlass.dev/gpu-class": "h200"}},
        spec={"containers": [{"resources": {"limits": {"nvidia.com/gpu": "2"}}}]},
        status={"phase": "Running"},
    )
    for manifest in (build_service(1), build_deployment(2), pod):
        world.see(manifest)

    world.see(build_service(4), "DELETED")
    after = world.see(build_deployment(5), "DELETED")
    assert (after.services, after.workloads[CHAT].devices, after.workloads[CHAT].gpu_class) == ({}, 2, "h200")

    assert world.see(pod | {"metadata": pod["metadata"] | {"resourceVersion": "6"}}, "DELETED").workloads == {}


def build_canary_deployment(version, replicas=1):
    deployment = build_deployment(version, replicas)
    metadata = deployment["metadata"] | {"name": "chat-next", "uid": "Deployment-chat-next"}
    metadata["labels"] = {**metadata["labels"], "windlass.dev/canary": "next"}
    return {**deployment, "metadata": metadata}


def test_a_canary_is_a_workload_of_its_own_and_none_of_the_service(world):
    next_key = Key("InferenceService", "ns", "chat/next")
    world.see(build_service(1))
    world.see(build_canary_deployment(2, replicas=3))

    before = world.builder.build()
    world.see(build_deployment(3, replicas=2))
    both = world.builder.build()
    world.see(build_canary_deployment(4), event="DELETED")
    after = world.builder.build()

    assert (before.workloads.get(CHAT), before.workloads[next_key].wanted) == (None, 3)
    assert (both.workloads[CHAT].wanted, both.workloads[next_key].wanted) == (2, 3)
    assert set(after.workloads) == {CHAT}


def test_what_kueue_says_stays_with_a_service_until_nothing_waits(world):
    world.see(build_service(1))
    deployment = build_deployment(2)
    deployment["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    deployment["spec"]["selector"] = {"matchLabels": {"app.kubernetes.io/instance": "chat"}}
    world.see(deployment)
    labels = {"app.kubernetes.io/instance": "chat", "kueue.x-k8s.io/managed": "true"}
    gated = [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]
    world.see(build_manifest("Pod", 3, "chat-1", metadata={"labels": labels}, spec={}, status={"conditions": gated}))

    world.builder.note_queue(CHAT, "no quota")
    waits = world.builder.build().workloads[CHAT]
    before = world.builder.build()
    world.builder.note_queue(CHAT, "no quota")

    assert waits.queue_words == "no quota"
    assert world.builder.build() is before
    world.builder.note_queue(CHAT, "")
    assert world.builder.build().workloads[CHAT].queue_words == ""
