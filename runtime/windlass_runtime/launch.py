"""Turn a LaunchSpec into a backend and a tokenizer: the one place where a model is loaded for any front."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime.backends.base import Backend, Sampler
from windlass_runtime.sparsity.figures import SparsityFigures
from windlass_runtime.text import TextCodec

if TYPE_CHECKING:
    from windlass_runtime.backends.grammars import GrammarCompiler
    from windlass_runtime.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModel:
    """What an engine needs."""

    backend: Backend
    tokenizer: TextCodec | None
    """None for a checkpoint without `tokenizer.json`; such a model takes and gives token ids only."""
    sampler: Sampler | None = None
    """None for backends whose logits are torch tensors."""
    upgrade: Callable[[], Backend] | None = None
    """Makes a faster backend of the same model, which may take minutes; None where there is none to be had."""
    grammars: GrammarCompiler | None = None
    """None where answers cannot be held to a grammar: no tokenizer, no end token, or a sampler of its own."""
    sparsity: Callable[[], SparsityFigures] | None = None
    """What sparse activation did since the start; None while it is off."""


ModelLoader = Callable[[LaunchSpec], LoadedModel]


def load_model(spec: LaunchSpec) -> LoadedModel:
    """Find, check and load a checkpoint. Raises CheckpointError or CapacityError."""
    from windlass_runtime.checkpoint.source import resolve_model

    folder = resolve_model(spec.model_uri)
    # Before the weights: a fault in a small file should not cost minutes of loading.
    tokenizer = load_tokenizer(folder)
    from windlass_runtime.backends.load import load_backend

    backend = load_backend(
        folder,
        device=spec.device,
        device_count=spec.device_count,
        precision=spec.precision,
        recipe=Path(spec.recipe.removeprefix("file://")) if spec.recipe else None,
        sparse_activation=spec.sparse_activation,
        gate=Path(spec.gate.removeprefix("file://")) if spec.gate else None,
        cache_bytes=spec.cache_bytes,
        cache_bits=spec.cache_bits,
        max_running_requests=spec.max_running_requests,
        max_sequence_tokens=spec.max_sequence_tokens,
        step_tokens=spec.step_tokens,
    )
    activation = backend.activation
    return LoadedModel(
        backend,
        tokenizer,
        grammars=build_grammars(backend, tokenizer),
        sparsity=(lambda: activation.figures) if activation else None,
    )


def build_grammars(backend: Backend, tokenizer: Tokenizer | None) -> GrammarCompiler | None:
    """What holds answers to grammars, where that can be done."""
    from windlass_runtime.backends.grammars import GrammarCompiler

    info = backend.info
    if tokenizer is None or not info.eos_token_ids:
        return None
    return GrammarCompiler(tokenizer.to_json, info.vocabulary_size, info.eos_token_ids)


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; None when it has none."""
    from windlass_runtime.tokenizer import Tokenizer

    return Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
