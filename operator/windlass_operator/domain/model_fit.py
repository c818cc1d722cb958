"""Decide whether a model fits into the memory of a class, and show the arithmetic.

Weights, one step's temporaries, and the key/value pages of one longest sequence must be there at once: the same sum by
which a replica refuses to start (`windlass_contract.memory`). A replica with several devices splits its layers over
them, so each must hold its own part (`windlass_contract.layer_split`). Without `spec.model.shape` nothing is known
beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from windlass_contract import memory
from windlass_contract.launch_spec import Precision
from windlass_contract.layer_split import LayerSplit, split_layers
from windlass_operator.api.v1alpha1.gpu_class import GPUClass, GPUClassSpec
from windlass_operator.api.v1alpha1.inference_service import MOST_GPUS, InferenceServiceSpec
from windlass_operator.domain.decision import Decision, decide
from windlass_operator.domain.gpu_need import computes, describe_memory, find_uncountable, usable_bytes
from windlass_operator.domain.quantity import parse_bytes


@dataclass(frozen=True, slots=True)
class Fit:
    """A model in one precision against the memory of one replica."""

    need: memory.MemoryNeed
    """Over all devices of the replica."""
    available: int
    """Over all devices of the replica."""
    arithmetic: str
    fits: bool
    """Whether everything is there at once, on every device."""


def judge_fit(spec: InferenceServiceSpec, precision: Precision, gpu: GPUClassSpec) -> Fit | None:
    """Add up; None while the model's shape or the precision's sizes are unknown."""
    need = _need(spec, precision)
    if need is None:
        return None
    shape, count = shape_of(spec), _devices(spec)
    assert shape is not None
    split = _split(shape, precision, gpu, need, count)
    if split is None:
        words = f"{count} devices, and the model has {shape.layers} layers to split over them"
        return Fit(need, usable_bytes(gpu) * count, words, fits=False)
    parts = memory.weight_parts(shape, precision)
    need = replace(need, weights=sum(map(parts.on, split.stages)), workspace=need.workspace * count)
    words = (
        f"weights {_gib(need.weights)} ({precision.value}) + key/value cache {_gib(need.cache)} "
        f"({_describe_cache(spec)}) + workspace {_gib(need.workspace)} = {_gib(need.total)}, of "
    )
    if count == 1:
        fits = need.total <= usable_bytes(gpu)
        return Fit(need, usable_bytes(gpu), words + describe_memory(gpu), fits)
    share = max(
        parts.on(layers) + need.cache * len(layers) // shape.layers + need.workspace // count for layers in split.stages
    )
    words += f"{count} x {describe_memory(gpu)}, the fullest device {_gib(share)}"
    return Fit(need, usable_bytes(gpu) * count, words, split.pool_bytes >= need.cache)


def longest_fitting_sequence(spec: InferenceServiceSpec, precision: Precision, gpu: GPUClassSpec) -> int:
    """Tokens per sequence with which the model would fit; 0 when not even one page does."""
    shape = shape_of(spec)
    need = _need(spec, precision)
    if shape is None or need is None or spec.cache.memory is not None:
        return 0
    split = _split(shape, precision, gpu, need, _devices(spec))
    left = 0 if split is None else split.pool_bytes
    element, bits = memory.ELEMENT_BYTES[precision], stored_bits(spec)
    one_page = memory.page_bytes(shape.layers, shape.key_value_heads, shape.head_size, element, bits)
    tails = memory.tail_pages(shape.layers if bits else 0, spec.limits.max_running_requests)
    tail_bytes = tails * memory.page_bytes(1, shape.key_value_heads, shape.head_size, element)
    return max(0, (int(left * memory.CACHE_SHARE) - tail_bytes) // one_page) * memory.PAGE_TOKENS


def cache_within_share(spec: InferenceServiceSpec, precision: Precision, gpu: GPUClassSpec) -> int:
    """Bytes of cache that keep a replica within its share of a device that others use too; 0 where nothing bounds it.

    A replica that fits its cache to the free memory would take the memory of pods that start after it.
    """
    if spec.cache.memory is not None:
        return parse_bytes(spec.cache.memory)
    need = _need(spec, precision)
    if need is None:
        return 0
    return max(0, int((usable_bytes(gpu) - need.weights - need.workspace) * memory.CACHE_SHARE))


def stored_bits(spec: InferenceServiceSpec) -> int:
    """Bits per element of the cache in the words of the contract: 0 for the format of the arithmetic."""
    return 0 if spec.cache.bits == 16 else spec.cache.bits


def classes_that_fit(
    spec: InferenceServiceSpec, precision: Precision, gpu_classes: Mapping[str, GPUClass]
) -> tuple[str, ...]:
    """Names of classes with enough memory, the smallest first."""
    fitting = []
    for name, gpu_class in gpu_classes.items():
        fit = judge_fit(spec, precision, gpu_class.spec)
        if fit is not None and fit.fits:
            fitting.append((fit.available, name))
    return tuple(name for _, name in sorted(fitting))


def suggest(
    spec: InferenceServiceSpec,
    gpu: GPUClassSpec,
    precision: Precision,
    gpu_classes: Mapping[str, GPUClass],
) -> str:
    """Say what would make the model fit: another precision, a shorter sequence, another class. Empty: nothing known."""
    ways = []
    smaller = [other for other in memory.ELEMENT_BYTES if computes(gpu, other) and _fits(spec, other, gpu)]
    if smaller:
        ways.append(f"set spec.precision.preset to {smaller[0].value}")
    tokens = longest_fitting_sequence(spec, precision, gpu)
    if tokens >= memory.PAGE_TOKENS:
        ways.append(f"lower spec.limits.maxSequenceTokens to {tokens}")
    larger = classes_that_fit(spec, precision, gpu_classes)
    if larger:
        ways.append(f"use class {larger[0]} ({gpu_classes[larger[0]].spec.memory})")
    more = _smallest_count(spec, precision, gpu)
    if more:
        ways.append(f"set spec.accelerator.count to {more}")
    words = " or ".join(ways)
    return words[:1].upper() + words[1:]


def explain_fit(fit: Fit) -> Decision:
    """Say how much of the class the model takes."""
    return decide("model fit", f"{_gib(fit.need.total)} of {_gib(fit.available)}", fit.arithmetic)


def shape_of(spec: InferenceServiceSpec) -> memory.ModelShape | None:
    """The shape in the words of the contract."""
    shape = spec.model.shape
    return None if shape is None else memory.ModelShape(**shape.model_dump())


def _need(spec: InferenceServiceSpec, precision: Precision) -> memory.MemoryNeed | None:
    shape = shape_of(spec)
    if shape is None or precision not in memory.ELEMENT_BYTES:
        return None
    return memory.least_memory(
        shape,
        precision,
        cache_bytes=0 if spec.cache.memory is None else parse_bytes(spec.cache.memory),
        cache_bits=stored_bits(spec),
        max_sequence_tokens=spec.limits.max_sequence_tokens or 0,
        running_requests=spec.limits.max_running_requests,
    )


def _devices(spec: InferenceServiceSpec) -> int:
    return 1 if spec.accelerator is None else spec.accelerator.count


def _split(
    shape: memory.ModelShape, precision: Precision, gpu: GPUClassSpec, need: memory.MemoryNeed, count: int
) -> LayerSplit | None:
    """Layers over equal devices, each with room for a step; None where there are fewer layers than devices."""
    return split_layers(memory.weight_parts(shape, precision), (usable_bytes(gpu) - need.workspace,) * count)


def _smallest_count(spec: InferenceServiceSpec, precision: Precision, gpu: GPUClassSpec) -> int:
    """The smallest power of two of devices over which the model would fit, if more than it has; 0: none would do."""
    accelerator = spec.accelerator
    if accelerator is None or find_uncountable(MOST_GPUS, gpu):
        return 0
    for count in (2, 4, 8, MOST_GPUS):
        wider = spec.model_copy(update={"accelerator": accelerator.model_copy(update={"count": count})})
        if count > accelerator.count and _fits(wider, precision, gpu):
            return count
    return 0


def _fits(spec: InferenceServiceSpec, precision: Precision, gpu: GPUClassSpec) -> bool:
    fit = judge_fit(spec, precision, gpu)
    return fit is not None and fit.fits


def _describe_cache(spec: InferenceServiceSpec) -> str:
    if spec.cache.memory is not None:
        return "spec.cache.memory"
    shape = spec.model.shape
    assert shape is not None
    tokens = min(spec.limits.max_sequence_tokens or shape.max_positions, shape.max_positions)
    kept = f" in {spec.cache.bits} bits, unfinished pages in floats" if stored_bits(spec) else ""
    return f"one sequence of {tokens} tokens{kept}, and a fifth of it all stays free"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
