"""Which class a service runs on: the user's order, bent only for classes without nodes and for what already runs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_workload
from windlass_operator.domain.class_words import refuse_ranking
from windlass_operator.domain.gpu_class import Ranking, rank_classes
from windlass_operator.domain.snapshot import Snapshot, Workload
from windlass_operator.domain.supply import Supply

H200, A100, T4 = (
    build_gpu_class("h200"),
    build_gpu_class("a100", memory="80Gi", capability="8.0"),
    build_gpu_class("t4", memory="16Gi", capability="7.5"),
)


def rank(snapshot: Snapshot, classes: list[str], workload: Workload | None = None, **spec: object) -> Ranking:
    service = build_service(classes=classes, **spec)
    return rank_classes(service.spec, snapshot.gpu_classes, Supply(snapshot), workload or Workload())


def names(ranking: Ranking) -> list[str]:
    return [candidate.name for candidate in ranking.candidates]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        pytest.param(
            [build_node(gpu="h200"), build_node("n2", gpu="a100")],
            ["h200", "a100"],
            id="both have nodes: the user's order",
        ),
        pytest.param([build_node(gpu="a100")], ["a100", "h200"], id="a class without nodes comes last"),
        pytest.param(
            [build_node(gpu="h200", ready=False), build_node("n2", gpu="a100")],
            ["a100", "h200"],
            id="its node is not ready",
        ),
        pytest.param(
            [build_node(gpu="h200", schedulable=False), build_node("n2", gpu="a100")],
            ["a100", "h200"],
            id="its node is cordoned",
        ),
        pytest.param(
            [build_node(gpu="h200", devices=0), build_node("n2", gpu="a100")],
            ["a100", "h200"],
            id="its node offers no device",
        ),
        pytest.param([], ["h200", "a100"], id="no nodes at all: the user's order, pods wait"),
        pytest.param(None, ["h200", "a100"], id="nodes unknown: the user's order"),
    ],
)
def test_classes_with_usable_nodes_come_first(nodes, expected):
    assert names(rank(build_snapshot(H200, A100, nodes=nodes), ["h200", "a100"])) == expected


@pytest.mark.parametrize(
    ("nodes", "workload", "first"),
    [
        pytest.param(
            [build_node(gpu="h200"), build_node("n2", gpu="a100")],
            build_workload(1, gpu_class="a100"),
            "a100",
            id="it runs on the second choice",
        ),
        pytest.param(
            [build_node(gpu="h200"), build_node("n2", gpu="a100")],
            build_workload(0, gpu_class="a100", replicas=1, devices=1),
            "a100",
            id="it only starts there",
        ),
        pytest.param(
            [build_node(gpu="h200")],
            build_workload(1, gpu_class="a100"),
            "a100",
            id="its nodes are cordoned, its replicas serve",
        ),
        pytest.param(
            [build_node(gpu="h200")],
            build_workload(0, gpu_class="a100", replicas=1),
            "h200",
            id="its nodes and replicas are gone",
        ),
        pytest.param(
            [build_node(gpu="h200"), build_node("n2", gpu="a100")],
            build_workload(1, gpu_class="l4"),
            "h200",
            id="its class is no longer listed",
        ),
    ],
)
def test_a_service_stays_where_it_runs_while_that_works(nodes, workload, first):
    assert names(rank(build_snapshot(H200, A100, nodes=nodes), ["h200", "a100"], workload))[0] == first


@pytest.mark.parametrize(
    ("spec", "skipped", "cause"),
    [
        pytest.param({}, "b200", "UnknownGPUClass", id="no such class"),
        pytest.param({"cache": {"memory": "80Gi"}}, "a100", "CacheTooLarge", id="the cache takes all its memory"),
        pytest.param(
            {"precision": {"preset": "BF16"}}, "t4", "PrecisionUnsupported", id="no BF16 before compute capability 8.0"
        ),
    ],
)
def test_an_unusable_class_is_skipped_with_its_cause_and_the_next_is_taken(spec, skipped, cause):
    ranking = rank(build_snapshot(H200, A100, T4), [skipped, "h200"], **spec)

    assert names(ranking) == ["h200"]
    assert [(item.name, item.cause) for item in ranking.skipped] == [(skipped, cause)]


def test_no_usable_class_is_refused_with_every_reason():
    refusal = refuse_ranking(rank(build_snapshot(A100), ["b200", "a100"], cache={"memory": "90Gi"}))

    assert refusal.reason == "NoUsableGPUClass"
    assert refusal.message.endswith(
        "b200: there is no GPUClass b200; a100: spec.cache.memory 90Gi leaves nothing of its 80Gi for the model"
    )


def test_unknown_classes_alone_have_a_reason_of_their_own():
    assert refuse_ranking(rank(build_snapshot(A100), ["b200"])).reason == "UnknownGPUClass"


def test_free_devices_are_what_no_replica_holds_or_waits_for():
    snapshot = build_snapshot(
        H200,
        A100,
        nodes=[build_node(), build_node("n2", schedulable=False), build_node("n3", gpu="a100")],
        workloads={"t/a": build_workload(3, gpu_class="h200"), "t/b": build_workload(2, gpu_class="a100")},
    )
    supply = Supply(snapshot)

    assert (supply.nodes("h200"), supply.devices("h200"), supply.held("h200"), supply.free("h200")) == (1, 8, 3, 5)


def test_classes_that_share_nodes_share_their_devices():
    overlapping = build_gpu_class("any-h200", nodeSelector={"nvidia.com/gpu.product": "h200"})
    snapshot = build_snapshot(
        H200, overlapping, nodes=[build_node()], workloads={"t/a": build_workload(3, gpu_class="any-h200")}
    )

    assert Supply(snapshot).free("h200") == 5


@given(
    st.lists(st.tuples(st.sampled_from(["h200", "a100", "t4"]), st.booleans(), st.booleans()), max_size=6),
    st.permutations(["h200", "a100", "t4"]),
    st.integers(),
)
def test_the_choice_depends_on_the_world_and_not_on_the_order_it_is_listed_in(machines, classes, seed):
    nodes = [
        build_node(f"n{i}", gpu=gpu, ready=ready, schedulable=open_) for i, (gpu, ready, open_) in enumerate(machines)
    ]
    shuffled = random.Random(seed).sample(nodes, len(nodes))

    ranking = rank(build_snapshot(H200, A100, T4, nodes=nodes), list(classes))

    assert ranking == rank(build_snapshot(T4, A100, H200, nodes=shuffled), list(classes))
    usable = {node.labels["nvidia.com/gpu.product"] for node in nodes if node.ready and node.schedulable}
    assert names(ranking) == sorted(classes, key=lambda name: (name not in usable, list(classes).index(name)))
