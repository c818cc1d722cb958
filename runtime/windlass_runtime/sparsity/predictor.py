"""Train the thin network that foresees which blocks a token wants. NumPy only; the same numbers for the same seed.

Pure functions of arrays. N tokens, E hidden size, R features, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_BATCH: Final = 256
_RATE: Final = 3e-3
_WARM_UP: Final = 50


@dataclass(frozen=True, slots=True)
class Predictor:
    """shares = softmax(positive part of (x @ narrow) @ wide + bias)"""

    narrow: Floats
    """[E, R]"""
    wide: Floats
    """[R, B]"""
    bias: Floats
    """[B]"""

    def shares(self, x: Floats) -> Floats:
        """[N, E] to [N, B]."""
        return _softmax(np.maximum(x @ self.narrow, 0.0) @ self.wide + self.bias)


def train_predictor(x: Floats, shares: Floats, rank: int, epochs: int, seed: int) -> Predictor:
    """Fit the expected share of each block in a token's output.

    x       [N, E]
    shares  [N, B]  each row sums to 1

    Cross entropy against the shares themselves, whose least value is at their expectation: ranking blocks by that gives
    the highest recall at any density. Adam, a warm-up, then half a cosine.
    """
    draw = np.random.default_rng(seed)
    hidden, blocks = x.shape[1], shares.shape[1]
    weights = [
        (draw.standard_normal((hidden, rank)) / np.sqrt(hidden)).astype(np.float32),
        (draw.standard_normal((rank, blocks)) * 0.1 / np.sqrt(rank)).astype(np.float32),
        np.log(np.maximum(shares.mean(axis=0), 1e-6)).astype(np.float32),
    ]
    batch = min(_BATCH, len(x))
    steps, optimizer = epochs * (len(x) // batch), _Adam(weights)
    for _ in range(epochs):
        order = draw.permutation(len(x))
        for first in range(0, len(x) - batch + 1, batch):
            chosen = order[first : first + batch]
            optimizer.step(_gradients(weights, x[chosen], shares[chosen]), steps)
    return Predictor(*weights)


def _gradients(weights: list[Floats], x: Floats, shares: Floats) -> list[Floats]:
    narrow, wide, bias = weights
    features = x @ narrow
    positive = np.maximum(features, 0.0)
    error = (_softmax(positive @ wide + bias) - shares) / np.float32(len(x))
    return [x.T @ ((error @ wide.T) * (features > 0)), positive.T @ error, error.sum(axis=0)]


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


class _Adam:
    """Changes `weights` in place."""

    def __init__(self, weights: list[Floats]) -> None:
        self._weights = weights
        self._means = [np.zeros_like(weight) for weight in weights]
        self._squares = [np.zeros_like(weight) for weight in weights]
        self._taken = 0

    def step(self, gradients: list[Floats], steps: int) -> None:
        self._taken += 1
        taken = self._taken
        rate = _RATE * min(1.0, taken / _WARM_UP) * 0.5 * (1.0 + np.cos(np.pi * taken / (steps + 1)))
        for weight, gradient, mean, square in zip(self._weights, gradients, self._means, self._squares, strict=True):
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (np.square(gradient) - square)
            size = np.sqrt(square / (1 - 0.999**taken)) + 1e-8
            weight -= (rate / (1 - 0.9**taken) * mean / size).astype(np.float32)
