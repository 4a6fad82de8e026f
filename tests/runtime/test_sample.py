"""Samplers against their definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdexport.errors import InputError
from kdexport.runtime.logits import log_sums
from kdexport.runtime.sample import Distribution, Row, make_sampler, new_row

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


@given(
    seeds,
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 5, 29, 40]),
    st.floats(0.05, 1.0),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_the_distribution_is_that_of_transformers_warpers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """One after the other: temperature, top-k, top-p, min-p."""
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = some_logits(seed)
    scores = torch.from_numpy(logits.astype(np.float64))
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        scores = warper(torch.zeros(1, 0, dtype=torch.long), scores)
    expected = torch.softmax(scores[0], -1).numpy()

    sampler = make_sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = sampler.distribution(logits[0], new_row(0))
    assert found.probabilities.dtype == np.float64
    # Of float64 logits that came from float32 ones in both: 1e-12.
    np.testing.assert_allclose(spread(found), expected, atol=1e-12)


@given(seeds, st.floats(0.001, 0.999))
def test_min_p_keeps_those_at_least_that_share_as_likely(seed: int, min_p: float) -> None:
    logits = some_logits(seed)
    p = softmax(logits[0].astype(np.float64))
    found = make_sampler(temperature=1.0, min_p=min_p).distribution(logits[0], new_row(0))
    assert set(found.ids.tolist()) == set(np.flatnonzero(p >= min_p * p.max()).tolist())


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.05}, {"frequency_penalty": 1.0, "top_k": 9}],
    ids=str,
)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    logits = some_logits(4, v=700) / 2  # three blocks of the draw
    sampler, row, n = make_sampler(temperature=1.0, **options), new_row(5, prompt_ids=[1]), 20_000
    row.ids += [3, 3, 8]
    expected = sampler.distribution(logits[0], row)
    counts = np.zeros(700)
    for _ in range(n):
        counts[sampler(logits, [row])[0]] += 1
    wanted = spread(expected, 700) * n
    assert counts[wanted == 0].sum() == 0
    rare = (wanted < 5) & (wanted > 0)  # counted together, as the chi-square test wants it
    seen = np.append(counts[wanted >= 5], counts[rare].sum() if rare.any() else [])
    hoped = np.append(wanted[wanted >= 5], wanted[rare].sum() if rare.any() else [])
    chi2 = ((seen - hoped) ** 2 / hoped).sum()
    freedom = len(hoped) - 1
    # Its mean and four standard deviations: a right sampler fails once in some ten thousand seeds.
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)


class Fixed:
    """A generator that draws what it is told."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


@given(seeds, st.integers(2, 800), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_inverse_of_the_running_sum(seed: int, size: int, number: float) -> None:
    generator = np.random.default_rng(seed)
    p = generator.random(size) ** 4 * (generator.random(size) < 0.3)
    p[generator.integers(size)] += 0.1
    p /= p.sum()
    drawn = Distribution(np.arange(size) + 7, p).draw(Fixed(number)) - 7  # type: ignore[arg-type]
    reached = np.cumsum(p)
    assert p[drawn] > 0
    # Where the sums' rounding decides, either side is right.
    assert reached[drawn] - p[drawn] - 1e-12 <= number <= reached[drawn] + 1e-12


@pytest.mark.parametrize("number", [0.0, np.nextafter(0.5, 0), 0.5, np.nextafter(1.0, 0)])
def test_what_has_no_weight_is_never_drawn(number: float) -> None:
    p = np.zeros(1280)
    p[259] = p[777] = 0.5
    drawn = Distribution(np.arange(len(p)), p).draw(Fixed(number))  # type: ignore[arg-type]
    assert drawn == (259 if number < 0.5 else 777)


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.3, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "frequency_penalty": 0.5, "logit_bias": {4: -np.inf, 5: 2.0}},
    {"temperature": 0.9, "top_k": 9, "repetition_penalty": 1.4, "no_repeat_ngram": 2},
]


def plainly_chosen(scores: np.ndarray, row: Row, options: dict[str, Any]) -> int:
    """A token by the definitions, in long double, from scores after penalties, float32 [V]."""
    x = scores.astype(np.longdouble)
    order = np.argsort(-x, kind="stable")
    temperature, k, p = (
        options.get(n, d) for n, d in (("temperature", 0), ("top_k", 0), ("top_p", 1))
    )
    if not temperature:
        return int(order[0])
    if 0 < k < len(x):
        order = order[x[order] >= x[order[k - 1]]]
    weights = np.exp((x - x.max()) / temperature)
    if p < 1:
        reached = np.cumsum(weights[order])
        order = order[: int((reached < p * reached[-1]).sum()) + 1]
    order = order[weights[order] >= options.get("min_p", 0)]
    if p == 1:
        order = np.sort(order)
    if len(order) == 1:
        return int(order[0])
    reached = np.cumsum(weights[order])
    return int(order[int((reached <= row.generator.random() * reached[-1]).sum())])


@given(
    seeds,
    st.sampled_from(SAMPLINGS),
    st.integers(1, 6),
    st.sampled_from([30, 600, 5000]),
    st.sampled_from([0.3, 3.0, 30.0]),
    st.booleans(),
)
def test_a_batch_chooses_as_each_row_alone_and_as_the_definitions(
    seed: int, options: dict[str, Any], n_rows: int, v: int, spread: float, rounded: bool
) -> None:
    generator = np.random.default_rng(seed)
    sampler = make_sampler(**options)
    texts: list[list[Row]] = [
        [
            new_row(seed, str(number), [3, 5, 3], min_new_tokens=number % 3, end_ids=[1])
            for number in range(n_rows)
        ]
        for _ in range(3)
    ]
    together, alone, plain = texts
    for _ in range(4):
        logits = generator.normal(0, spread, (n_rows, v)).astype(np.float32)
        if rounded:  # some are equal
            logits = logits.round(1)
        tokens = sampler(logits, together).tolist()
        assert tokens == [
            int(sampler(one[None], [row])[0]) for one, row in zip(logits, alone, strict=True)
        ]
        assert tokens == [
            plainly_chosen(sampler.penalized(one, row), row, options)
            for one, row in zip(logits, plain, strict=True)
        ]
        for rows in texts:
            for row, token in zip(rows, tokens, strict=True):
                row.ids.append(token)


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
@pytest.mark.parametrize("broken", [-np.inf, np.nan])
def test_no_row_draws_where_one_has_no_token_left(options: dict[str, Any], broken: float) -> None:
    logits = np.concatenate([some_logits(1), np.full((1, 30), broken, dtype=np.float32)])
    rows = [new_row(0), new_row(1)]
    with pytest.raises(InputError, match="no token is left"):
        make_sampler(**options)(logits, rows)
    assert [row.generator.random() for row in rows] == [
        new_row(seed).generator.random() for seed in (0, 1)
    ]


@given(seeds, st.sampled_from([0.3, 3.0, 200.0]))
def test_sums_that_a_draw_brought_up_are_those_of_the_logits(seed: int, spread: float) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, (3, 700)).astype(np.float32)
    rows = [new_row(seed, str(number)) for number in range(3)]
    found = make_sampler(temperature=1.0).choose(logits, rows).log_sums
    assert found is None or found == log_sums(logits)
    assert (found is None) == (spread == 200)  # beyond what float32 holds
    for other in ({"temperature": 0.7}, {"temperature": 1.0, "logit_bias": {1: 5.0}}):
        assert make_sampler(**other).choose(logits, rows).log_sums is None
    barred = [new_row(seed, min_new_tokens=1, end_ids=[2])]
    assert make_sampler(temperature=1.0).choose(logits[:1], barred).log_sums is None


def test_greedy_is_one_token_with_probability_one() -> None:
    logits = some_logits(3)
    found = make_sampler().distribution(logits[0], new_row(0))
    assert (found.ids.tolist(), found.probabilities.tolist()) == ([logits.argmax()], [1.0])


def test_a_distribution_is_the_caller_s_to_keep() -> None:
    sampler, row = make_sampler(temperature=1.0), new_row(0)
    first = sampler.distribution(some_logits(1)[0], row)
    before = first.probabilities.copy()
    sampler.distribution(some_logits(2)[0], row)
    np.testing.assert_array_equal(first.probabilities, before)


def test_threads_do_not_disturb_each_other() -> None:
    from concurrent.futures import ThreadPoolExecutor

    logits = some_logits(1, v=50_000)
    sampler = make_sampler(temperature=1.0, top_p=0.9)

    def draw(key: int) -> list[int]:
        row = new_row(1, str(key))
        return [int(sampler(logits * (1 + key), [row])[0]) for _ in range(10)]

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(draw, range(8)))
    assert together == [draw(key) for key in range(8)]


def spread(found: Distribution, v: int = 30) -> np.ndarray:
    """The probabilities of all tokens."""
    whole = np.zeros(v)
    whole[found.ids] = found.probabilities
    return whole


def test_repetition_penalty_is_the_papers() -> None:
    logits = np.asarray([[2.0, 1.9, -1.0, -1.1]], dtype=np.float32)
    row = new_row(0, prompt_ids=[0])
    assert make_sampler(repetition_penalty=1.2)(logits, [row])[0] == 1  # 2.0 / 1.2 < 1.9
    assert logits[0, 0] == pytest.approx(2.0)  # the caller's logits are left alone


@pytest.mark.parametrize("temperature", [0, 1, 0.7])
def test_a_score_without_end_is_refused_before_any_row_draws(temperature: float) -> None:
    sampler = make_sampler(temperature=temperature)
    logits = np.zeros((2, 300), dtype=np.float32)
    logits[1, 7] = np.inf
    rows = [new_row(seed) for seed in range(2)]
    before = [row.generator.bit_generator.state for row in rows]
    with pytest.raises(InputError, match="no token is left"):
        sampler.choose(logits, rows)
    assert [row.generator.bit_generator.state for row in rows] == before


def test_a_bias_beyond_float32_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be added to a logit"):
        make_sampler(logit_bias={5: 1e39})
    make_sampler(logit_bias={5: -1e39})
