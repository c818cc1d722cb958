"""Decide the number format of a replica from the device it will run on."""

from __future__ import annotations

from windlass_contract.launch_spec import INTEGERS, Precision
from windlass_operator.api.v1alpha1.gpu_class import GPUClassSpec
from windlass_operator.api.v1alpha1.inference_service import PrecisionPreset
from windlass_operator.domain.decision import Decision, decide
from windlass_operator.domain.gpu_need import computes_bf16


def choose_precision(preset: PrecisionPreset, gpu: GPUClassSpec | None) -> tuple[Precision, Decision]:
    """Resolve Auto where the device decides; on a CPU the runtime looks at the checkpoint."""
    if preset is not PrecisionPreset.AUTO:
        chosen = Precision(preset.value)
        follows = "; weights follow the model's recipe" if chosen in INTEGERS else ""
        return chosen, decide("precision", chosen.value, f"spec.precision.preset{follows}")
    if gpu is None:
        return Precision.AUTO, decide(
            "precision", "Auto", "on a CPU the replica follows the checkpoint, and computes FP32 when in doubt"
        )
    chosen = Precision.BF16 if computes_bf16(gpu) else Precision.FP16
    relation = "has" if chosen is Precision.BF16 else "has no"
    return chosen, decide("precision", chosen.value, f"compute capability {gpu.compute_capability} {relation} BF16")
