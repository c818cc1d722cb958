"""Find the local folder of a model URI: a folder on disk, or a snapshot from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from windlass_runtime.errors import CheckpointError

# Everything the runtime reads, and nothing that could run code.
_WANTED_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def resolve_model(uri: str) -> Path:
    """The folder with the checkpoint; downloads `hf://` models that are not in the local hub cache.

    uri  `file:///path`, a plain path, or `hf://organisation/name@revision` (`@revision` optional)
    Raises CheckpointError.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _existing_folder(Path(uri), uri)
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise CheckpointError(f"model {uri}: expected file:///path, found the host {parts.netloc!r}")
        return _existing_folder(Path(unquote(parts.path)), uri)
    if scheme == "hf":
        return _download(rest, uri)
    raise CheckpointError(f"model {uri}: expected file://, hf:// or a path, found {scheme}://")


def _existing_folder(path: Path, uri: str) -> Path:
    if not path.is_dir():
        found = "a file" if path.is_file() else "nothing"
        raise CheckpointError(f"model {uri}: expected a folder, found {found}")
    return path


def _download(rest: str, uri: str) -> Path:
    name, _, revision = rest.partition("@")
    if name.count("/") != 1:
        raise CheckpointError(f"model {uri}: expected hf://organisation/name@revision, found {rest!r}")
    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(_WANTED_FILES))
        )
    except LocalEntryNotFoundError as exc:
        raise CheckpointError(
            f"model {uri}: expected a reachable hub or a cached snapshot, found neither; "
            "check the network, or download the model and use file://"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise CheckpointError(f"model {uri}: expected a model on the hub, found none, or no right to read it") from exc
    except (HfHubHTTPError, HFValidationError, OSError) as exc:
        raise CheckpointError(f"model {uri}: the download failed: {exc}") from exc
