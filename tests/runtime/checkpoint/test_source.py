# ruff: noqa: E501 - one case of a table per line reads better than wrapped
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from windlass_runtime.checkpoint import source
from windlass_runtime.checkpoint.source import resolve_model
from windlass_runtime.errors import CheckpointError


@pytest.mark.parametrize("prefix", ["", "file://", "file://localhost"])
def test_a_local_folder_resolves_to_itself(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "a model"
    folder.mkdir()
    uri = f"{prefix}{folder}" if not prefix else f"{prefix}{folder}".replace(" ", "%20")

    assert resolve_model(uri) == folder


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        pytest.param("/nowhere/at/all", "expected a folder, found nothing", id="missing folder"),
        pytest.param(f"file://{__file__}", "expected a folder, found a file", id="a file"),
        pytest.param("file://host/model", "found the host 'host'", id="another host"),
        pytest.param("s3://bucket/model", "expected file://, hf:// or a path, found s3://", id="unknown scheme"),
        pytest.param("hf://name-only", "expected hf://organisation/name@revision, found 'name-only'", id="no organisation"),
        pytest.param("hf://a/b/c", "found 'a/b/c'", id="too many parts"),
    ],
)  # fmt: skip
def test_an_unusable_uri_says_what_was_expected(uri: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve_model(uri)


@pytest.mark.parametrize(
    ("uri", "name", "revision"),
    [
        pytest.param("hf://org/model", "org/model", None, id="default revision"),
        pytest.param("hf://org/model@v1.0", "org/model", "v1.0", id="named revision"),
    ],
)
def test_a_hub_model_is_fetched_at_its_revision_without_code_or_pickles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str, name: str, revision: str | None
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(source.huggingface_hub, "snapshot_download", download)

    assert resolve_model(uri) == tmp_path
    assert (asked["repository"], asked["revision"]) == (name, revision)
    assert not {"*.py", "*.bin", "*.pt"} & set(asked["allow_patterns"])


def test_without_network_and_cache_the_message_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(source.huggingface_hub, "snapshot_download", refuse)

    with pytest.raises(CheckpointError, match="check the network, or download the model and use file://"):
        resolve_model("hf://org/model")
