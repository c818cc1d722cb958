"""The Python API: load a model and continue token sequences, in the manner of `transformers`."""

from __future__ import annotations

import dataclasses
import itertools
import queue
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from windlass_runtime import errors, launch
from windlass_runtime.backends.sampling_params import SamplingParams
from windlass_runtime.generation import Event, GenerationRequest
from windlass_runtime.loop import Engine, EngineLimits
from windlass_runtime.metrics import RuntimeMetrics
from windlass_runtime.settings import InferenceConfig

_UNBOUNDED_QUEUE = 2**31


class AutoModel:
    """A loaded model with its engine. Close it, or use it as a context manager, to free its memory."""

    def __init__(self, loaded: launch.LoadedModel, config: InferenceConfig) -> None:
        self.config = config
        self.tokenizer = loaded.tokenizer
        self._info = loaded.backend.info
        limits = EngineLimits(
            config.max_running_requests, _UNBOUNDED_QUEUE, config.step_tokens, reuse=config.enable_cache_reuse
        )
        self._engine = Engine(loaded.backend, loaded.tokenizer, limits, RuntimeMetrics("local"), sampler=loaded.sampler)
        self._engine.start()
        # A thread that the interpreter's end catches inside torch aborts the process, so the engine stops before that.
        self._close = weakref.finalize(self, self._engine.close)
        self._numbers = itertools.count()

    @classmethod
    def from_pretrained(cls, path: str | Path, config: InferenceConfig | None = None) -> Self:
        """Load a checkpoint: a folder, `file:///folder` or `hf://organisation/name@revision`.

        Raises CheckpointError for the checkpoint, CapacityError for the machine.
        """
        config = config or InferenceConfig()
        return cls(launch.load_model(config.to_launch_spec(str(path))), config)

    @property
    def max_sequence_tokens(self) -> int:
        """Most tokens of prompt and output together."""
        return self._engine.max_sequence_tokens

    def generate(
        self,
        input_ids: Any,
        max_length: int | None = None,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
        pad_token_id: int | None = None,
    ) -> Any:
        """Continue each prompt until an end token or the limit; the result repeats the prompt.

        input_ids       list[int], list[list[int]] (ragged or not), or integer numpy array or torch tensor [L] or [B, L]
        max_length      tokens of prompt and output together
        max_new_tokens  tokens of output, wins over max_length; without either, all that the model can hold
        seed            row i draws with seed + i; None draws differently each time; only used with do_sample
        pad_token_id    fills tensor rows that ended early; default: the tokenizer's pad token, else the end token
        returns         the kind that came in: lists end where they end, array or tensor [B, L] -> [B, longest]
                        padded on the right. The end token is part of the result.
        """
        rows, kind = _read_input(input_ids)
        sampling = SamplingParams(
            temperature=temperature if do_sample else 0.0,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
        )
        requests = []
        for index, row in enumerate(rows):
            own = dataclasses.replace(sampling, seed=None if seed is None else seed + index)
            limit = _output_limit(len(row), max_length, max_new_tokens)
            requests.append(GenerationRequest(f"generate-{next(self._numbers)}", tuple(row), own, limit))
        outputs = self._run(requests)
        joined = [row + output for row, output in zip(rows, outputs, strict=True)]
        return kind.restore(joined, self._pad_token(pad_token_id))

    def close(self) -> None:
        """Stop the engine and free the model. Idempotent."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """Generated tokens per request, end tokens included; blocks. Cancels everything when one fails."""
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        outputs: list[list[int]] = [[] for _ in requests]
        open_requests: set[int] = set()
        try:
            for index, request in enumerate(requests):
                self._engine.submit(request, lambda event, index=index: events.put((index, event)))  # type: ignore[misc]
                open_requests.add(index)
            while open_requests:
                index, event = events.get()
                if isinstance(event, errors.RuntimeFault):
                    open_requests.discard(index)
                    raise event
                outputs[index] += event.token_ids
                if event.finish is not None:
                    open_requests.discard(index)
        finally:
            for index in open_requests:
                self._engine.cancel(requests[index].request_id)
        return outputs

    def _pad_token(self, chosen: int | None) -> int:
        if chosen is not None:
            return chosen
        found = self.tokenizer.pad_token_id if self.tokenizer else None
        if found is not None:
            return found
        return self._info.eos_token_ids[0] if self._info.eos_token_ids else 0


@dataclasses.dataclass(frozen=True, slots=True)
class _InputKind:
    """The shape a caller used, to answer in the same."""

    batched: bool
    like: Any = None
    """A torch tensor or numpy array to imitate; None for lists."""

    def restore(self, rows: list[list[int]], pad: int) -> Any:
        if self.like is None:
            return rows if self.batched else rows[0]
        longest = max(len(row) for row in rows)
        padded = [row + [pad] * (longest - len(row)) for row in rows]
        table = padded if self.batched else padded[0]
        if _is_tensor(self.like):
            return self.like.new_tensor(table)
        import numpy as np

        return np.asarray(table, dtype=self.like.dtype)


def _read_input(input_ids: Any) -> tuple[list[list[int]], _InputKind]:
    """Rows of token ids, and the kind of the input. Raises RequestError for anything else."""
    like = input_ids if hasattr(input_ids, "tolist") else None
    values = input_ids.tolist() if like is not None else input_ids
    if not isinstance(values, (list, tuple)) or not values:
        raise errors.RequestError(f"input_ids: expected token ids, found {_describe(input_ids)}", "input_ids")
    batched = isinstance(values[0], (list, tuple))
    rows = [list(row) for row in values] if batched else [list(values)]
    for row in rows:
        if not row or any(type(token) is not int for token in row):
            raise errors.RequestError(
                "input_ids: expected rows of one or more integers, found something else", "input_ids"
            )
    return rows, _InputKind(batched, like)


def _describe(value: Any) -> str:
    return "nothing" if isinstance(value, (list, tuple)) else type(value).__name__


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _output_limit(prompt_tokens: int, max_length: int | None, max_new_tokens: int | None) -> int | None:
    if max_new_tokens is not None:
        return max_new_tokens
    if max_length is None:
        return None
    if max_length <= prompt_tokens:
        raise errors.RequestError(
            f"max_length: expected more than the {prompt_tokens} prompt tokens, found {max_length}", "max_length"
        )
    return max_length - prompt_tokens
