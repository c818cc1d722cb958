"""The launch spec survives version skew and refuses what it cannot obey."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_contract.launch_spec import (
    CACHE_BITS,
    CacheReuse,
    Device,
    LaunchSpec,
    LaunchSpecError,
    Precision,
    SparseActivation,
)

MINIMAL = {"version": 1, "model_uri": "file:///models/chat", "served_name": "chat"}

specs = st.builds(
    LaunchSpec,
    model_uri=st.text(min_size=1),
    served_name=st.text(min_size=1),
    namespace=st.text(),
    tenant=st.text(),
    device=st.sampled_from(Device),
    precision=st.sampled_from(Precision),
    recipe=st.text(),
    sparse_activation=st.sampled_from(SparseActivation),
    gate=st.text(),
    cache_bytes=st.integers(0, 1 << 50),
    cache_bits=st.sampled_from(CACHE_BITS),
    cache_reuse=st.sampled_from(CacheReuse),
    max_sequence_tokens=st.integers(0, 1 << 20),
    drain_timeout_s=st.floats(0, 3600, allow_nan=False),
)


@given(specs)
def test_a_spec_reads_back_as_it_was_written(spec: LaunchSpec) -> None:
    assert LaunchSpec.from_json(spec.to_json()) == spec


@given(specs)
def test_equal_specs_have_equal_bytes(spec: LaunchSpec) -> None:
    assert LaunchSpec.from_json(spec.to_json()).to_json() == spec.to_json()


@pytest.mark.parametrize("field", ["recipe", "gate", "sparse_activation"])
def test_a_spec_that_does_without_a_later_field_is_written_as_before_it_existed(field: str) -> None:
    assert field not in LaunchSpec(model_uri="file:///models/chat", served_name="chat").to_json()


def test_a_newer_writer_may_add_keys() -> None:
    spec = LaunchSpec.from_json(json.dumps({**MINIMAL, "hologram_depth": 3}))

    assert spec.served_name == "chat"


def test_an_older_writer_may_leave_keys_out() -> None:
    assert LaunchSpec.from_json(json.dumps(MINIMAL)) == LaunchSpec(model_uri="file:///models/chat", served_name="chat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"version": 2}, "version: expected 1, found 2", id="unknown version"),
        pytest.param({"model_uri": None}, "model_uri: expected str, found None", id="null"),
        pytest.param({"port": "8000"}, "port: expected int, found '8000'", id="number in quotes"),
        pytest.param({"port": True}, "port: expected int, found True", id="bool is no number"),
        pytest.param({"device": "tpu"}, "device: expected one of cpu, cuda, found 'tpu'", id="unknown device"),
        pytest.param({"device": ["cpu"]}, "device: expected one of cpu, cuda, found ['cpu']", id="list for an enum"),
        pytest.param({"cache_bytes": -1}, "cache_bytes: expected 0 or more, found -1", id="negative size"),
        pytest.param({"cache_bits": 5}, "cache_bits: expected 0, 4 or 8, found 5", id="bits without a format"),
        pytest.param({"drain_timeout_s": float("nan")}, "drain_timeout_s: expected 0 or more, found nan", id="NaN"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(change: dict[str, object], message: str) -> None:
    with pytest.raises(LaunchSpecError) as caught:
        LaunchSpec.from_json(json.dumps({**MINIMAL, **change}))

    assert str(caught.value) == f"launch spec: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "expected JSON", id="truncated"),
        pytest.param("[]", "expected an object, found list", id="list"),
        pytest.param('{"version": 1, "served_name": "x"}', "model_uri: required", id="missing key"),
    ],
)
def test_text_that_is_no_launch_spec_is_refused(text: str, message: str) -> None:
    with pytest.raises(LaunchSpecError, match=message):
        LaunchSpec.from_json(text)
