"""What a service needs of a device: requirements, sharing and price, each compared as people mean it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_workload
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import Requirements
from windlass_operator.domain.class_words import refuse_ranking
from windlass_operator.domain.gpu_class import rank_classes
from windlass_operator.domain.gpu_need import cheapest_first, find_unmet_requirement, price_of, usable_bytes
from windlass_operator.domain.snapshot import Workload
from windlass_operator.domain.supply import Supply

GIB = 2**30
H200 = build_gpu_class("h200", pricePerHour="4.10", interconnect="NVSwitch")
A100 = build_gpu_class("a100", memory="80Gi", capability="8.0", pricePerHour="1.90", interconnect="NVLink")
B200 = build_gpu_class("b200", memory="180Gi", capability="10.0", pricePerHour="6")
SLICE = build_gpu_class("slice", memory="18Gi", migProfile="1g.18gb", pricePerHour="0.65")
SHARED = build_gpu_class("shared", memory="24Gi", capability="8.9", sharing={"timeSlicedReplicas": 4})
UNPRICED = build_gpu_class("lab", memory="80Gi", capability="9.0")
ALL = (H200, A100, B200, SLICE, SHARED, UNPRICED)


def choose(requirements: dict[str, str], *classes: GPUClass, workload: Workload | None = None, **accelerator: str):
    nodes = [
        build_node(f"n-{item.metadata.name}", gpu=item.metadata.name, resource=item.spec.resource) for item in classes
    ]
    snapshot = build_snapshot(*classes, nodes=nodes)
    service = build_service(accelerator={"requirements": requirements, **accelerator}, cache={"memory": "1Gi"})
    return rank_classes(service.spec, snapshot.gpu_classes, Supply(snapshot), workload or Workload())


def names(ranking) -> list[str]:
    return [candidate.name for candidate in ranking.candidates]


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        pytest.param({}, ["a100", "h200", "b200", "lab"], id="no needs: every whole GPU, the unpriced one last"),
        pytest.param({"memory": "100Gi"}, ["h200", "b200"], id="memory"),
        pytest.param({"memory": "80Gi"}, ["a100", "h200", "b200", "lab"], id="exactly its memory is enough"),
        pytest.param({"computeCapability": "9.0"}, ["h200", "b200", "lab"], id="10.0 comes after 9.0"),
        pytest.param(
            {"interconnect": "NVLink"}, ["a100", "h200"], id="a faster link will do, an unstated one will not"
        ),
        pytest.param({"memory": "100Gi", "interconnect": "NVSwitch"}, ["h200"], id="all of several needs"),
    ],
)
def test_a_service_that_states_needs_gets_the_cheapest_class_that_meets_them(requirements, expected):
    assert names(choose(requirements, *ALL)) == expected


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        pytest.param("Exclusive", "a100", id="Exclusive takes whole GPUs only"),
        pytest.param("MIG", "slice", id="MIG takes the cheaper slice too"),
        pytest.param("TimeSliced", "slice", id="TimeSliced accepts anything, the priced one first"),
    ],
)
def test_sharing_is_the_weakest_isolation_a_service_accepts(sharing, expected):
    assert names(choose({"memory": "5Gi"}, *ALL, sharing=sharing))[0] == expected


def test_a_time_slice_offers_its_share_of_the_memory():
    ranking = choose({"memory": "7Gi"}, SHARED, sharing="TimeSliced")

    assert usable_bytes(SHARED.spec) == 6 * GIB
    assert ranking.candidates == ()
    assert ranking.skipped[0].reason == "24Gi shared by 4 of memory, needs 7Gi"


def test_a_listed_slice_that_the_service_does_not_accept_is_skipped_with_the_field_to_set():
    snapshot = build_snapshot(SLICE)
    ranking = rank_classes(build_service(classes=["slice"]).spec, snapshot.gpu_classes, Supply(snapshot), Workload())
    refusal = refuse_ranking(ranking)

    assert refusal.reason == "SharingNotAccepted"
    assert "slice: it is a MIG slice, and spec.accelerator.sharing is Exclusive" in refusal.message
    assert refusal.next_step.startswith("Set spec.accelerator.sharing to MIG")


def test_needs_that_nothing_meets_are_refused_with_both_figures_of_every_class():
    refusal = refuse_ranking(choose({"memory": "200Gi"}, A100, B200))

    assert refusal.reason == "RequirementsNotMet"
    assert refusal.message == (
        "no class meets spec.accelerator.requirements: "
        "a100: 80Gi of memory, needs 200Gi; b200: 180Gi of memory, needs 200Gi"
    )


def test_needs_without_any_class_are_refused():
    assert refuse_ranking(choose({})).message.endswith("there is no GPUClass")


def test_a_cheaper_class_that_appears_later_restarts_nobody():
    running = build_workload(1, gpu_class="h200")

    assert names(choose({"memory": "60Gi"}, *ALL, workload=running))[0] == "h200"


@pytest.mark.parametrize(
    ("spec", "resource"),
    [
        pytest.param({}, "nvidia.com/gpu", id="a whole GPU"),
        pytest.param({"migProfile": "1g.18gb"}, "nvidia.com/mig-1g.18gb", id="a slice"),
        pytest.param({"migProfile": "1g.10gb+me"}, "nvidia.com/mig-1g.10gb.me", id="a slice with media engines"),
        pytest.param(
            {"migProfile": "1g.18gb", "resourceName": "nvidia.com/gpu"}, "nvidia.com/gpu", id="MIG strategy single"
        ),
        pytest.param({"resourceName": "amd.com/gpu"}, "amd.com/gpu", id="another vendor"),
    ],
)
def test_the_resource_follows_the_profile_unless_stated(spec, resource):
    assert build_gpu_class(**spec).spec.resource == resource


classes = st.lists(
    st.builds(
        lambda price, memory, capability, link: (price, memory, capability, link),
        st.none() | st.decimals(0, 99, places=2).map(str),
        st.sampled_from([10, 24, 40, 80]),
        st.sampled_from(["7.5", "8.0", "9.0", "10.0"]),
        st.none() | st.sampled_from(["PCIe", "NVLink", "NVSwitch"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(classes, st.sampled_from([5, 24, 60]), st.sampled_from(["8.0", "9.0"]))
def test_what_is_chosen_meets_every_need_and_nothing_cheaper_does(found, memory, capability):
    built = {}
    for index, (price, gib, cc, link) in enumerate(found):
        stated = {key: value for key, value in (("pricePerHour", price), ("interconnect", link)) if value is not None}
        built[f"c{index}"] = build_gpu_class(f"c{index}", memory=f"{gib}Gi", capability=cc, **stated)
    needs = {"memory": f"{memory}Gi", "computeCapability": capability}
    requirements = Requirements.model_validate(needs)

    ranking = choose(needs, *built.values())

    meeting = {name for name, item in built.items() if not find_unmet_requirement(requirements, item.spec)}
    assert set(names(ranking)) == meeting
    if meeting:
        best = price_of(ranking.candidates[0].spec)
        prices = [price_of(built[name].spec) for name in meeting]
        stated = [price for price in prices if price is not None]
        assert best == (min(stated) if stated else None)


@settings(deadline=None)
@given(st.permutations(ALL))
def test_the_order_by_price_does_not_depend_on_the_order_of_the_classes(shuffled):
    order = cheapest_first({item.metadata.name: item for item in shuffled})

    assert order == ("slice", "a100", "h200", "b200", "shared", "lab")
    assert price_of(A100.spec) == Fraction("1.90")
