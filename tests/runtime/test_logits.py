"""Work on a whole vocabulary's scores, against sorting all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.runtime.logits import kth_largest, log_sum_exp, most_likely, nucleus, weights_of

seeds = st.integers(0, 2**31)
scores = st.builds(
    # rounded: some are equal
    lambda seed, size, spread: np.round(
        np.random.default_rng(seed).normal(size=size) * spread, 1
    ).astype(np.float32),
    seeds,
    st.integers(1, 600),
    st.sampled_from([0.1, 1.0, 10.0]),
)


@given(scores, st.data())
def test_the_kth_largest(values: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    assert kth_largest(values, k) == np.sort(values)[-k]


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
    # Sums of up to 600 float64 in another order: 1e-12.
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
