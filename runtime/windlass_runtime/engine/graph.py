"""A network as data: the writer describes it, the lowering gives it to TensorRT, the interpreter computes it in NumPy.

Only layers that both TensorRT and TensorRT-RTX accept have an op here. Types are strong as in TensorRT: nothing is
converted silently, so a mistake shows without TensorRT installed. Knows no tensors: weights are named, not held.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

Dim = int | str
"""A size, or the name of one that is chosen at run time: `B` rows of a batch, `S` tokens of a row."""
Shape = tuple[Dim, ...]


class DType(enum.StrEnum):
    """Number formats of values."""

    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    INT32 = "INT32"
    INT8 = "INT8"
    INT4 = "INT4"
    BOOL = "BOOL"


BITS: Final = {
    DType.FP32: 32,
    DType.FP16: 16,
    DType.BF16: 16,
    DType.INT32: 32,
    DType.INT8: 8,
    DType.INT4: 4,
    DType.BOOL: 8,
}


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the network."""

    name: str
    dtype: DType
    shape: Shape

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape where nothing of it is chosen at run time; AssertionError elsewhere."""
        sizes = tuple(dim for dim in self.shape if isinstance(dim, int))
        assert len(sizes) == len(self.shape), f"{self}: a size is chosen at run time"
        return sizes

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


class Field(enum.StrEnum):
    """What of a checkpoint's tensor a constant holds."""

    VALUES = "values"
    CODES = "codes"
    SCALES = "scales"


@dataclass(frozen=True, slots=True)
class FromModel:
    """Rows `first` up to `stop` of a tensor of the checkpoint, or of the recipe over it."""

    tensor: str
    field: Field
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Filled:
    """One number everywhere."""

    number: float


@dataclass(frozen=True, slots=True)
class Positions:
    """0, 1, 2 ... along the last axis."""


class Turn(enum.StrEnum):
    """Which table of the rotary embedding."""

    COS = "cos"
    SIN = "sin"


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Row p holds the function of the angles at position p."""

    turn: Turn


Source = FromModel | Filled | Positions | RotaryTable
"""Where the numbers of a constant come from."""


@dataclass(frozen=True, slots=True)
class Constant:
    """No inputs."""

    source: Source


@dataclass(frozen=True, slots=True)
class Cast:
    """To the format of the output."""


@dataclass(frozen=True, slots=True)
class Quantize:
    """Values and one scale to INT8: round to nearest even, cut off at -128 and 127."""


@dataclass(frozen=True, slots=True)
class Dequantize:
    """Codes and scales to floats. Scales of one dimension follow axis 0; of two, they span blocks of columns."""


@dataclass(frozen=True, slots=True)
class Gather:
    """Data and indices: pick along `axis`; the first `batch_axes` axes of both belong together."""

    axis: int
    batch_axes: int = 0


@dataclass(frozen=True, slots=True)
class Product:
    """[.., M, K] by [.., N, K]: the second is transposed."""


class Binary(enum.StrEnum):
    """Functions of two values, with broadcasting."""

    ADD = "SUM"
    SUBTRACT = "SUB"
    MULTIPLY = "PROD"
    GREATER = "GREATER"
    LESS = "LESS"
    AND = "AND"


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Both inputs have one format and rank."""

    kind: Binary


class Function(enum.StrEnum):
    """Functions of one value."""

    SQUARE_ROOT = "SQRT"
    RECIPROCAL = "RECIP"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True, slots=True)
class Apply:
    """One value."""

    function: Function


@dataclass(frozen=True, slots=True)
class Mean:
    """Over the last axis, which stays with size 1."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Permute axes, reshape, permute again. In `reshape` 0 keeps the size at that place and -1 takes what is left."""

    before: tuple[int, ...] | None
    reshape: tuple[int, ...]
    after: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Rotate:
    """Heads [B,H,S,D], cos and sin [T,R/2], positions [B,S]: turn pairs of the first R elements of each head."""

    interleaved: bool
    """Whether pairs are neighbours, or lie R / 2 apart."""


@dataclass(frozen=True, slots=True)
class UpdateCache:
    """Cache [B,H,T,D], update [B,H,S,D], first position of each row [B]: write in place and hand the cache on."""


@dataclass(frozen=True, slots=True)
class Attend:
    """Scaled queries [B,Hq,S,D], keys and values [B,H,T,D], and either lengths [B] or a mask [B,1,S,T].

    With lengths the query at index i of row b sees positions up to i + lengths[b] - S; with a mask what is true in it.
    """

    masked: bool


Op = (
    Constant
    | Cast
    | Quantize
    | Dequantize
    | Gather
    | Product
    | Elementwise
    | Apply
    | Mean
    | Shuffle
    | Rotate
    | UpdateCache
    | Attend
)


@dataclass(frozen=True, slots=True)
class Node:
    """One layer."""

    op: Op
    inputs: tuple[Value, ...]
    output: Value

    def __str__(self) -> str:
        inputs = ", ".join(value.name for value in self.inputs)
        return f"{self.output} = {self.op}({inputs})"


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole network. Nodes are in an order in which they can be computed; names are unique."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    @property
    def constants(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if isinstance(node.op, Constant))

    @property
    def weight_bytes(self) -> int:
        """Of all constants, each counted as often as it stands in the network."""
        return sum(value_bytes(node.output) for node in self.constants)

    def render(self) -> str:
        """One line a value, for golden tests and for people."""
        lines = [f"input {value}" for value in self.inputs]
        lines += [str(node) for node in self.nodes]
        lines += [f"output {value.name}" for value in self.outputs]
        return "\n".join(lines) + "\n"


def value_bytes(value: Value) -> int:
    """Bytes of a value whose sizes are all known."""
    return -(-math.prod(value.sizes) * BITS[value.dtype] // 8)
