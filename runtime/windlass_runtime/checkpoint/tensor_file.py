"""One safetensors file: a checked header over a memory map, read tensor by tensor straight into the caller's memory.

Pages already read are handed back to the kernel, so a load never holds the weights twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from windlass_runtime.errors import CheckpointError

_LENGTH_BYTES: Final = 8
_LARGEST_HEADER: Final = 100_000_000
"""Bytes; the format's own limit."""
_CHUNK_BYTES: Final = 32 * 2**20
"""Mapped bytes that may be resident at once while reading."""

DTYPES: Final[Mapping[str, torch.dtype]] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_READABLE: Final[Mapping[str, torch.dtype]] = {**DTYPES, "I8": torch.int8, "U8": torch.uint8, "I32": torch.int32}
"""Formats of recipes and gates: those of checkpoints, codes, and indices."""
_ITEM_SIZES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in its file."""

    dtype: str
    """The format's name, such as BF16."""
    shape: tuple[int, ...]
    offset: int
    """Of the first byte, from the start of the file."""
    size: int
    """Bytes."""


class TensorFile:
    """An open safetensors file. `tensors` is complete and in bounds after construction."""

    def __init__(self, path: Path) -> None:
        """Map the file and check its header. Raises CheckpointError."""
        self.path = path
        try:
            with path.open("rb") as file:
                length = path.stat().st_size
                if length < _LENGTH_BYTES:
                    raise CheckpointError(f"{path}: expected a safetensors file, found {length} bytes")
                # A private mapping: tensors can be views of it without torch's read-only warning; nothing writes to it.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError as exc:
            raise CheckpointError(f"{path}: expected a file, found none") from exc
        except OSError as exc:
            raise CheckpointError(f"{path}: cannot be mapped: {exc.strerror}") from exc
        try:
            self.tensors = _parse_header(path, self._map)
        except CheckpointError:
            self._map.close()
            raise

    def read_into(self, name: str, destination: torch.Tensor) -> None:
        """Copy a tensor into `destination`, which has its shape; converts the number format and moves to its device."""
        stored = self.tensors[name]
        flat, dtype = destination.reshape(-1), _READABLE[stored.dtype]
        if flat.data_ptr() != destination.data_ptr() or destination.shape != stored.shape:
            raise ValueError(
                f"{name}: destination {tuple(destination.shape)} must be contiguous with shape {stored.shape}"
            )
        step = _CHUNK_BYTES // dtype.itemsize
        for first in range(0, flat.numel(), step):
            count = min(step, flat.numel() - first)
            offset = stored.offset + first * dtype.itemsize
            flat[first : first + count].copy_(torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset))
            self._forget(offset, count * dtype.itemsize)

    def read(self, name: str) -> torch.Tensor:
        """One tensor in the format it is stored in, newly allocated."""
        stored = self.tensors[name]
        tensor = torch.empty(stored.shape, dtype=_READABLE[stored.dtype])
        self.read_into(name, tensor)
        return tensor

    def edges(self, name: str, size: int) -> bytes:
        """The first and the last `size` bytes of a tensor."""
        stored = self.tensors[name]
        end, kept = stored.offset + stored.size, min(size, stored.size)
        return self._map[stored.offset : stored.offset + kept] + self._map[end - kept : end]

    def close(self) -> None:
        """Unmap; idempotent."""
        self._map.close()

    def _forget(self, offset: int, size: int) -> None:
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, offset + size - start)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, one tensor after the other. Equal tensors give equal bytes."""
    names = {dtype: name for name, dtype in _READABLE.items()}
    with path.open("wb") as file:
        file.write(_build_header((name, names[t.dtype], tuple(t.shape), t.nbytes) for name, t in tensors.items()))
        for tensor in tensors.values():
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def join_tensors(path: Path, parts: Sequence[Path]) -> None:
    """Write one safetensors file with the tensors of several, in order; one tensor in memory at a time."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(contextlib.closing(TensorFile(part))) for part in parts]
        out = stack.enter_context(path.open("wb"))
        held = [(file, name, stored) for file in files for name, stored in file.tensors.items()]
        out.write(_build_header((name, stored.dtype, stored.shape, stored.size) for _, name, stored in held))
        for file, name, _ in held:
            out.write(file.read(name).flatten().view(torch.uint8).numpy().data)


def _build_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """From name, format, shape and size of each tensor, in the order of the data."""
    entries, offset = {}, 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)  # readers expect the data aligned
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header


def _parse_header(path: Path, data: mmap.mmap) -> dict[str, StoredTensor]:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    most = min(_LARGEST_HEADER, len(data) - _LENGTH_BYTES)
    if length > most:
        raise CheckpointError(
            f"{path}: header: expected at most {most} bytes, found a length of {length}; "
            "the file is truncated or no safetensors file"
        )
    start = _LENGTH_BYTES + length
    try:
        header = json.loads(data[_LENGTH_BYTES:start])
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path}: header: expected JSON, found {type(exc).__name__}") from exc
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: header: expected an object, found {type(header).__name__}")
    header.pop("__metadata__", None)
    return {name: _parse_entry(f"{path}: {name}", entry, start, len(data)) for name, entry in header.items()}


def _parse_entry(where: str, entry: Any, start: int, file_size: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: expected an object, found {type(entry).__name__}")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: expected a shape and two ordered data_offsets, found {str(entry)[:80]}")
    if not isinstance(dtype, str) or dtype not in _ITEM_SIZES:
        raise CheckpointError(f"{where}: dtype: expected one of {', '.join(_ITEM_SIZES)}, found {str(dtype)[:40]!r}")
    size, expected = offsets[1] - offsets[0], math.prod(shape) * _ITEM_SIZES[dtype]
    if size != expected:
        raise CheckpointError(f"{where}: expected {expected} bytes for {dtype} {shape}, found {size}")
    if start + offsets[1] > file_size:
        raise CheckpointError(
            f"{where}: expected {start + offsets[1]} bytes in the file, found {file_size}; it is truncated"
        )
    return StoredTensor(dtype, tuple(shape), start + offsets[0], size)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
