"""Measure a recipe against FP32 on held-out windows, and judge it by its thresholds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from windlass_kernels.feed_forward import Projection
from windlass_runtime.jobs.texts import Tokens
from windlass_runtime.model.arithmetic import Arithmetic
from windlass_runtime.quant.formats import Thresholds
from windlass_runtime.quant.recipe import Quality, TensorRecipe

_CHUNK_LOGITS: Final = 2**22
_CHOICES: Final = 4

PROBES: Final = {
    "next token": "the most likely token is the text's own",
    "copying": "the same, where the last two tokens occurred before in the window and went on alike",
    "choice": f"the text's token is likelier than {_CHOICES - 1} tokens drawn from elsewhere in the text",
}


@dataclass(frozen=True, slots=True)
class Exit:
    """What turns hidden states into logits."""

    norm: torch.Tensor
    head: Projection


def measure_quality(
    arithmetic: Arithmetic,
    tokens: Tokens,
    reference: tuple[NDArray[np.float32], Exit],
    quantized: tuple[NDArray[np.float32], Exit],
    seed: int,
) -> Quality:
    """Compare next-token distributions at every position of the windows.

    tokens      [S, L]
    reference, quantized   hidden states after the last layer, [S, L, E], and what follows them
    """
    sums = _Sums()
    random = np.random.default_rng(seed)
    for index, window in enumerate(tokens):
        others = random.choice(tokens.reshape(-1), (len(window) - 1, _CHOICES - 1))
        repeated = _find_repeated(window)
        for span in _spans(len(window) - 1, reference[1].head.weight.shape[0]):
            exact, rounded = (_logits(arithmetic, hidden[index, span], end) for hidden, end in (reference, quantized))
            sums.add(exact, rounded, window[1:][span], others[span], repeated[span])
    return sums.result()


def find_misses(quality: Quality, thresholds: Thresholds) -> list[str]:
    """Each threshold that is missed, with what was found; empty when the recipe is good."""
    misses = []
    if not quality.perplexity_loss <= thresholds.perplexity_loss:
        found = f"{quality.perplexity_loss:.2%}"
        misses.append(f"perplexity: expected a loss of at most {thresholds.perplexity_loss:.2%}, found {found}")
    if not quality.divergence <= thresholds.divergence:
        misses.append(f"divergence: expected at most {thresholds.divergence:g} nats, found {quality.divergence:.4f}")
    if not quality.top1_agreement >= thresholds.top1_agreement:
        misses.append(
            f"top-1 agreement: expected at least {thresholds.top1_agreement:.1%}, found {quality.top1_agreement:.1%}"
        )
    for name, (before, after) in quality.probes.items():
        if not before - after <= thresholds.probe_loss:
            misses.append(f"probe {name}: expected at least {before - thresholds.probe_loss:.1%}, found {after:.1%}")
    return misses


def worst_tensors(tensors: Mapping[str, TensorRecipe], count: int = 3) -> list[tuple[str, TensorRecipe]]:
    """The tensors whose rounding adds most noise to their outputs."""
    measured = [(name, entry) for name, entry in tensors.items() if entry.snr_db is not None]
    return sorted(measured, key=lambda item: item[1].snr_db or 0.0)[:count]


def worst_layers(layer_snr_db: tuple[float, ...], count: int = 3) -> list[tuple[int, float]]:
    """The layers where the hidden states lose most, in decibels against the layer before; the first against none."""
    losses = [(layer, before - after) for layer, (before, after) in enumerate(itertools.pairwise(layer_snr_db), 1)]
    return sorted(losses, key=lambda item: -item[1])[:count]


def _logits(arithmetic: Arithmetic, hidden: NDArray[np.float32], end: Exit) -> torch.Tensor:
    normed = arithmetic.norm(torch.from_numpy(np.array(hidden, np.float32)), end.norm)
    return arithmetic.project(normed, end.head).double().log_softmax(-1)


def _spans(positions: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, _CHUNK_LOGITS // vocabulary)
    for first in range(0, positions, step):
        yield slice(first, min(first + step, positions))


def _find_repeated(window: Tokens) -> NDArray[np.bool_]:
    """Whether a position's token and the one before occurred earlier together and were followed by the same token."""
    last_follower: dict[tuple[int, int], int] = {}
    found = np.zeros(len(window) - 1, np.bool_)
    for at in range(1, len(window) - 1):
        pair = int(window[at - 1]), int(window[at])
        found[at] = last_follower.get(pair) == int(window[at + 1])
        last_follower[pair] = int(window[at + 1])
    return found


@dataclass(slots=True)
class _Sums:
    tokens: int = 0
    exact_nats: float = 0.0
    rounded_nats: float = 0.0
    divergence: float = 0.0
    agreed: int = 0
    hits: dict[str, list[int]] = field(default_factory=lambda: {name: [0, 0, 0] for name in PROBES})
    """Asked, right in FP32, right with the recipe, by probe."""

    def add(
        self,
        exact: torch.Tensor,
        rounded: torch.Tensor,
        targets: Tokens,
        others: NDArray[np.int32],
        repeated: NDArray[np.bool_],
    ) -> None:
        """Log probabilities [N, V] of both, the text's tokens [N], and what the probes need."""
        wanted = torch.from_numpy(targets.astype(np.int64))[:, None]
        self.tokens += len(wanted)
        self.exact_nats -= float(exact.gather(1, wanted).sum())
        self.rounded_nats -= float(rounded.gather(1, wanted).sum())
        self.divergence += float((exact.exp() * (exact - rounded)).sum())
        tops = exact.argmax(1), rounded.argmax(1)
        self.agreed += int((tops[0] == tops[1]).sum())
        right = [top == wanted[:, 0] for top in tops]
        everywhere = torch.ones(len(wanted), dtype=torch.bool)
        self._count("next token", everywhere, right)
        self._count("copying", torch.from_numpy(repeated), right)
        rivals = torch.from_numpy(others.astype(np.int64))
        self._count(
            "choice", everywhere, [(p.gather(1, rivals) < p.gather(1, wanted)).all(1) for p in (exact, rounded)]
        )

    def _count(self, probe: str, asked: torch.Tensor, right: list[torch.Tensor]) -> None:
        counts = [int(asked.sum()), *(int((hits & asked).sum()) for hits in right)]
        self.hits[probe] = [before + count for before, count in zip(self.hits[probe], counts, strict=True)]

    def result(self) -> Quality:
        return Quality(
            tokens=self.tokens,
            reference_perplexity=float(np.exp(self.exact_nats / self.tokens)),
            perplexity=float(np.exp(self.rounded_nats / self.tokens)),
            divergence=self.divergence / self.tokens,
            top1_agreement=self.agreed / self.tokens,
            probes={
                name: (exact / asked, rounded / asked) for name, (asked, exact, rounded) in self.hits.items() if asked
            },
        )
