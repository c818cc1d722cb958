"""The tensors of a checkpoint folder, in one file or in shards, checked against a spec before any is read."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch

from windlass_runtime.checkpoint.json_fields import Fields, read_json_object
from windlass_runtime.checkpoint.layout import expected_tensors, is_ignorable
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensor_file import DTYPES, TensorFile
from windlass_runtime.errors import CheckpointError, UnsupportedModel

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
_EDGE_BYTES: Final = 4096
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class CheckpointTensors:
    """Open files of one checkpoint. Every tensor of the spec is there, of its shape and in a readable format."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """Open and check. Raises CheckpointError naming tensor, expected and found."""
        self._files: dict[str, TensorFile] = {}
        self._homes: dict[str, TensorFile] = {}
        try:
            self._open(folder)
            _check_layout(folder, self._homes, spec)
        except CheckpointError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read_into(self, name: str, destination: torch.Tensor) -> None:
        """Copy one tensor into contiguous memory of the same shape, converting format and device."""
        self._homes[name].read_into(name, destination)

    def identity(self, name: str) -> bytes:
        """What tells this tensor from another: format, shape, and a page from each end of its data."""
        file = self._homes[name]
        stored = file.tensors[name]
        return f"{name} {stored.dtype} {list(stored.shape)}".encode() + file.edges(name, _EDGE_BYTES)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _open(self, folder: Path) -> None:
        index = folder / INDEX_FILE
        if index.exists():
            for name, file_name in _read_index(index).items():
                file = self._file(folder, file_name)
                if name not in file.tensors:
                    raise CheckpointError(f"{file.path}: {name}: expected by {INDEX_FILE}, found nothing")
                self._homes[name] = file
            return
        only = self._file(folder, _find_single_file(folder))
        self._homes = dict.fromkeys(only.tensors, only)

    def _file(self, folder: Path, name: str) -> TensorFile:
        if name not in self._files:
            self._files[name] = TensorFile(folder / name)
        return self._files[name]


def _read_index(path: Path) -> dict[str, str]:
    weight_map = Fields(read_json_object(path), str(path)).raw("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: weight_map: expected an object from tensor to file, found {type(weight_map).__name__}"
        )
    for tensor, file_name in weight_map.items():
        # A name with a path in it could reach outside the folder.
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or not file_name.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{path}: weight_map: {tensor}: expected a .safetensors file name, found {file_name!r}"
            )
        if not (path.parent / file_name).is_file():
            raise CheckpointError(
                f"{path}: weight_map: {tensor}: expected the file {file_name} in the folder, found none"
            )
    return weight_map


def _find_single_file(folder: Path) -> str:
    if (folder / SINGLE_FILE).exists():
        return SINGLE_FILE
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{folder}: expected {INDEX_FILE} or one .safetensors file, found {len(found)} without an index"
        )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UnsupportedModel(
            f"{folder}: expected {SINGLE_FILE}, found {pickles[0]}: pickled weights can run code when loaded "
            "and are refused; convert them to safetensors first"
        )
    raise CheckpointError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither")


def _check_layout(folder: Path, homes: dict[str, TensorFile], spec: ModelSpec) -> None:
    expected = expected_tensors(spec)
    for name, shape in expected.items():
        if name not in homes:
            raise CheckpointError(f"{folder}: {name}: expected a tensor of shape {list(shape)}, found nothing")
        stored = homes[name].tensors[name]
        if stored.shape != shape:
            raise CheckpointError(
                f"{homes[name].path}: {name}: expected shape {list(shape)}, found {list(stored.shape)}"
            )
        if stored.dtype not in DTYPES:
            raise UnsupportedModel(
                f"{homes[name].path}: {name}: expected dtype {', '.join(DTYPES)}, found {stored.dtype}"
            )
    for name in homes:
        if name not in expected and not is_ignorable(name, spec):
            # Dropping it would compute something else than the authors trained.
            raise UnsupportedModel(
                f"{homes[name].path}: {name}: expected no such tensor in a {spec.architecture} with this config.json"
            )
