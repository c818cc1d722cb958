"""Decide the format of every tensor of a model before anything is measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from windlass_runtime.checkpoint import layout
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.quant.formats import Format, Part
from windlass_runtime.quant.recipe import GROUPS, TensorRecipe

EMBEDDING_GROUP = 32
"""Columns per scale of a 4-bit embedding: rows are rounded without knowing their use, so in the finest groups."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that share their inputs, and so their format: one product of the decoder."""

    part: Part
    names: tuple[str, ...]
    """Of the checkpoint's weights, in the order in which their rows are stacked."""


def layer_units(spec: ModelSpec, layer: int) -> tuple[Unit, Unit, Unit, Unit]:
    """Queries/keys/values, attention output, gate/up, and down projection of one layer."""
    prefix = layout.layer_prefix(layer)
    gate_up = ("gate_up_proj",) if spec.fused_gate_up else ("gate_proj", "up_proj")
    return (
        Unit(Part.ATTENTION, tuple(f"{prefix}self_attn.{name}_proj.weight" for name in "qkv")),
        Unit(Part.ATTENTION, (f"{prefix}self_attn.o_proj.weight",)),
        Unit(Part.FEED_FORWARD, tuple(f"{prefix}mlp.{name}.weight" for name in gate_up)),
        Unit(Part.FEED_FORWARD, (f"{prefix}mlp.down_proj.weight",)),
    )


def plan_formats(spec: ModelSpec, formats: Mapping[Part, Format | None], group: int) -> dict[str, TensorRecipe]:
    """Format of each tensor that becomes integers. A tied head appears only if it is kept apart from the embedding."""
    planned: dict[str, TensorRecipe] = {}
    shapes = layout.expected_tensors(spec)
    units = [Unit(Part.EMBEDDING, (layout.EMBEDDING,))]
    for layer in range(spec.layer_count):
        units += layer_units(spec, layer)
    if not spec.tied_head or formats.get(Part.HEAD) is not formats.get(Part.EMBEDDING):
        units.append(Unit(Part.HEAD, (layout.HEAD,)))
    shapes.setdefault(layout.HEAD, shapes[layout.EMBEDDING])
    for unit in units:
        wanted = formats.get(unit.part)
        if wanted is not None:
            chosen = _fit(wanted, shapes[unit.names[0]][1], EMBEDDING_GROUP if unit.part is Part.EMBEDDING else group)
            planned |= dict.fromkeys(unit.names, chosen)
    return planned


def _fit(wanted: Format, columns: int, group: int) -> TensorRecipe:
    """The widest allowed group that divides the columns; without one, 8 bits."""
    if wanted is not Format.INT4:
        return TensorRecipe(wanted)
    for candidate in sorted((size for size in GROUPS if size <= group), reverse=True):
        if columns % candidate == 0:
            return TensorRecipe(Format.INT4, candidate)
    return TensorRecipe(Format.INT8, reason=f"{columns} columns do not split into groups of {min(GROUPS)}")
