"""Execute engine steps with a plan. One page of the scheduler is one slot of the plan's cache: a whole sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from windlass_runtime.backends.base import BackendInfo, Batch
from windlass_runtime.engine import network
from windlass_runtime.engine.graph import DType
from windlass_runtime.engine.manifest import Manifest
from windlass_runtime.engine.runner import PlanRunner
from windlass_runtime.engine.shape import PlanShape
from windlass_runtime.engine.steps import Call, SlotWork, plan_calls
from windlass_runtime.engine.weights import TORCH
from windlass_runtime.errors import CapacityError

_INPUTS: Final = (network.TOKEN_IDS, network.POSITIONS)


class TensorRTBackend:
    """A plan, its cache and its fixed inputs and outputs behind the Backend protocol.

    All memory is taken at once: addresses never change between steps, so captured graphs stay valid.
    """

    def __init__(
        self,
        runner: PlanRunner,
        manifest: Manifest,
        device: torch.device,
        *,
        max_sequence_tokens: int = 0,
        cache_dtype: torch.dtype | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Raises CapacityError when the cache does not fit.

        max_sequence_tokens  0 for the plan's capacity
        on_close             frees the runner and what else belongs to the plan; None for the runner alone
        cache_dtype          None for the plan's arithmetic; the interpreter computes in FP32
        """
        identity, model = manifest.identity, manifest.model
        self._runner: PlanRunner | None = runner
        self._on_close = on_close or runner.close
        self._device = device
        self._shape = PlanShape(identity.capacity, identity.decode_rows, identity.prefill_rows, identity.prefill_tokens)
        self._lengths = [0] * identity.decode_rows
        dtype = cache_dtype or TORCH[DType(identity.arithmetic)]
        shape = (identity.decode_rows, model.key_value_heads, identity.capacity, model.head_size)
        pairs = [pair for layer in range(model.layers) for pair in network.cache_names(layer)]
        try:
            self._caches = {pair: torch.zeros(shape, dtype=dtype, device=device) for pair in pairs}
        except (torch.OutOfMemoryError, RuntimeError) as exc:
            raise CapacityError(
                f"engine cache: {len(pairs)} tensors of {list(shape)} {dtype} do not fit on {device}; "
                "build a plan for fewer requests or shorter sequences"
            ) from exc
        self._logits = torch.empty(identity.decode_rows, 1, model.vocabulary_size, device=device)
        self._info = BackendInfo(
            vocabulary_size=model.vocabulary_size,
            page_tokens=identity.capacity,
            page_count=identity.decode_rows,
            max_sequence_tokens=min(max_sequence_tokens or identity.capacity, identity.capacity),
            eos_token_ids=model.eos_token_ids,
            weight_bytes=manifest.weight_bytes,
            cache_bytes=sum(cache.nbytes for cache in self._caches.values()),
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    @torch.inference_mode()
    def step(self, batch: Batch) -> torch.Tensor:
        """Compute one step; see `Backend.step`."""
        if self._runner is None:
            raise ValueError("step on a closed backend")
        work = [SlotWork(row.page_table[0], row.token_ids, row.start, index) for index, row in enumerate(batch.rows)]
        found: dict[int, torch.Tensor] = {}
        for call in plan_calls(work, self._lengths, self._shape):
            logits = self._run(self._runner, call)
            for index, item in enumerate(call.work):
                if item.row < 0:
                    continue
                self._lengths[item.slot] = item.start + len(item.token_ids)
                if batch.rows[item.row].wants_logits:
                    found[item.row] = logits[index, 0].clone()
        if not found:
            return self._logits.new_empty((0, self._info.vocabulary_size))
        return torch.stack([found[index] for index in sorted(found)])

    def _run(self, runner: PlanRunner, call: Call) -> torch.Tensor:
        """Logits [B,1,V] of a call, valid until the next."""
        rows, tokens, first = len(call.work), call.tokens, call.first_slot
        starts = [item.start for item in call.work]
        flat = [token for item in call.work for token in item.token_ids]
        flat += [start + offset for start in starts for offset in range(tokens)]
        flat += starts + [start + tokens for start in starts] + [tokens - 1] * rows
        numbers = torch.tensor(flat, dtype=torch.int32).to(self._device, non_blocking=True)
        grid, rest = numbers[: 2 * rows * tokens].view(2, rows, tokens), numbers[2 * rows * tokens :].view(3, rows)
        tensors = dict(zip(_INPUTS, grid, strict=True)) | {
            network.FIRST_POSITIONS: rest[0],
            network.LENGTHS: rest[1],
            network.LAST_TOKENS: rest[2].view(rows, 1),
            network.LOGITS: self._logits[:rows],
        }
        for names, cache in self._caches.items():
            tensors |= dict.fromkeys(names, cache[first : first + rows])
        runner.run(call.profile, tensors)
        return self._logits[:rows]

    def close(self) -> None:
        """Drop plan and cache; idempotent."""
        if self._runner is not None:
            self._on_close()
        self._runner, self._caches = None, {}
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
