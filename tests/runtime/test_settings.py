import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from windlass_contract.launch_spec import Device, LaunchSpec, Precision, SparseActivation
from windlass_runtime import InferenceConfig


def test_choices_become_a_launch_spec_in_the_contracts_words() -> None:
    config = InferenceConfig(device="cpu", precision="bf16", cache_bytes=10, max_sequence_tokens=20, step_tokens=30)

    spec = config.to_launch_spec("/models/x")

    assert spec == LaunchSpec(
        model_uri="/models/x",
        served_name="/models/x",
        device=Device.CPU,
        precision=Precision.BF16,
        cache_bytes=10,
        max_sequence_tokens=20,
        max_running_requests=8,
        step_tokens=30,
    )


@pytest.mark.parametrize(
    ("field", "value", "finding"),
    [
        pytest.param("device", "tpu", "expected one of cpu, cuda, found 'tpu'", id="device"),
        pytest.param(
            "precision", "int3", "expected one of Auto, FP32, BF16, FP16, INT8, INT4, found 'int3'", id="precision"
        ),
        pytest.param("cache_bytes", -1, "at least 0, found -1", id="negative"),
        pytest.param("step_tokens", 0, "at least 1, found 0", id="no budget"),
        pytest.param("max_running_requests", 1.5, "whole number", id="fraction"),
        pytest.param("sparse_activation", "most", "expected one of Off, Balanced, Max, found 'most'", id="sparsity"),
        pytest.param("kv_cache_quantization", 5, "expected 4, 8 or 16, found 5", id="bits without a format"),
        pytest.param("enable_cache_reuse", 1, "expected True or False, found 1", id="reuse"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_by_name(field: str, value: Any, finding: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: .*{finding}"):
        InferenceConfig(**{field: value})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        pytest.param(False, SparseActivation.OFF, id="off"),
        pytest.param(True, SparseActivation.BALANCED, id="on is balanced"),
        pytest.param("max", SparseActivation.MAX, id="a mode in any case"),
    ],
)
def test_sparse_activation_is_a_switch_or_a_mode(given: bool | str, meant: SparseActivation) -> None:
    spec = InferenceConfig(sparse_activation=given, gate="/gates/x").to_launch_spec("/models/x")

    assert spec.sparse_activation is meant
    assert spec.gate == "/gates/x"


def test_an_unknown_option_is_an_error_and_known_ones_cannot_be_changed_later() -> None:
    with pytest.raises(TypeError, match="turbo"):
        InferenceConfig(turbo=True)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        InferenceConfig().device = "cuda"  # type: ignore[misc]


@pytest.mark.parametrize("module", ["windlass_runtime", "windlass_runtime.main"])
def test_importing_the_package_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([n for n in ('torch', 'numpy', 'aiohttp', 'tokenizers') if n in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
