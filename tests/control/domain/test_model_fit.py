"""Whether a model fits a class: the sum, the words that show it, and what would make it fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_service, build_snapshot
from windlass_contract.launch_spec import CacheReuse, Precision
from windlass_operator.domain.class_words import refuse_ranking
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.gpu_class import rank_classes
from windlass_operator.domain.model_fit import judge_fit, longest_fitting_sequence
from windlass_operator.domain.plan import Action, plan_service
from windlass_operator.domain.snapshot import Workload
from windlass_operator.domain.supply import Supply

SHAPE = {
    "layers": 32,
    "hiddenSize": 4096,
    "feedForwardSize": 14336,
    "queryHeads": 32,
    "keyValueHeads": 8,
    "headSize": 128,
    "vocabularySize": 128256,
    "maxPositions": 131072,
}
"""Of a model with 8.03 billion parameters: 14.96 GiB in 16 bits, 29.92 GiB in 32."""
SLICE = build_gpu_class("slice", memory="18Gi", migProfile="1g.18gb")
L4 = build_gpu_class("l4", memory="24Gi", capability="8.9")
T4 = build_gpu_class("t4", memory="16Gi", capability="7.5")
H200 = build_gpu_class("h200")


def build(shape=SHAPE, classes=("l4",), tokens=8192, **spec):
    model = {"uri": "hf://org/chat@v1"} | ({"shape": shape} if shape else {})
    return build_service(
        model=model,
        accelerator={"classes": list(classes), "sharing": "MIG"},
        limits={"maxSequenceTokens": tokens},
        **spec,
    )


def plan(service, *gpu_classes):
    nodes = [
        build_node(item.metadata.name, gpu=item.metadata.name, resource=item.spec.resource) for item in gpu_classes
    ]
    return plan_service(service, build_snapshot(service, *gpu_classes, nodes=nodes), FleetSettings())


def ways_out(service, *gpu_classes) -> str:
    """What the refusal says before the planner looks for the smallest change of all."""
    snapshot = build_snapshot(service, *gpu_classes)
    return refuse_ranking(rank_classes(service.spec, snapshot.gpu_classes, Supply(snapshot), Workload())).next_step


@pytest.mark.parametrize(
    ("gpu_class", "precision", "tokens", "fits"),
    [
        pytest.param(L4, "BF16", 8192, True, id="24 GiB hold 16 bits and 8k tokens"),
        pytest.param(L4, "BF16", 131072, False, id="but not 128k tokens"),
        pytest.param(L4, "FP32", 8192, False, id="nor 32 bits"),
        pytest.param(SLICE, "BF16", 8192, True, id="18 GiB hold 16 bits and 8k tokens"),
        pytest.param(SLICE, "BF16", 32768, False, id="but not 32k tokens"),
        pytest.param(H200, "FP32", 131072, True, id="141 GiB hold 32 bits and 128k tokens"),
    ],
)
def test_weights_cache_and_workspace_must_be_there_at_once(gpu_class, precision, tokens, fits):
    fit = judge_fit(build(tokens=tokens).spec, Precision(precision), gpu_class.spec)

    assert fit is not None
    assert fit.fits is fits
    assert fit.need.total == fit.need.weights + fit.need.cache + fit.need.workspace


def test_a_model_that_does_not_fit_is_refused_with_the_sum_and_a_way_out():
    service = build(tokens=32768, classes=["slice"])
    planned = plan(service, SLICE, L4, H200)

    assert planned.action is Action.REMOVE
    assert planned.refusal.reason == "ModelDoesNotFit"
    assert (
        "weights 14.96 GiB (BF16) + key/value cache 5.00 GiB (one sequence of 32768 tokens" in planned.refusal.message
    )
    assert planned.refusal.message.endswith("GiB, of 18Gi")
    assert ways_out(service, SLICE, L4, H200) == (
        "Set spec.precision.preset to INT8 or lower spec.limits.maxSequenceTokens to 18816 or use class l4 (24Gi)"
    )


def test_the_next_class_is_taken_where_the_model_does_not_fit_the_preferred_one():
    planned = plan(build(tokens=32768, classes=["slice", "l4"]), SLICE, L4)

    assert planned.gpu_class.name == "l4"
    assert "not slice: weights" in next(item.reason for item in planned.decisions if item.topic == "accelerator")


def test_needs_choose_the_cheapest_class_that_holds_the_model():
    cheap = build_gpu_class("cheap", memory="16Gi", pricePerHour="0.2")
    dear = build_gpu_class("dear", memory="48Gi", pricePerHour="0.9")
    service = build_service(
        model={"uri": "hf://org/chat@v1", "shape": SHAPE},
        accelerator={"requirements": {}},
        limits={"maxSequenceTokens": 8192},
    )

    assert plan(service, cheap, dear).gpu_class.name == "dear"


def test_a_smaller_precision_is_suggested_where_it_fits():
    assert ways_out(build(precision={"preset": "FP32"}), L4).startswith("Set spec.precision.preset to BF16")


def test_a_device_without_bf16_is_not_told_to_use_it():
    small = {**SHAPE, "layers": 16}
    service = build(shape=small, classes=["t4"], precision={"preset": "FP32"})

    assert ways_out(service, T4).startswith("Set spec.precision.preset to FP16")


def test_without_a_shape_nothing_is_refused():
    planned = plan(build(shape=None), L4)

    assert planned.refusal is None
    assert [item for item in planned.decisions if item.topic == "model fit"] == []


def test_a_model_that_fits_is_told_with_its_sum():
    (decision,) = (item for item in plan(build(), L4).decisions if item.topic == "model fit")

    assert decision.choice == "16.37 GiB of 24.00 GiB"
    assert decision.reason.startswith("weights 14.96 GiB (BF16) + ")


def test_a_time_slice_offers_its_share_of_the_memory():
    shared = build_gpu_class("shared", memory="24Gi", sharing={"timeSlicedReplicas": 2})
    fit = judge_fit(build().spec, Precision.BF16, shared.spec)

    assert fit is not None
    assert not fit.fits
    assert fit.arithmetic.endswith("of 24Gi shared by 2")


@settings(deadline=None)
@given(st.integers(1, 8).map(lambda power: 2**power), st.sampled_from(["FP32", "BF16", "FP16"]))
def test_the_sequence_length_that_is_suggested_fits_and_a_page_more_does_not(gib, precision):
    gpu = build_gpu_class("any", memory=f"{gib}Gi").spec
    wanted = Precision(precision)

    tokens = longest_fitting_sequence(build(tokens=131072).spec, wanted, gpu)

    if 64 <= tokens < 131072 - 64:
        fit, beyond = (judge_fit(build(tokens=count).spec, wanted, gpu) for count in (tokens, tokens + 64))
        assert fit is not None
        assert beyond is not None
        assert fit.fits
        assert not beyond.fits


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({"cache": {"memory": "1Gi"}}, 2**30, id="stated"),
        pytest.param({}, int((48 * 2**30 - 16_060_522_496 - 179_634_176) * 0.8), id="from the shape"),
    ],
)
def test_on_a_time_sliced_class_the_cache_stays_within_the_share(spec, expected):
    shared = build_gpu_class("shared", memory="96Gi", sharing={"timeSlicedReplicas": 2})
    accelerator = {"classes": ["shared"], "sharing": "TimeSliced"}
    service = build_service(model={"uri": "hf://org/chat@v1", "shape": SHAPE}, accelerator=accelerator, **spec)

    assert plan(service, shared).launch.cache_bytes == expected


def test_an_unbounded_cache_is_refused_on_a_time_sliced_class():
    shared = build_gpu_class("shared", sharing={"timeSlicedReplicas": 2})
    refusal = plan(build_service(accelerator={"classes": ["shared"], "sharing": "TimeSliced"}), shared).refusal

    assert refusal.reason == "CacheUnbounded"
    assert refusal.next_step.startswith("Set spec.cache.memory or spec.model.shape")


def test_on_whole_devices_the_replica_sizes_its_cache_itself():
    assert plan(build(), L4).launch.cache_bytes == 0


def test_a_cache_of_4_bits_lets_longer_sequences_fit_and_says_so():
    floats, quantized = (build(tokens=65536, cache=cache) for cache in ({}, {"bits": 4, "reuse": "Prefix"}))

    refused, planned = plan(floats, L4), plan(quantized, L4)

    assert refused.refusal is not None
    assert planned.refusal is None
    assert (planned.launch.cache_bits, planned.launch.cache_reuse) == (4, CacheReuse.PREFIX)
    assert any("in 4 bits, unfinished pages in floats" in decision.reason for decision in planned.decisions)


def test_a_cache_left_alone_starts_replicas_as_before():
    assert '"cache_' not in plan(build(), L4).launch.to_json().replace('"cache_bytes"', "")
