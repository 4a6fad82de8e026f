"""Work on a whole vocabulary's scores, against sorting all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.runtime.logits import (
    BLOCK,
    highest,
    log_sum_exp,
    log_sums,
    most_likely,
    nucleus,
    place_at,
    running_sums,
    weights_of,
)

seeds = st.integers(0, 2**31)
scores = st.builds(
    # rounded: some are equal
    lambda seed, size, spread: np.round(
        np.random.default_rng(seed).normal(size=size) * spread, 1
    ).astype(np.float32),
    seeds,
    st.integers(1, 600) | st.integers(2000, 9000),
    st.sampled_from([0.1, 1.0, 10.0]),
)


@given(scores, st.data())
def test_the_highest_come_with_those_as_high_as_the_last(
    values: np.ndarray, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(values)))
    order = np.argsort(-values, kind="stable")
    n_wanted = int((values >= values[order[k - 1]]).sum())
    assert highest(values, k).tolist() == order[:n_wanted].tolist()


@given(scores, st.integers(1, 700))
def test_the_most_likely_come_first_and_of_equal_ones_the_first(values: np.ndarray, n: int) -> None:
    assert most_likely(values, n).tolist() == np.argsort(-values, kind="stable")[:n].tolist()


@given(scores, st.floats(0.01, 0.999))
def test_the_nucleus_is_the_smallest_set_that_reaches_p(values: np.ndarray, p: float) -> None:
    weights = weights_of(values, float(values.max()), 1.0)
    probabilities = weights / weights.sum()
    found = nucleus(weights, p)
    order = np.argsort(-probabilities, kind="stable")
    assert found.tolist() == order[: len(found)].tolist()
    # Sums of up to 9000 float64 in another order: 1e-12.
    assert probabilities[found].sum() >= p - 1e-12
    assert probabilities[found[:-1]].sum() < p + 1e-12


@given(scores)
def test_the_log_of_the_sum(values: np.ndarray) -> None:
    wide = values.astype(np.longdouble)
    # float32 terms, rounded to 6e-8 of themselves and summed pairwise
    assert log_sum_exp(values) == pytest.approx(float(np.log(np.exp(wide).sum())), abs=1e-6)


def test_large_logits_do_not_overflow() -> None:
    assert log_sum_exp(np.asarray([3e4, 3e4, -np.inf], dtype=np.float32)) == pytest.approx(
        3e4 + np.log(2), rel=1e-12
    )


@given(
    st.lists(seeds, min_size=1, max_size=5),
    st.integers(1, 3 * BLOCK),
    st.sampled_from([0.01, 0.7, 1.0, 3.0]),
)
def test_sums_of_rows_do_not_depend_on_their_number(
    several: list[int], size: int, temperature: float
) -> None:
    rows = [np.random.default_rng(s).normal(0, 9, size).astype(np.float32) for s in several]
    together = running_sums(np.stack(rows), temperature)
    for row, sums in zip(rows, together, strict=True):
        np.testing.assert_array_equal(running_sums([row], temperature)[0], sums)
    assert log_sums(rows) == [log_sum_exp(row) for row in rows]


@given(
    seeds,
    st.integers(1, 5 * BLOCK),
    st.sampled_from([0.1, 3.0, 30.0]),
    st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    st.floats(0, 1, exclude_max=True),
)
def test_a_place_is_the_exact_one_or_none(
    seed: int, size: int, spread: float, temperature: float, number: float
) -> None:
    row = np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)
    reached = np.cumsum(np.exp(row.astype(np.longdouble) / temperature))
    exact = int(np.searchsorted(reached, number * reached[-1], side="right"))
    sums = running_sums([row], temperature)[0]
    assert place_at(number, sums, row, temperature) in (None, exact)
    before = float(reached[exact - 1] / reached[-1]) if exact else 0.0
    for near in (before - 1e-9, before + 1e-9):  # float32 cannot tell which side that is
        place = int(np.searchsorted(reached, near * reached[-1], side="right"))
        assert place_at(near, sums, row, temperature) in (None, place)


def test_a_place_is_nearly_always_found() -> None:
    generator = np.random.default_rng(1)
    row = generator.normal(0, 3, 8192).astype(np.float32)
    for temperature in (1.0, 0.8):
        reached = running_sums([row], temperature)[0]
        places = [place_at(n, reached, row, temperature) for n in generator.random(1000)]
        assert places.count(None) < 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shift", [-200.0, -90.0, 88.0, 1e4])
def test_a_place_is_not_told_from_sums_that_float32_cannot_hold(shift: float) -> None:
    row = np.asarray([0, 1, 2, 3, -np.inf], dtype=np.float32) + np.float32(shift)
    sums = running_sums([row])[0]
    assert place_at(0.5, sums, row) is None
    # The shift's own rounding in float32 is 1e4 · 6e-8.
    expected = shift + np.log(np.exp([0.0, 1, 2, 3]).sum())
    assert log_sum_exp(row) == pytest.approx(expected, abs=1e-3)
