"""Quantise the tensors of one layer: units in order, factors folded into what makes their inputs. Knows no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from windlass_runtime.checkpoint import layout
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.quant.equalize import InputStatistics
from windlass_runtime.quant.formats import STORED, Format
from windlass_runtime.quant.plan import Unit, layer_units
from windlass_runtime.quant.recipe import TensorRecipe, pack_nibbles
from windlass_runtime.quant.rounding import Floats
from windlass_runtime.quant.unit import UnitResult, choose_factors, divide, quantize_unit

_TORCH = {Format.FP32: torch.float32, Format.BF16: torch.bfloat16, Format.FP16: torch.float16}


@dataclass(slots=True)
class PartialRecipe:
    """Finished tensors in memory: an overlay, and the content of a recipe's file."""

    entries: dict[str, TensorRecipe] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """By the names of the file: NAME.codes, NAME.scales, or NAME."""

    def entry(self, name: str) -> TensorRecipe | None:
        return self.entries.get(name)

    def plain(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def codes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tensors[f"{name}.codes"], self.tensors[f"{name}.scales"]

    def add_plain(self, name: str, values: Floats, entry: TensorRecipe) -> None:
        self.entries[name] = entry
        self.tensors[name] = torch.from_numpy(np.ascontiguousarray(values)).to(_TORCH[entry.format])

    def add_unit(self, names: tuple[str, ...], matrices: list[Floats], result: UnitResult) -> None:
        """One result for all `names`: its codes, or the matrices in floats."""
        if not result.rounded:
            for name, matrix in zip(names, matrices, strict=True):
                self.add_plain(name, matrix, result.entry)
            return
        for name, rounded in zip(names, result.rounded, strict=True):
            self.entries[name] = result.entry
            self.tensors[f"{name}.codes"] = torch.from_numpy(rounded.codes)
            self.tensors[f"{name}.scales"] = torch.from_numpy(rounded.scales)

    def stored(self) -> dict[str, torch.Tensor]:
        """`tensors` as a recipe's file holds them: 4-bit codes two a byte."""
        small = {f"{name}.codes" for name, entry in self.entries.items() if entry.format is Format.INT4}
        return {name: pack_nibbles(tensor) if name in small else tensor for name, tensor in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class LayerQuantizer:
    """How to treat every layer of one model."""

    spec: ModelSpec
    plan: Mapping[str, TensorRecipe]
    floors_db: Mapping[Format, float]
    static_inputs: bool
    read: Callable[[str], Floats]
    """A tensor of the checkpoint in FP32."""

    def quantize(self, layer: int, inputs: tuple[InputStatistics, ...]) -> PartialRecipe:
        """Inputs of the four units of the layer, in the order of `layer_units`."""
        result, units, prefix = PartialRecipe(), layer_units(self.spec, layer), layout.layer_prefix(layer)
        attention, output, gate_up, down = units
        down_factors = self._factors(down, inputs[3])
        self._quantize(attention, inputs[0], result, norm=f"{prefix}input_layernorm.weight")
        self._quantize(output, inputs[1], result)
        self._quantize(
            gate_up, inputs[2], result, norm=f"{prefix}post_attention_layernorm.weight", up_factors=down_factors
        )
        self._fold_bias(prefix, down_factors, result)
        self._round(
            down, [self.read(name) * down_factors for name in down.names], divide(inputs[3], down_factors), result
        )
        return result

    def _factors(self, unit: Unit, inputs: InputStatistics) -> Floats:
        entry = self.plan.get(unit.names[0])
        if entry is None:
            return np.ones(len(inputs.mean_square), np.float32)
        matrix = np.concatenate([self.read(name) for name in unit.names])
        return choose_factors(matrix, inputs, entry, self.static_inputs)

    def _quantize(
        self,
        unit: Unit,
        inputs: InputStatistics,
        result: PartialRecipe,
        norm: str | None = None,
        up_factors: Floats | None = None,
    ) -> None:
        """Round a unit. Its own factors go into `norm` if it has one; `up_factors` divide the up projection's rows."""
        matrices = [self.read(name) for name in unit.names]
        if up_factors is not None:
            # The up projection is the last matrix, or the second half of a fused one.
            matrices[-1][-len(up_factors) :] /= up_factors[:, None]
        factors = np.ones(len(inputs.mean_square), np.float32)
        entry = self.plan.get(unit.names[0])
        if norm is not None and entry is not None:
            factors = choose_factors(np.concatenate(matrices), inputs, entry, self.static_inputs)
        if norm is not None and not _is_one(factors):
            result.add_plain(
                norm, self.read(norm) / factors, TensorRecipe(Format.FP32, reason="carries channel factors")
            )
        if entry is None and up_factors is not None and not _is_one(up_factors):
            reason = "carries channel factors of the down projection"
            result.add_unit(unit.names, matrices, UnitResult(TensorRecipe(self._stored, reason=reason), ()))
        self._round(unit, [matrix * factors for matrix in matrices], divide(inputs, factors), result)

    def _round(self, unit: Unit, matrices: list[Floats], inputs: InputStatistics, result: PartialRecipe) -> None:
        entry = self.plan.get(unit.names[0])
        if entry is None:
            return
        finished = quantize_unit(
            matrices,
            inputs,
            entry,
            stored=self._stored,
            floors_db=self.floors_db,
            static_inputs=self.static_inputs,
        )
        result.add_unit(unit.names, matrices, finished)

    def _fold_bias(self, prefix: str, factors: Floats, result: PartialRecipe) -> None:
        """Biases of the up projection are divided as its rows are."""
        if not self.spec.feed_forward_bias or _is_one(factors):
            return
        name = f"{prefix}mlp.{'gate_up' if self.spec.fused_gate_up else 'up'}_proj.bias"
        bias = self.read(name)
        bias[-len(factors) :] /= factors
        result.add_plain(name, bias, TensorRecipe(Format.FP32, reason="carries channel factors"))

    @property
    def _stored(self) -> Format:
        return STORED[self.spec.stored_dtype]


def _is_one(factors: Floats) -> bool:
    return bool((factors == 1.0).all())
