"""Number formats follow the device where the user leaves them open."""

from __future__ import annotations

import pytest

from support.builders import build_gpu_class
from windlass_contract.launch_spec import Precision
from windlass_operator.api.v1alpha1.inference_service import PrecisionPreset
from windlass_operator.domain.precision import choose_precision


@pytest.mark.parametrize(
    ("preset", "capability", "expected"),
    [
        pytest.param(PrecisionPreset.AUTO, "9.0", Precision.BF16, id="Hopper"),
        pytest.param(PrecisionPreset.AUTO, "8.0", Precision.BF16, id="first with BF16"),
        pytest.param(PrecisionPreset.AUTO, "7.5", Precision.FP16, id="last without BF16"),
        pytest.param(PrecisionPreset.AUTO, "12.0", Precision.BF16, id="two digits are a number, not text"),
        pytest.param(PrecisionPreset.AUTO, None, Precision.AUTO, id="CPU: the runtime looks at the checkpoint"),
        pytest.param(PrecisionPreset.FP32, "9.0", Precision.FP32, id="the user's word"),
        pytest.param(PrecisionPreset.INT8, None, Precision.INT8, id="integers on a CPU"),
        pytest.param(PrecisionPreset.INT4, "8.0", Precision.INT4, id="integers on a GPU"),
    ],
)
def test_precision_follows_preset_then_device(preset, capability, expected):
    gpu = None if capability is None else build_gpu_class(capability=capability).spec

    assert choose_precision(preset, gpu)[0] is expected
