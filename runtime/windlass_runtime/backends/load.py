"""Turn a checkpoint folder and the limits of a launch spec into a running backend."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from windlass_contract import memory
from windlass_contract.launch_spec import INTEGERS, Device, Precision, SparseActivation
from windlass_contract.layer_split import LayerSplit, split_layers
from windlass_kernels import ops
from windlass_runtime.backends.torch_backend import TorchBackend
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import CapacityError, GateError, RecipeError
from windlass_runtime.kv.store import PageStore, choose_page_count, plan_layout
from windlass_runtime.model.arithmetic import Arithmetic
from windlass_runtime.model.decoder import Decoder, Stage
from windlass_runtime.model.kernel_arithmetic import KernelArithmetic
from windlass_runtime.model.sparse_step import SparseLayers
from windlass_runtime.model.torch_arithmetic import TorchArithmetic
from windlass_runtime.model.weights import load_weights, weight_parts
from windlass_runtime.quant.data_free import DataFreeTensors
from windlass_runtime.quant.find import open_overlay
from windlass_runtime.quant.recipe import RecipeTensors, TensorRecipe
from windlass_runtime.sparsity.find import find_gate, open_gates
from windlass_runtime.sparsity.gate import GateTensors

_DTYPES: Final[Mapping[Precision, torch.dtype]] = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}
_STORED: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USE: Final = Path("/sys/fs/cgroup/memory.current")


def load_backend(
    folder: Path,
    *,
    device: Device = Device.CPU,
    device_count: int = 1,
    precision: Precision = Precision.AUTO,
    recipe: Path | None = None,
    sparse_activation: SparseActivation = SparseActivation.OFF,
    gate: Path | None = None,
    cache_bytes: int = 0,
    cache_bits: int = 0,
    max_running_requests: int = 64,
    max_sequence_tokens: int = 0,
    step_tokens: int = 512,
) -> TorchBackend:
    """Load a checkpoint. The arguments are the fields of LaunchSpec with the same names.

    recipe  a folder with the recipe to follow; None looks beside the checkpoint if the precision is one of integers
    gate    a folder with the gate to follow; None looks beside the checkpoint if sparse activation is on
    Raises CheckpointError for the folder, RecipeError for the recipe, GateError for the gate, CapacityError for the
    machine.
    """
    spec = read_spec(folder)
    targets = _find_devices(device, device_count)
    _allow_sparsity(sparse_activation, targets[0])
    dtype = choose_dtype(precision, spec, targets[0])
    limit = min(max_sequence_tokens, spec.max_positions) if max_sequence_tokens else spec.max_positions
    preset = precision.value if precision in INTEGERS else None
    with (
        torch.inference_mode(),
        CheckpointTensors(folder, spec) as tensors,
        open_overlay(folder, spec, tensors, preset, _allow_recipe(recipe, precision)) as overlay,
        _open_gates(folder, spec, tensors, overlay, gate, sparse_activation) as gates,
    ):
        kernels = device is Device.CPU and bool(ops.available())
        # The kernels widen weights as they read them: half formats stay half as large and cost no accuracy.
        weight_dtype = _STORED[spec.stored_dtype] if kernels and precision not in _DTYPES else dtype
        split = _place(spec, weight_dtype, targets, {} if overlay is None else overlay.entries)
        devices = [target for target, layers in zip(targets, split.stages, strict=True) for _ in layers]
        # The kernels keep activations and norms in FP32; torch wants one format throughout.
        norm_dtype = torch.float32 if kernels else dtype
        weights = load_weights(
            spec, tensors, dtype=weight_dtype, norm_dtype=norm_dtype, devices=devices, overlay=overlay, gates=gates
        )
    if cache_bits and len(targets) > 1:
        raise CapacityError(f"key/value cache of {cache_bits} bits: expected one device, found {len(targets)}")
    layout = plan_layout(
        spec,
        cache_bits,
        dtype=dtype,
        # What a tail holds becomes codes with float16 scales a few tokens later; more bits would be lost on it.
        tail_dtype=torch.float16 if kernels else dtype,
        lanes=max_running_requests,
        step_tokens=step_tokens,
    )
    page_count = choose_page_count(
        layout,
        cache_bytes=cache_bytes,
        free_bytes=_pool_bytes(targets, split, _step_bytes(spec, step_tokens)),
        max_sequence_tokens=limit,
    )
    with torch.inference_mode():
        store = PageStore(layout, page_count, devices=devices)

    def arithmetic(target: torch.device) -> Arithmetic:
        return KernelArithmetic(spec) if kernels else TorchArithmetic(spec, target, dtype)

    stages = [Stage(layers, target, arithmetic(target)) for target, layers in zip(targets, split.stages, strict=True)]
    chains = [layer.feed_forward for layer in weights.layers if layer.feed_forward.selection is not None]
    activation = SparseLayers(chains) if chains else None
    return TorchBackend(Decoder(spec, weights, stages), store, limit, activation)


def _allow_sparsity(wanted: SparseActivation, device: torch.device) -> None:
    if wanted is not SparseActivation.OFF and device.type != "cpu":
        raise GateError(
            f"sparse activation: expected device cpu, found {device}; no kernels there would make it faster: set it to "
            f"{SparseActivation.OFF}"
        )


@contextlib.contextmanager
def _open_gates(
    folder: Path,
    spec: ModelSpec,
    tensors: CheckpointTensors,
    overlay: RecipeTensors | DataFreeTensors | None,
    chosen: Path | None,
    wanted: SparseActivation,
) -> Iterator[GateTensors | None]:
    """The gate that sparse activation asks for; None while it is off."""
    if wanted is SparseActivation.OFF:
        yield None
        return
    place = find_gate(folder, None if overlay is None else overlay.preset, chosen)
    with open_gates(folder, spec, tensors, overlay, place, wanted.lower()) as gates:
        yield gates


def choose_dtype(precision: Precision, spec: ModelSpec, device: torch.device) -> torch.dtype:
    """The format to compute and keep keys and values in.

    Integers are formats of weights only, so there it is Auto's. Auto on a CPU is FP32 whatever the checkpoint: half
    formats lose accuracy there and win nothing but cache.
    """
    if precision in _DTYPES:
        return _DTYPES[precision]
    if device.type == "cpu":
        return torch.float32
    stored = _STORED[spec.stored_dtype]
    return torch.float16 if stored is torch.bfloat16 and not torch.cuda.is_bf16_supported() else stored


def observe_free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device; for a CPU, within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(free, int(_CGROUP_LIMIT.read_text()) - int(_CGROUP_USE.read_text()))
    except (OSError, ValueError):
        # No cgroup v2, or `max`: the machine's memory is the limit.
        return free


def _find_devices(device: Device, count: int) -> tuple[torch.device, ...]:
    if device is Device.CPU:
        return (torch.device("cpu"),) * count
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise CapacityError(
            "device: expected a CUDA device, found none; check the driver and the torch build, or use cpu"
        )
    if found < count:
        raise CapacityError(f"device_count: expected at most the {found} CUDA devices that are visible, found {count}")
    return tuple(torch.device("cuda", index) for index in range(count))


def _allow_recipe(recipe: Path | None, precision: Precision) -> Path | None:
    if recipe is not None and precision in _DTYPES:
        raise RecipeError(f"recipe {recipe}: expected precision Auto, INT8 or INT4 with a recipe, found {precision}")
    return recipe


def _place(
    spec: ModelSpec, dtype: torch.dtype, targets: Sequence[torch.device], entries: Mapping[str, TensorRecipe]
) -> LayerSplit:
    """Which layers each device gets. Raises CapacityError where the weights fit no way."""
    parts, free = weight_parts(spec, dtype, entries), _free_shares(targets)
    split = split_layers(parts, free)
    if split is None:
        raise CapacityError(
            f"device_count: expected at most the model's {spec.layer_count} layers, found {len(targets)}"
        )
    if any(parts.on(layers) > have for layers, have in zip(split.stages, free, strict=True)):
        kept = str(dtype).removeprefix("torch.") + (" and integers" if entries else "")
        where = ", ".join(f"{have} free on {target}" for have, target in zip(free, targets, strict=True))
        raise CapacityError(f"weights: need {parts.total} bytes as {kept}, {where}")
    return split


def _free_shares(targets: Sequence[torch.device]) -> tuple[int, ...]:
    """Memory that can still be taken on each device; stages on the same one share it."""
    return tuple(observe_free_bytes(target) // targets.count(target) for target in targets)


def _pool_bytes(targets: Sequence[torch.device], split: LayerSplit, step_bytes: int) -> int:
    """Most bytes of pages over all devices: each page needs its part of every one, so the tightest bounds them all."""
    rooms = [
        (have - step_bytes) // len(layers) for have, layers in zip(_free_shares(targets), split.stages, strict=True)
    ]
    return min(rooms) * sum(map(len, split.stages))


def _step_bytes(spec: ModelSpec, step_tokens: int) -> int:
    """Room for one step's largest temporaries in FP32: what a layer keeps per token, and a few rows of logits."""
    return memory.step_bytes(
        hidden_size=spec.hidden_size,
        feed_forward_size=spec.feed_forward_size,
        query_heads=spec.query_heads,
        head_size=spec.head_size,
        vocabulary_size=spec.vocabulary_size,
        step_tokens=step_tokens,
    )
