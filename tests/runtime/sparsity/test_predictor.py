"""The predictor learns what its input tells of the shares, and nothing depends on chance."""

import numpy as np

from windlass_runtime.sparsity.predictor import train_predictor


def build_data(tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs whose sign pattern decides which of four blocks does most of the work."""
    x = np.random.default_rng(seed).standard_normal((tokens, 12)).astype(np.float32)
    shares = np.full((tokens, 4), 0.1, np.float32)
    shares[np.arange(tokens), 2 * (x[:, 0] > 0) + (x[:, 1] > 0)] = 0.7
    return x, shares


def test_it_ranks_the_blocks_of_tokens_it_never_saw() -> None:
    x, shares = build_data(4000, 0)
    unseen, expected = build_data(500, 1)

    found = train_predictor(x, shares, rank=16, epochs=40, seed=0).shares(unseen)

    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9
    assert np.allclose(found.sum(1), 1.0, atol=1e-5)


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    x, shares = build_data(600, 0)

    first, again, other = (train_predictor(x, shares, 8, 2, seed) for seed in (0, 0, 1))

    assert np.array_equal(first.narrow, again.narrow)
    assert np.array_equal(first.wide, again.wide)
    assert not np.array_equal(first.narrow, other.narrow)


def test_inputs_that_tell_nothing_give_the_average() -> None:
    shares = np.tile(np.array([0.6, 0.3, 0.1], np.float32), (400, 1))

    found = train_predictor(np.zeros((400, 5), np.float32), shares, 4, 2, 0).shares(np.zeros((1, 5), np.float32))

    assert np.allclose(found, [[0.6, 0.3, 0.1]], atol=0.01)
