"""Synthetic traces of requests: Poisson arrivals, log-normal prompts, exponential answers; a seed decides all."""

from __future__ import annotations

import random

from windlass_runtime.simulate.virtual_time import Arrival

_SIGMA = 0.8
"""Spread of prompt lengths: the 95th percentile is 3.7 times the median."""


def build_trace(
    tenant: str,
    requests_per_s: float,
    seconds: float,
    *,
    seed: int,
    prompt_tokens: int = 1000,
    output_tokens: int = 150,
    longest_prompt: int = 6000,
    longest_output: int = 600,
) -> list[Arrival]:
    """One tenant's requests. prompt_tokens is the median of prompts, output_tokens the mean of answers."""
    draw, at_s, arrivals = random.Random(f"{seed}/{tenant}"), 0.0, []
    while (at_s := at_s + draw.expovariate(requests_per_s)) < seconds:
        prompt = int(draw.lognormvariate(0.0, _SIGMA) * prompt_tokens)
        output = int(draw.expovariate(1 / output_tokens))
        arrivals.append(Arrival(at_s, tenant, min(longest_prompt, max(1, prompt)), min(longest_output, max(1, output))))
    return arrivals


def build_flood(
    *, victim_requests_per_s: float, flood_factor: float, seconds: float, seed: int
) -> tuple[list[Arrival], list[Arrival]]:
    """A tenant `victim`, and a tenant `flooder` that sends `flood_factor` times as much of the same kind."""
    victim = build_trace("victim", victim_requests_per_s, seconds, seed=seed)
    return victim, build_trace("flooder", flood_factor * victim_requests_per_s, seconds, seed=seed)
