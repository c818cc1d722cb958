"""A batch's workers as a service of their own, so that they are admitted, placed and counted as any service's replicas.

Quota, classes, tiers, takings and suggestions then need no second set of rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from windlass_operator.api.v1alpha1.batch_inference import OVER, BatchInference
from windlass_operator.api.v1alpha1.inference_service import InferenceService, InferenceServiceSpec, Precision, Rollout
from windlass_operator.domain.snapshot import BatchRun, Key
from windlass_operator.domain.suggestion import Change, Remedy, Suggestion

BATCH_KIND: Final = "BatchInference"
_SHARED: Final = ("model", "accelerator", "cache", "limits", "tier", "pod_template", "suspend")


class BatchWorkers(InferenceService):
    """What `derive_workers` returns. The type tells it from services of the same name."""


def batch_key(batch: BatchInference) -> Key:
    """Identity of a batch; one read from a file without a namespace lives in `default`."""
    return Key(BATCH_KIND, batch.metadata.namespace or "default", batch.metadata.name)


def is_over(batch: BatchInference, run: BatchRun | None) -> bool:
    """Whether nothing of a batch runs any more, for good. The status remembers it once the Job is gone."""
    return batch.status.phase in OVER or (run is not None and run.outcome != "")


def derive_workers(batch: BatchInference, run: BatchRun | None) -> BatchWorkers:
    """The same model on as many replicas as have shards left. Nobody is promised one: a checkpoint keeps their work."""
    spec, ended = batch.spec, run.succeeded + run.failed if run is not None else 0
    left = 0 if is_over(batch, run) else max(0, spec.shards - ended)
    fields: dict[str, Any] = {name: getattr(spec, name) for name in _SHARED}
    derived = InferenceServiceSpec(
        **fields,
        precision=Precision(preset=spec.precision.preset),
        replicas=min(spec.parallelism, left),
        rollout=Rollout(min_available=0),
    )
    return BatchWorkers(metadata=batch.metadata, spec=derived)


def translate(suggestion: Suggestion) -> Suggestion:
    """Say in the fields of a batch what was proven for its workers."""
    if suggestion.remedy is not Remedy.LOWER_REPLICAS or suggestion.change is None:
        return suggestion
    workers = suggestion.change.patch["spec"]["replicas"]
    change = Change(suggestion.change.key, {"spec": {"parallelism": workers}})
    return replace(suggestion, order=f"lower spec.parallelism to {workers}", change=change)
