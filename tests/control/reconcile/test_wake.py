from __future__ import annotations

import dataclasses

import pytest

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import Allocation, InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.published import Published
from windlass_operator.domain.snapshot import Key, Node, Snapshot, Workload
from windlass_operator.reconcile.wake import claim_on_others, keys_to_wake


def service_key(name, namespace="a"):
    return Key("InferenceService", namespace, name)


def build_service(name, namespace="a", classes=(), generation=1):
    spec = {"model": {"uri": "file:///m"}} | ({"accelerator": {"classes": list(classes)}} if classes else {})
    return InferenceService.model_validate(
        {"metadata": {"name": name, "namespace": namespace, "generation": generation}, "spec": spec}
    )


def build_tenant(name, *namespaces, quota=(), generation=1, cohort=""):
    gpus = [{"name": one, "nominal": 1} for one in quota]
    spec = {"namespaces": list(namespaces), "quota": {"gpus": gpus}, "cohort": cohort}
    return Tenant.model_validate({"metadata": {"name": name, "generation": generation}, "spec": spec})


def build_gpu_class(name, generation=1):
    spec = {"nodeSelector": {"gpu": name}, "memory": "80Gi", "computeCapability": "9.0"}
    return GPUClass.model_validate({"metadata": {"name": name, "generation": generation}, "spec": spec})


FLEET = Snapshot(
    services={
        service_key("chat"): build_service("chat", classes=["h200"]),
        service_key("code"): build_service("code", classes=["h200", "a100"]),
        service_key("small"): build_service("small"),
        service_key("far", "b"): build_service("far", "b", classes=["a100"]),
    },
    tenants={"one": build_tenant("one", "a", quota=["h200"]), "two": build_tenant("two", "b")},
    gpu_classes={name: build_gpu_class(name) for name in ("h200", "a100")},
    nodes={"n": Node("n", {"gpu": "h200"}, {"nvidia.com/gpu": 8})},
    workloads={service_key("chat"): Workload(wanted=1, gpu_class="h200", devices=1)},
)
TENANT_ONE, TENANT_TWO = Key("Tenant", "", "one"), Key("Tenant", "", "two")
H200, A100 = Key("GPUClass", "", "h200"), Key("GPUClass", "", "a100")
CHAT, CODE, SMALL, FAR = service_key("chat"), service_key("code"), service_key("small"), service_key("far", "b")


def with_service(service):
    key = service_key(service.metadata.name, service.metadata.namespace)
    return dataclasses.replace(FLEET, services={**FLEET.services, key: service})


def without_service(key):
    return dataclasses.replace(FLEET, services={one: service for one, service in FLEET.services.items() if one != key})


def test_a_rollout_that_waits_for_a_device_is_woken_when_a_service_of_another_tenant_frees_one():
    rollout = {"revision": "b", "state": "Waiting"}
    far = build_service("far", "b", classes=["a100"])
    waiting = far.model_copy(update={"status": type(far.status).model_validate({"rollout": rollout})})
    before = with_service(waiting)

    woken = keys_to_wake(CHAT, before, dataclasses.replace(before, workloads={}))

    assert FAR in woken


@pytest.mark.parametrize(
    ("key", "after", "expected"),
    [
        pytest.param(CHAT, FLEET, {CHAT}, id="a pod became ready: only its service"),
        pytest.param(
            CHAT,
            with_service(build_service("chat", classes=["h200"], generation=2)),
            {CHAT, CODE, TENANT_ONE, H200},
            id="a new spec: its tenant, its class and its neighbours on GPUs",
        ),
        pytest.param(
            SMALL,
            with_service(build_service("small", generation=2)),
            {SMALL, TENANT_ONE},
            id="a new spec without GPU: no neighbours",
        ),
        pytest.param(CHAT, without_service(CHAT), {CHAT, CODE, TENANT_ONE, H200}, id="a service that goes frees quota"),
        pytest.param(
            CHAT,
            dataclasses.replace(FLEET, workloads={CHAT: Workload(wanted=2, gpu_class="h200", devices=2)}),
            {CHAT, CODE, TENANT_ONE, H200},
            id="more devices held: quota moved",
        ),
        pytest.param(
            TENANT_ONE,
            dataclasses.replace(FLEET, tenants={**FLEET.tenants, "one": build_tenant("one", "a", "b", generation=2)}),
            {TENANT_ONE, TENANT_TWO, CHAT, CODE, SMALL, FAR},
            id="a tenant that claims another namespace",
        ),
        pytest.param(
            TENANT_ONE,
            dataclasses.replace(FLEET, tenants={"two": FLEET.tenants["two"]}),
            {TENANT_ONE, CHAT, CODE, SMALL},
            id="a tenant that goes",
        ),
        pytest.param(
            H200,
            dataclasses.replace(FLEET, gpu_classes={"h200": build_gpu_class("h200", 2)}),
            {H200, CHAT, CODE, TENANT_ONE},
            id="a class that changes",
        ),
        pytest.param(
            Key("Node", "", "n"),
            dataclasses.replace(FLEET, nodes={}),
            {H200, CHAT, CODE, TENANT_ONE},
            id="a node that goes",
        ),
        pytest.param(
            Key("Node", "", "m"),
            dataclasses.replace(FLEET, nodes={"m": Node("m", {"gpu": "a100"}, {})}),
            {A100, CODE, FAR},
            id="a node that comes",
        ),
        pytest.param(
            Key("Node", "", "n"),
            dataclasses.replace(FLEET, nodes={"n": Node("n", {"gpu": "a100"}, {})}),
            {H200, A100, CHAT, CODE, FAR, TENANT_ONE},
            id="a node that changes its class",
        ),
        pytest.param(Key("Node", "", "cpu"), FLEET, set(), id="a node without GPU"),
    ],
)
def test_a_change_wakes_whose_plan_it_can_change(key, after, expected):
    assert keys_to_wake(key, FLEET, after) == expected


SHARING = dataclasses.replace(
    FLEET,
    tenants={
        "one": build_tenant("one", "a", quota=["h200"], cohort="research"),
        "two": build_tenant("two", "b", quota=["h200"], cohort="research"),
        "three": build_tenant("three", "c"),
    },
)


def test_a_change_of_a_gpu_service_wakes_everybody_who_shares_its_gpus():
    after = dataclasses.replace(SHARING, services={**SHARING.services, CHAT: build_service("chat", generation=2)})

    woken = keys_to_wake(CHAT, SHARING, after)

    assert {CHAT, CODE, FAR, TENANT_ONE, TENANT_TWO} <= woken
    assert not {SMALL, Key("Tenant", "", "three")} & woken


def test_devices_that_were_freed_wake_the_tenants_that_wait_for_them():
    after = dataclasses.replace(SHARING, workloads={CHAT: Workload(wanted=0, gpu_class="h200", devices=0)})

    assert FAR in keys_to_wake(CHAT, SHARING, after)


def test_a_change_that_the_last_picture_held_already_is_told_once():
    """Our own write is in the picture before its event comes, and another key's event may come between."""
    told = claim_on_others(CHAT, SHARING)
    after = dataclasses.replace(SHARING, workloads={CHAT: Workload(wanted=2, gpu_class="h200", devices=2)})

    assert FAR in keys_to_wake(CHAT, after, after, told)
    assert keys_to_wake(CHAT, after, after, claim_on_others(CHAT, after)) == {CHAT}


def test_terms_of_one_tenant_wake_its_whole_cohort():
    changed = build_tenant("one", "a", quota=["h200"], cohort="research", generation=2)
    after = dataclasses.replace(SHARING, tenants={**SHARING.tenants, "one": changed})

    assert {CHAT, CODE, SMALL, FAR, TENANT_TWO} <= keys_to_wake(TENANT_ONE, SHARING, after)


def test_a_tenant_that_leaves_a_cohort_wakes_those_it_leaves():
    alone = dataclasses.replace(
        SHARING, tenants={**SHARING.tenants, "one": build_tenant("one", "a", quota=["h200"], generation=2)}
    )

    assert {FAR, TENANT_TWO} <= keys_to_wake(TENANT_ONE, SHARING, alone)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"devices_by_node": (("n", 1),)}, {CHAT, H200}, id="its pod got a node"),
        pytest.param({"claimed": (("a100", 1),)}, {CHAT, H200, A100}, id="its claim was given another class"),
        pytest.param({"ready": 1}, {CHAT}, id="its pod became ready"),
    ],
)
def test_where_devices_lie_concerns_their_classes_alone(change, expected):
    workload = dataclasses.replace(FLEET.workloads[CHAT], **change)

    assert keys_to_wake(CHAT, FLEET, dataclasses.replace(FLEET, workloads={CHAT: workload})) == expected


def test_a_class_that_comes_concerns_services_that_choose_by_need():
    spec = {"model": {"uri": "file:///m"}, "accelerator": {"requirements": {"memory": "40Gi"}}}
    needy = InferenceService.model_validate({"metadata": {"name": "needy", "namespace": "a"}, "spec": spec})
    after = with_service(needy)
    before = dataclasses.replace(after, gpu_classes={})

    assert service_key("needy") in keys_to_wake(H200, before, after)


@pytest.mark.parametrize("services", [FLEET.services, without_service(CHAT).services], ids=["left the spec", "gone"])
def test_devices_that_a_former_canary_gives_back_wake_the_neighbours(services):
    canary = Key("InferenceService", "a", "chat/next")
    held = {**FLEET.workloads, canary: Workload(gpu_class="h200", devices=1)}
    before = dataclasses.replace(FLEET, services=services, workloads=held, canaries={CHAT: frozenset({canary})})
    after = dataclasses.replace(FLEET, services=services)

    assert {CODE, TENANT_ONE, H200} <= keys_to_wake(CHAT, before, after)


def test_published_devices_wake_what_can_claim_them():
    plain = build_gpu_class("h200")
    claimable = plain.model_copy(update={"spec": plain.spec.model_copy(update={"device_class_name": "gpu"})})
    classes = {**FLEET.gpu_classes, "h200": claimable}
    far = build_service("far", "b", classes=["a100"])
    accelerator = far.spec.accelerator.model_copy(update={"allocation": Allocation.RESOURCE_CLAIM})
    claims = far.model_copy(update={"spec": far.spec.model_copy(update={"accelerator": accelerator})})
    before = dataclasses.replace(with_service(claims), gpu_classes=classes, published=Published({}, {}, {}))
    after = dataclasses.replace(before, published=Published({}, {"gpu": ()}, {}))

    for kind in ("ResourceSlice", "DeviceClass", "ResourceClaim"):
        assert keys_to_wake(Key(kind, "", "x"), before, after) == {H200, FAR}
        assert keys_to_wake(Key(kind, "", "x"), before, before) == set()


def test_a_claim_that_gives_its_device_back_wakes_rollouts_that_wait_for_one():
    waiting = build_service("code", classes=["h200"])
    rollout = {"revision": "b", "state": "Blocked", "started": "x", "progress": "0/1"}
    waiting = InferenceService.model_validate({**waiting.model_dump(by_alias=True), "status": {"rollout": rollout}})
    held = Workload(wanted=0, gpu_class="h200", claimed=(("h200", 1),))
    fleet = dataclasses.replace(with_service(waiting), workloads={CHAT: held})
    freed = dataclasses.replace(fleet, workloads={CHAT: dataclasses.replace(held, claimed=())})

    assert CODE in keys_to_wake(CHAT, fleet, freed)
