"""Find the gate of a model: a chosen folder, or the one beside the checkpoint that fits the precision."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import GateError
from windlass_runtime.quant.data_free import DataFreeTensors
from windlass_runtime.quant.recipe import RecipeTensors, digest_model
from windlass_runtime.sparsity.gate import AS_STORED, JSON_FILE, GateTensors, open_gate

logger = logging.getLogger(__name__)

GATES_FOLDER: Final = "gates"
"""Beside a checkpoint: one folder per precision, in lower case; `stored` for weights in floats."""


def identify_weights(overlay: RecipeTensors | DataFreeTensors | None) -> str:
    """Which weights a gate belongs to, besides the checkpoint."""
    return AS_STORED if overlay is None else overlay.identity


def find_gate(model: Path, preset: str | None, chosen: Path | None) -> Path:
    """The gate's folder. Raises GateError if there is none.

    preset  INT8 or INT4; None for weights in floats
    """
    folder = chosen or model / GATES_FOLDER / (preset or "stored").lower()
    if not (folder / JSON_FILE).is_file():
        raise GateError(
            f"sparse activation: expected a gate with {JSON_FILE} in {folder}, found none; "
            "`windlass-runtime train-gate` makes one"
        )
    return folder


@contextlib.contextmanager
def open_gates(
    model: Path,
    spec: ModelSpec,
    tensors: CheckpointTensors,
    overlay: RecipeTensors | DataFreeTensors | None,
    folder: Path,
    mode: str,
) -> Iterator[GateTensors | None]:
    """The gate in a folder under a mode, balanced or max; None where the mode stays dense. Raises GateError."""
    gates = open_gate(folder, spec, digest_model(model, spec, tensors), identify_weights(overlay), mode)
    if gates is None:
        logger.warning("sparse activation stays dense mode=%s gate=%s: every target lost too much", mode, folder)
        yield None
        return
    logger.info("sparse activation follows a gate mode=%s gate=%s", mode, folder)
    try:
        yield gates
    finally:
        gates.close()
