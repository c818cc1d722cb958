"""Turn logits into tokens, for many sequences at once.

Every random draw comes from the sequence's own generator, and every row is treated by operations that look at that row
alone, so a sequence's tokens do not depend on who shares its batch. Order of operations: repetition penalty, presence
and frequency penalties, logit bias, grammar, temperature, top-k, top-p, min-p. Log-probabilities describe the model's
own distribution, before any of these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from windlass_runtime.backends.sampling_params import SampledToken, SamplingParams

_CANDIDATE_COUNTS = (64, 1024)
"""Candidates tried before a full sort: a nucleus is seldom wider."""


class TokenSampler:
    """State of one sequence: its generator and the tokens that penalties look at. Survives preemption."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int], fresh_seed: int) -> None:
        """`fresh_seed` is used when the parameters name no seed."""
        self.params = params
        self._generator = torch.Generator()
        self._generator.manual_seed(fresh_seed if params.seed is None else params.seed)
        self._prompt = frozenset(prompt) if params.repetition_penalty != 1 else frozenset()
        self._generated: Counter[int] = Counter()
        self._constraint = None if params.constraint is None else params.constraint.fresh()

    def draw(self) -> float:
        """The next uniform number in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def record(self, token_id: int) -> None:
        if self.params.penalises:
            self._generated[token_id] += 1
        if self._constraint is not None:
            self._constraint.accept(token_id)

    def adjust(self, row: torch.Tensor) -> torch.Tensor:
        """Penalties, bias and grammar on one row of logits [V]; returns a new row, of NaN when the grammar is stuck."""
        row, params = row.clone(), self.params
        if params.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._prompt | self._generated.keys()), device=row.device, dtype=torch.int64)
            scores = row[seen]
            row[seen] = torch.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
        if self._generated and (params.presence_penalty != 0 or params.frequency_penalty != 0):
            ids = torch.tensor(list(self._generated), device=row.device, dtype=torch.int64)
            counts = torch.tensor(list(self._generated.values()), device=row.device, dtype=row.dtype)
            row[ids] -= params.frequency_penalty * counts + params.presence_penalty
        if params.logit_bias:
            ids = torch.tensor([token_id for token_id, _ in params.logit_bias], device=row.device, dtype=torch.int64)
            row[ids] += torch.tensor([bias for _, bias in params.logit_bias], device=row.device, dtype=row.dtype)
        if self._constraint is not None:
            allowed = self._constraint.allowed()
            if allowed is None:
                return row.fill_(math.nan)
            row = torch.where(torch.from_numpy(allowed).to(row.device), row, -math.inf)
        return row


class TorchSampler:
    """The Sampler of backends whose logits are tensors."""

    def begin(self, params: SamplingParams, prompt: Iterable[int], fresh_seed: int) -> TokenSampler:
        return TokenSampler(params, prompt, fresh_seed)

    def sample(self, logits: torch.Tensor, states: Sequence[TokenSampler]) -> list[SampledToken | None]:
        return sample(logits, states)


@torch.inference_mode()
def sample(logits: torch.Tensor, samplers: Sequence[TokenSampler]) -> list[SampledToken | None]:
    """Choose one token per row.

    logits  [N, V] float32, row i belongs to samplers[i]; unchanged
    returns N tokens; None where a row holds NaN or infinities, or its grammar is stuck
    """
    adjusted = _adjust(logits, samplers)
    finite = torch.isfinite(adjusted.amax(dim=-1)).tolist()
    chosen = torch.argmax(adjusted, dim=-1)
    random_rows = [row for row, sampler in enumerate(samplers) if sampler.params.temperature > 0 and finite[row]]
    if random_rows:
        chosen[random_rows] = _draw_rows(adjusted[random_rows], [samplers[row] for row in random_rows])
    token_ids = chosen.tolist()
    logprobs = _logprobs(logits, token_ids, samplers)
    tokens: list[SampledToken | None] = []
    for row, sampler in enumerate(samplers):
        if not finite[row]:
            tokens.append(None)
            continue
        sampler.record(token_ids[row])
        tokens.append(logprobs.get(row) or SampledToken(token_ids[row]))
    return tokens


def _adjust(logits: torch.Tensor, samplers: Sequence[TokenSampler]) -> torch.Tensor:
    rows = [row for row, sampler in enumerate(samplers) if sampler.params.changes_logits]
    if not rows:
        return logits
    adjusted = logits.clone()
    for row in rows:
        adjusted[row] = samplers[row].adjust(logits[row])
    return adjusted


def _draw_rows(logits: torch.Tensor, samplers: Sequence[TokenSampler]) -> torch.Tensor:
    """logits [M, V] -> token ids [M] int64; each row takes one number from its sampler's generator."""
    temperatures = [max(sampler.params.temperature, 1e-30) for sampler in samplers]  # smaller is 0 in float32
    # Shifted first: tiny temperatures then overflow to -inf, which is probability 0, and the best stays at 0.
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    scaled = shifted.div_(torch.tensor(temperatures, device=logits.device, dtype=logits.dtype).unsqueeze(1))
    points = [sampler.draw() for sampler in samplers]
    drawn = [
        _draw_truncated(row, sampler.params, point) if sampler.params.truncates else _draw_all(row, point)
        for row, sampler, point in zip(scaled, samplers, points, strict=True)
    ]
    return torch.stack(drawn)


def _draw_all(row: torch.Tensor, point: float) -> torch.Tensor:
    """Inverse of the cumulative distribution over ids."""
    return _locate(torch.softmax(row, dim=-1), point)


def _draw_truncated(row: torch.Tensor, params: SamplingParams, point: float) -> torch.Tensor:
    probabilities, ids = keep_candidates(row, params)
    return ids[_locate(probabilities, point)]


def keep_candidates(row: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply top-k, top-p and min-p to one row of scaled logits.

    row     [V] float
    returns probabilities [C] float64, not normalised, most likely first, and their token ids [C] int64
    """
    size = row.numel()
    if 0 < params.top_k < size:
        values, ids = torch.topk(row, params.top_k)
        total = torch.logsumexp(values.double(), dim=0)
    else:
        total = torch.logsumexp(row, dim=0).double()
        values, ids = _most_likely(row, total, params)
    probabilities = torch.exp(values.double() - total)
    before = torch.cumsum(probabilities, dim=0) - probabilities
    kept = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
    kept[0] = True
    return probabilities[kept], ids[kept]


def _most_likely(row: torch.Tensor, total: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Enough of the row, most likely first, that nothing behind it could be kept."""
    for count in _CANDIDATE_COUNTS:
        if count < row.numel():
            values, ids = torch.topk(row, count)
            if _covers(values, total, params):
                return values, ids
    return torch.sort(row, descending=True, stable=True)


def _covers(values: torch.Tensor, total: torch.Tensor, params: SamplingParams) -> bool:
    """Whether no candidate beyond the first ones could be kept."""
    probabilities = torch.exp(values.double() - total)
    if params.top_p < 1 and bool(probabilities.sum() >= params.top_p):
        return True
    return bool(probabilities[-1] < params.min_p * probabilities[0])


def _locate(probabilities: torch.Tensor, point: float) -> torch.Tensor:
    """Index of the entry whose share of the cumulative sum holds `point`; scalar int64."""
    cumulative = torch.cumsum(probabilities, dim=0, dtype=torch.float64)
    target = torch.full((), point, device=cumulative.device, dtype=cumulative.dtype) * cumulative[-1]
    index = torch.searchsorted(cumulative, target, right=True)
    # Rounding may put the target on the very end, or on entries of probability 0 behind it.
    last = torch.searchsorted(cumulative, cumulative[-1], right=False)
    return torch.minimum(index, last)


def _logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], samplers: Sequence[TokenSampler]
) -> dict[int, SampledToken]:
    """Reports of the rows that ask for log-probabilities, by row number."""
    rows = [row for row, sampler in enumerate(samplers) if sampler.params.top_logprobs is not None]
    if not rows:
        return {}
    table = torch.log_softmax(logits[rows].float(), dim=-1)
    widest = min(max(samplers[row].params.top_logprobs or 0 for row in rows), table.shape[-1])
    values, ids = torch.topk(table, widest, dim=-1)
    reports = {}
    for position, row in enumerate(rows):
        count = samplers[row].params.top_logprobs or 0
        pairs = zip(ids[position, :count].tolist(), values[position, :count].tolist(), strict=True)
        own = float(table[position, token_ids[row]])
        reports[row] = SampledToken(token_ids[row], own if math.isfinite(own) else -9999.0, tuple(pairs))
    return reports
