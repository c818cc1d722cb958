"""Text files as windows of token ids, for calibration and for measuring quality."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass_runtime.errors import CalibrationError
from windlass_runtime.tokenizer import Tokenizer

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Windows:
    """Equal windows of a text, each read without the others."""

    tokens: Tokens
    """[S, L]"""
    identity: dict[str, Any]
    """Digest of the file, and how the windows were chosen from it."""


def read_texts(
    tokenizer: Tokenizer,
    data: Path,
    heldout: Path | None,
    *,
    sequences: int,
    heldout_sequences: int,
    length: int,
    seed: int,
) -> tuple[Windows, Windows]:
    """Windows to calibrate with, drawn by the seed, and windows to measure with, in order.

    heldout  a file of its own; None keeps the last fifth of `data` for it, which is then never calibrated with
    Raises CalibrationError for files that cannot be read or are too short.
    """
    cut = _cut(tokenizer, data, length)
    if heldout is None:
        kept = max(1, len(cut) // 5)
        if len(cut) < 2:
            raise CalibrationError(
                f"{data}: expected at least two windows of {length} tokens, found {len(cut)}; "
                "give a longer text, or --heldout a second file"
            )
        cut, measured, source = cut[:-kept], cut[-kept:], data
    else:
        measured, source = _cut(tokenizer, heldout, length), heldout
    drawn = np.random.default_rng(seed).permutation(len(cut))[:sequences]
    measured = measured[:heldout_sequences]
    return (
        Windows(cut[np.sort(drawn)], _identify(data, len(drawn), length)),
        Windows(measured, _identify(source, len(measured), length)),
    )


def _cut(tokenizer: Tokenizer, path: Path, length: int) -> Tokens:
    """The text in windows of `length` tokens, each with the begin token first if there is one; the rest is dropped."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CalibrationError(f"{path}: expected UTF-8 text, found {exc}") from exc
    begin = tokenizer.begin_token_id
    own = length - (begin is not None)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    count = len(tokens) // own
    if count == 0:
        raise CalibrationError(f"{path}: expected at least {own} tokens, found {len(tokens)}; give a longer text")
    windows = np.asarray(tokens[: count * own], np.int32).reshape(count, own)
    if begin is None:
        return windows
    return np.concatenate([np.full((count, 1), begin, np.int32), windows], axis=1)


def _identify(path: Path, sequences: int, length: int) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": path.name, "sha256": digest, "sequences": sequences, "sequence_tokens": length}
