"""Samplers against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.runtime.sample import make_sampler, new_row

seeds = st.integers(0, 2**31)


def some_logits(seed: int, v: int = 30) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(1, v)) * 3).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@given(seeds)
def test_temperature_zero_is_greedy(seed: int) -> None:
    logits = some_logits(seed)
    assert make_sampler()(logits, [new_row(0)])[0] == logits.argmax()


@given(seeds, st.integers(1, 30))
def test_top_k_draws_from_the_k_best(seed: int, k: int) -> None:
    logits = some_logits(seed)
    best = set(np.argsort(-logits[0])[:k].tolist())
    sample = make_sampler(temperature=1.5, top_k=k)
    row = new_row(seed)
    assert {int(sample(logits, [row])[0]) for _ in range(20)} <= best


@given(seeds, st.floats(0.05, 0.99))
def test_top_p_draws_from_the_smallest_set_that_reaches_p(seed: int, p: float) -> None:
    logits = some_logits(seed)
    probabilities = softmax(logits[0].astype(np.float64))
    order = np.argsort(-probabilities)
    n_needed = int((np.cumsum(probabilities[order]) < p).sum()) + 1
    sample = make_sampler(temperature=1.0, top_p=p)
    row = new_row(seed)
    drawn = {int(sample(logits, [row])[0]) for _ in range(20)}
    assert drawn <= set(order[:n_needed].tolist())


def test_frequencies_are_the_softmax() -> None:
    logits = some_logits(1, v=5) / 3
    sample, row, n = make_sampler(temperature=1.0), new_row(3), 20_000
    counts = np.bincount([int(sample(logits, [row])[0]) for _ in range(n)], minlength=5)
    # Five standard errors of a proportion: sqrt(0.25 / 20000) * 5 = 0.018.
    np.testing.assert_allclose(counts / n, softmax(logits[0]), atol=0.018)


@pytest.mark.parametrize("temperature", [1e-320, 1e-9])
@pytest.mark.filterwarnings("error")
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = some_logits(1)
    for options in ({}, {"top_k": 5}, {"top_p": 0.5}):
        sample = make_sampler(temperature=temperature, **options)  # type: ignore[arg-type]
        assert sample(logits, [new_row(0)])[0] == logits.argmax()


def test_a_masked_token_is_never_drawn() -> None:
    logits = np.full((1, 8), -np.inf, dtype=np.float32)
    logits[0, 3] = logits[0, 5] = 0.0
    sample, row = make_sampler(temperature=2.0), new_row(0)
    assert {int(sample(logits, [row])[0]) for _ in range(50)} == {3, 5}


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = np.concatenate([some_logits(i) for i in range(4)])
    sample = make_sampler(temperature=1.0)
    together = sample(logits, [new_row(7, str(i)) for i in range(4)])
    alone = [sample(logits[i : i + 1], [new_row(7, str(i))])[0] for i in range(4)]
    assert together.tolist() == alone


def test_repetition_penalty_is_the_papers() -> None:
    logits = np.asarray([[2.0, 1.9, -1.0, -1.1]], dtype=np.float32)
    row = new_row(0, prompt_ids=[0])
    assert make_sampler(repetition_penalty=1.2)(logits, [row])[0] == 1  # 2.0 / 1.2 < 1.9
    assert logits[0, 0] == pytest.approx(2.0)  # the caller's logits are left alone
