# ruff: noqa: E501 - one case of a table per line reads better than wrapped
from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import build_spec, build_tensors, write_checkpoint, write_json, write_tensors
from windlass_runtime.checkpoint.tensor_file import TensorFile
from windlass_runtime.checkpoint.tensors import INDEX_FILE, SINGLE_FILE, CheckpointTensors
from windlass_runtime.errors import CheckpointError, UnsupportedModel

SPEC = build_spec()
NORM = "model.norm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_every_tensor_arrives_converted_from_one_file_or_many(tmp_path: Path, shards: int, stored: torch.dtype) -> None:
    write_checkpoint(tmp_path, stored=stored, shards=shards, seed=3)

    with CheckpointTensors(tmp_path, SPEC) as tensors:
        for name, expected in build_tensors(SPEC, seed=3, dtype=stored).items():
            found = torch.empty(expected.shape)
            tensors.read_into(name, found)
            assert torch.equal(found, expected.float()), name


def test_a_tensor_longer_than_one_chunk_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass_runtime.checkpoint.tensor_file._CHUNK_BYTES", 4096)
    stored = torch.arange(5000, dtype=torch.float32).view(50, 100)
    write_tensors(tmp_path, {"odd": torch.ones(3, dtype=torch.float16), "long": stored})
    file, found = TensorFile(tmp_path / SINGLE_FILE), torch.empty(50, 100)

    file.read_into("long", found)

    assert torch.equal(found, stored)
    file.close()


def change(**changes: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor]], dict[str, Any]]:
    names = {"norm": NORM, "query": QUERY, "extra": "model.layers.0.self_attn.q_proj.bias"}
    return lambda tensors: {
        name: tensor
        for name, tensor in (tensors | {names[key]: value for key, value in changes.items()}).items()
        if tensor is not None
    }


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        pytest.param(change(query=None), CheckpointError, f"{QUERY}: expected a tensor of shape [48, 48], found nothing", id="missing"),
        pytest.param(change(query=torch.ones(48, 47)), CheckpointError, f"{QUERY}: expected shape [48, 48], found [48, 47]", id="mis-shaped"),
        pytest.param(change(norm=torch.ones(48, 1)), CheckpointError, f"{NORM}: expected shape [48], found [48, 1]", id="too many axes"),
        pytest.param(change(norm=torch.ones(48, dtype=torch.int8)), UnsupportedModel, f"{NORM}: expected dtype F32, F16, BF16, found I8", id="whole numbers"),
        pytest.param(change(norm=torch.ones(48, dtype=torch.float64)), UnsupportedModel, "found F64", id="double precision"),
        pytest.param(change(extra=torch.ones(48)), UnsupportedModel, "q_proj.bias: expected no such tensor", id="surplus that would matter"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_the_config_is_named(
    tmp_path: Path, edit: Any, error: type[Exception], message: str
) -> None:
    write_tensors(tmp_path, edit(build_tensors(SPEC)))

    with pytest.raises(error, match=re.escape(message)):
        CheckpointTensors(tmp_path, SPEC)


def test_surplus_tensors_that_change_nothing_are_ignored(tmp_path: Path) -> None:
    spec = build_spec(tie_word_embeddings=True)
    tensors = build_tensors(spec)
    tables = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6), "lm_head.weight": torch.ones(101, 48)}
    write_tensors(tmp_path, tensors | tables)

    with CheckpointTensors(tmp_path, spec) as opened:
        opened.read_into(NORM, torch.empty(48))


def write_raw(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "found 0 bytes", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"1234"), "found 4 bytes", id="shorter than a length"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 64), "at most 56 bytes, found a length of 18446744073709551615", id="absurd length"),
        pytest.param(lambda path: write_raw(path, b"{]"), "header: expected JSON", id="header that is no JSON"),
        pytest.param(lambda path: write_raw(path, b"[" * 100_000), "header: expected JSON", id="header nested without end"),
        pytest.param(lambda path: write_raw(path, []), "header: expected an object, found list", id="header that is a list"),
        pytest.param(lambda path: write_raw(path, {"a": 1}), "a: expected an object, found int", id="entry that is a number"),
        pytest.param(lambda path: write_raw(path, {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "a: expected a shape", id="negative shape"),
        pytest.param(lambda path: write_raw(path, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}), "a: expected a shape", id="offsets in reverse"),
        pytest.param(lambda path: write_raw(path, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, True]}}), "a: expected a shape", id="offset that is a boolean"),
        pytest.param(lambda path: write_raw(path, {"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}), "found 'F9'", id="unknown dtype"),
        pytest.param(lambda path: write_raw(path, {"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}), "a: dtype: expected one of", id="dtype that is a list"),
        pytest.param(lambda path: write_raw(path, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "expected 8 bytes for F32 [2], found 4", id="size that contradicts the shape"),
        pytest.param(lambda path: write_raw(path, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"), "it is truncated", id="truncated"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_before_anything_is_read(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / SINGLE_FILE)

    with pytest.raises(CheckpointError, match=re.escape(message)):
        TensorFile(tmp_path / SINGLE_FILE)


def test_a_truncated_checkpoint_names_file_and_tensor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(
        CheckpointError, match=r"model.safetensors: .*weight: expected \d+ bytes in the file, found \d+"
    ):
        CheckpointTensors(tmp_path, SPEC)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(lambda files: files | {NORM: "model-00009.safetensors"}, "expected the file model-00009.safetensors in the folder, found none", id="missing shard"),
        pytest.param(lambda files: files | {NORM: "../outside.safetensors"}, "found '../outside.safetensors'", id="path out of the folder"),
        pytest.param(lambda files: files | {NORM: "weights.bin"}, "found 'weights.bin'", id="pickle"),
        pytest.param(lambda files: files | {NORM: 3}, "expected a .safetensors file name, found 3", id="number for a name"),
        pytest.param(lambda files: files | {"ghost": files[NORM]}, f"ghost: expected by {INDEX_FILE}, found nothing", id="tensor not in its shard"),
        pytest.param(lambda files: [], "weight_map: expected an object", id="no map"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    write_checkpoint(tmp_path, shards=3)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    write_json(tmp_path / INDEX_FILE, {"weight_map": edit(index["weight_map"])})

    with pytest.raises(CheckpointError, match=re.escape(message)):
        CheckpointTensors(tmp_path, SPEC)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        pytest.param((), CheckpointError, "expected model.safetensors or model.safetensors.index.json, found neither", id="nothing"),
        pytest.param(("pytorch_model.bin",), UnsupportedModel, "pytorch_model.bin: pickled weights can run code", id="pickle"),
        pytest.param(("a.safetensors", "b.safetensors"), CheckpointError, "found 2 without an index", id="shards without index"),
    ],
)  # fmt: skip
def test_a_folder_without_readable_weights_says_what_to_do(
    tmp_path: Path, files: tuple[str, ...], error: type[Exception], message: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")

    with pytest.raises(error, match=re.escape(message)):
        CheckpointTensors(tmp_path, SPEC)


def test_one_file_of_another_name_is_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / SINGLE_FILE).rename(tmp_path / "consolidated.safetensors")

    with CheckpointTensors(tmp_path, SPEC) as tensors:
        tensors.read_into(NORM, torch.empty(48))


def test_a_destination_that_would_take_a_copy_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    with CheckpointTensors(tmp_path, SPEC) as tensors, pytest.raises(ValueError, match="must be contiguous with shape"):
        tensors.read_into(QUERY, torch.empty(48, 48).T)
