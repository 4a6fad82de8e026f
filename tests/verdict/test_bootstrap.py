"""Intervals of resampled texts, against what statistics says of simple cases."""

import math

import numpy as np
import pytest

from kdexport.verdict import bootstrap
from kdexport.verdict.bootstrap import Interval, ratio_of_sums


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = ratio_of_sums(list(values))
    error = values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    # 2,000 draws: a percentile's own error is a twentieth of a standard error
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_long_texts_count_for_more() -> None:
    assert ratio_of_sums([10.0, 1.0], [100.0, 1.0]).value == pytest.approx(11 / 101)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    held = [ratio_of_sums(list(rng.normal(size=60)), n_draws=400).covers(0) for _ in range(300)]
    assert 0.90 < np.mean(held) < 0.985  # 0.94 ± 0.014 at 60 units


def test_pairing_sees_what_is_smaller_than_the_scatter_of_texts() -> None:
    rng = np.random.default_rng(2)
    one = rng.gamma(1, 1, size=100)
    other = one + 0.01 + rng.normal(0, 0.01, size=100)
    assert not ratio_of_sums(list(other - one)).covers(0)
    alone = ratio_of_sums(list(one))
    assert alone.covers(ratio_of_sums(list(other)).value)


def test_one_text_has_no_scatter_and_draws_are_repeatable() -> None:
    assert ratio_of_sums([3.0], [2.0]) == Interval(1.5, 1.5, 1.5)
    values = list(np.random.default_rng(3).normal(size=30))
    assert ratio_of_sums(values) == ratio_of_sums(values)


def test_many_texts_are_drawn_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(3).normal(size=100))
    whole = ratio_of_sums(values, n_draws=500)
    monkeypatch.setattr(bootstrap, "MOST_COUNTS", 700)
    parts = ratio_of_sums(values, n_draws=500)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def test_an_interval_that_touches_no_difference_is_undecided() -> None:
    assert Interval(0.9, 0.8, 1.0).side(1) == "undecided"
    assert Interval(1.1, 1.01, 1.2).side(1) == "above"
    assert Interval(0.8, 0.7, 0.9).side(1) == "below"


@pytest.mark.parametrize(("above", "below"), [([], None), ([1.0], [1.0, 2.0])])
def test_what_does_not_match_is_refused(above: list[float], below: list[float] | None) -> None:
    with pytest.raises(ValueError, match="one number a unit"):
        ratio_of_sums(above, below)
