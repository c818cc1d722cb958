"""Sampling against a slow reference in float64, row by row."""

import dataclasses
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_runtime.backends.sampling import SamplingParams, TokenSampler, keep_candidates, sample
from windlass_runtime.errors import RequestError

GREEDY = SamplingParams(temperature=0)


def reference_probabilities(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """Token id -> probability after temperature, top-k, top-p, min-p; plain Python."""
    scaled = [value / params.temperature for value in logits]
    peak = max(scaled)
    weights = [math.exp(value - peak) for value in scaled]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    if params.top_k:
        order = order[: params.top_k]
    total = sum(weights[token] for token in order)
    probabilities = {token: weights[token] / total for token in order}
    kept, mass = {}, 0.0
    for token, probability in probabilities.items():
        if kept and (mass >= params.top_p or probability < params.min_p * probabilities[order[0]]):
            break
        kept[token] = probability
        mass += probability
    total = sum(kept.values())
    return {token: probability / total for token, probability in kept.items()}


def draw(logits: torch.Tensor, params: SamplingParams, seed: int = 0, prompt: tuple[int, ...] = ()) -> int:
    (token,) = sample(logits.unsqueeze(0), [TokenSampler(params, prompt, seed)])
    assert token is not None
    return token.token_id


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 2.0),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.9),
)
def test_the_kept_candidates_and_their_odds_agree_with_the_reference(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed)) * 3
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

    probabilities, ids = keep_candidates(logits / temperature, params)

    expected = reference_probabilities(logits.tolist(), params)
    found = dict(zip(ids.tolist(), (probabilities / probabilities.sum()).tolist(), strict=True))
    # float32 logits against float64: a candidate exactly on a border may fall on either side, and then shifts the rest.
    if found.keys() != expected.keys():
        border = found.keys() ^ expected.keys()
        assert len(border) == 1
        return
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(SamplingParams(), id="plain"),
        pytest.param(SamplingParams(temperature=0.5), id="temperature"),
        pytest.param(SamplingParams(top_k=3), id="top-k"),
        pytest.param(SamplingParams(top_p=0.7), id="top-p"),
        pytest.param(SamplingParams(min_p=0.2), id="min-p"),
    ],
)
def test_drawn_tokens_follow_the_reference_distribution(params: SamplingParams) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    draws = 4000
    samplers = [TokenSampler(params, (), fresh_seed) for fresh_seed in range(draws)]

    counts = Counter(token.token_id for token in sample(logits.expand(draws, -1), samplers) if token)

    expected = reference_probabilities(logits.tolist(), params)
    assert counts.keys() <= expected.keys()
    for token, probability in expected.items():
        # Five standard deviations of a binomial count.
        spread = 5 * math.sqrt(draws * probability * (1 - probability)) + 1
        assert abs(counts[token] - draws * probability) <= spread


def test_a_nucleus_wider_than_the_first_candidates_is_still_exact() -> None:
    logits = torch.linspace(0, 0.01, 5000)

    probabilities, ids = keep_candidates(logits, SamplingParams(top_p=0.9))

    expected = reference_probabilities(logits.tolist(), SamplingParams(top_p=0.9))
    # Nearly equal odds: a rounding error of 1e-7 per candidate may move the border by a few of 4,500.
    assert abs(len(ids) - len(expected)) <= 5
    assert float(probabilities.sum()) == pytest.approx(0.9, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.7, 1.0]),
            top_p=st.sampled_from([1.0, 0.8]),
            top_k=st.sampled_from([0, 5]),
            frequency_penalty=st.sampled_from([0.0, 0.5]),
            seed=st.integers(0, 99),
            top_logprobs=st.sampled_from([None, 2]),
        ),
        min_size=1,
        max_size=6,
    ),
    noise=st.integers(0, 1000),
)
def test_a_sequence_draws_the_same_tokens_alone_and_in_any_batch(rows: list[SamplingParams], noise: int) -> None:
    steps = torch.randn(4, len(rows), 64, generator=torch.Generator().manual_seed(noise)) * 2
    together = [TokenSampler(params, (1, 2), 0) for params in rows]
    alone = [TokenSampler(params, (1, 2), 0) for params in rows]

    for logits in steps:
        batched = sample(logits, together)
        single = [sample(logits[row : row + 1], [alone[row]])[0] for row in range(len(rows))]
        assert [token.token_id for token in batched if token] == [token.token_id for token in single if token]


def test_one_seed_repeats_and_two_seeds_differ() -> None:
    logits = torch.zeros(1000)
    params = SamplingParams(seed=5)

    assert draw(logits, params, seed=1) == draw(logits, params, seed=2)
    assert len({draw(logits, dataclasses.replace(params, seed=seed)) for seed in range(20)}) > 15


def test_penalties_and_bias_change_logits_as_documented() -> None:
    params = SamplingParams(
        temperature=0,
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias=((3, 1.5),),
    )
    sampler = TokenSampler(params, prompt=(0, 1), fresh_seed=0)
    for token in (2, 2, 3):
        sampler.record(token)
    logits = torch.tensor([4.0, -4.0, 4.0, 4.0, 4.0])

    adjusted = sampler.adjust(logits)

    # 0, 1 in the prompt: repetition only. 2 generated twice, 3 once: all penalties. 4 untouched.
    assert adjusted.tolist() == [2.0, -8.0, 2.0 - 0.5 - 0.5, 2.0 - 0.5 - 0.25 + 1.5, 4.0]
    assert logits.tolist() == [4.0, -4.0, 4.0, 4.0, 4.0]


def test_log_probabilities_describe_the_models_own_distribution() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    params = SamplingParams(temperature=0, logit_bias=((0, 100.0),), top_logprobs=2)

    (token,) = sample(logits, [TokenSampler(params, (), 0)])

    expected = torch.log_softmax(logits.double(), dim=-1)[0].tolist()
    assert token is not None
    assert (token.token_id, [token_id for token_id, _ in token.top]) == (0, [1, 2])
    assert token.logprob == pytest.approx(expected[0], abs=1e-6)
    assert [value for _, value in token.top] == pytest.approx([expected[1], expected[2]], abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_no_token_can_be_drawn_from_fails_alone(bad: float) -> None:
    logits = torch.zeros(3, 8)
    logits[1] = bad
    logits[0, 5] = 1

    tokens = sample(
        logits, [TokenSampler(GREEDY, (), 0), TokenSampler(SamplingParams(), (), 0), TokenSampler(GREEDY, (), 0)]
    )

    assert tokens[1] is None
    assert tokens[0] is not None
    assert tokens[0].token_id == 5


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6, 1e-3])
def test_tiny_temperatures_take_the_most_likely_token(temperature: float) -> None:
    logits = torch.tensor([1.0, 300.0, 299.0, -5.0])

    assert draw(logits, SamplingParams(temperature=temperature)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("temperature", -0.1, id="negative temperature"),
        pytest.param("temperature", 2.1, id="hot"),
        pytest.param("temperature", float("nan"), id="nan"),
        pytest.param("temperature", float("inf"), id="inf"),
        pytest.param("top_p", 0.0, id="empty nucleus"),
        pytest.param("top_p", 1.5, id="nucleus above one"),
        pytest.param("top_k", -2, id="negative top_k"),
        pytest.param("min_p", 1.1, id="min_p"),
        pytest.param("presence_penalty", 2.5, id="presence"),
        pytest.param("frequency_penalty", -2.5, id="frequency"),
        pytest.param("repetition_penalty", 0.0, id="repetition"),
        pytest.param("logit_bias", ((1, 101.0),), id="bias"),
        pytest.param("seed", 2**63, id="seed"),
        pytest.param("top_logprobs", 21, id="logprobs"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})

    assert caught.value.parameter == field
