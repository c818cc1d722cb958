"""Execute engine steps with torch, on a CPU or on GPUs that share the layers."""

from __future__ import annotations

import torch

from windlass_runtime.backends.base import BackendInfo, Batch
from windlass_runtime.errors import CapacityError
from windlass_runtime.kv.store import PAGE_TOKENS, PageStore
from windlass_runtime.model.decoder import Decoder
from windlass_runtime.model.ragged import lay_out
from windlass_runtime.model.sparse_step import SparseLayers
from windlass_runtime.model.tails import lay_out_tails


class TorchBackend:
    """A decoder and its page pool behind the Backend protocol."""

    def __init__(
        self,
        decoder: Decoder,
        store: PageStore,
        max_sequence_tokens: int,
        activation: SparseLayers | None = None,
    ) -> None:
        """activation  which tokens leave out which blocks of neurons; None for a dense model."""
        self._decoder: Decoder | None = decoder
        self._store: PageStore | None = store
        self._devices = tuple(stage.device for stage in decoder.stages)
        self.activation = activation
        self._info = BackendInfo(
            vocabulary_size=decoder.spec.vocabulary_size,
            page_tokens=PAGE_TOKENS,
            page_count=store.page_count,
            max_sequence_tokens=max_sequence_tokens,
            eos_token_ids=decoder.spec.eos_token_ids,
            weight_bytes=decoder.weights.size_bytes,
            cache_bytes=store.size_bytes,
            is_sparse=activation is not None,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    @torch.inference_mode()
    def step(self, batch: Batch) -> torch.Tensor:
        """Compute one step; see `Backend.step`."""
        if self._decoder is None or self._store is None:
            raise ValueError("step on a closed backend")
        step = lay_out(batch.rows, self._devices[0])
        sparse = self.activation.begin(batch.rows, self._devices[0]) if self.activation else None
        wanted = [span.stop - 1 for span, row in zip(step.spans, batch.rows, strict=True) if row.wants_logits]
        layout = self._store.layout
        tails = lay_out_tails(batch.rows, layout, self._devices[0]) if layout.quantized_layers else None
        try:
            return self._decoder.forward(
                step, self._store, torch.tensor(wanted, dtype=torch.int64, device=self._devices[-1]), tails, sparse
            )
        except torch.OutOfMemoryError as exc:
            raise CapacityError(
                f"engine step of {len(step.token_ids)} tokens: no memory left on {_list(self._devices)} for it"
            ) from exc

    def close(self) -> None:
        """Drop weights and pages; idempotent."""
        self._decoder = self._store = None
        if self._devices[0].type == "cuda":
            torch.cuda.empty_cache()


def _list(devices: tuple[torch.device, ...]) -> str:
    return " or ".join(str(device) for device in dict.fromkeys(devices))
