"""Some tokens of a layer, evenly spread over a text: its input, that of its feed-forward block, and its neurons."""

from __future__ import annotations

import torch

from windlass_kernels.feed_forward import Projection
from windlass_runtime.model.weights import LayerWeights


class TokenSample:
    """A Watch that keeps the inputs of three products for the same tokens."""

    def __init__(self, weights: LayerWeights, tokens: int, kept: int) -> None:
        """tokens  how many will be seen; of these, at most about `kept` stay"""
        watched = (weights.query_key_value, weights.gate_up, weights.down)
        self._parts: dict[int, list[torch.Tensor]] = {id(projection): [] for projection in watched}
        self._seen = dict.fromkeys(self._parts, 0)
        self._names = [id(projection) for projection in watched]
        self._stride = max(1, -(-tokens // kept))

    def see(self, projection: Projection, inputs: torch.Tensor) -> None:
        name = id(projection)
        if name in self._parts:
            self._parts[name].append(inputs[-self._seen[name] % self._stride :: self._stride].clone())
            self._seen[name] += len(inputs)

    @property
    def hints(self) -> torch.Tensor:
        """[N, E]: the layer's normed input."""
        return torch.cat(self._parts[self._names[0]])

    @property
    def inputs(self) -> torch.Tensor:
        """[N, E]: the normed input of the feed-forward block."""
        return torch.cat(self._parts[self._names[1]])

    @property
    def gated(self) -> torch.Tensor:
        """[N, F]: the neurons, silu(gate) * up."""
        return torch.cat(self._parts[self._names[2]])
