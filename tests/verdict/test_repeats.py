"""What one bench says of another: intervals against simulation and tables."""

import numpy as np
import pytest

from kdexport.verdict.bootstrap import Interval
from kdexport.verdict.repeats import ratio_again, student_t


@pytest.mark.parametrize(("n_free", "expected"), [(4, 4.604), (8, 3.355), (18, 2.878), (98, 2.627)])
def test_student_s_t_is_the_table_s(n_free: int, expected: float) -> None:
    assert student_t(n_free) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("n_runs", [5, 10])
def test_another_bench_lies_within_it(n_runs: int) -> None:
    """Of three benches, each with 4 % of noise a run, all find the others' ratios: 0.93 of 300."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        found = [
            ratio_again(*(list(scale * rng.normal(1, 0.04, n_runs)) for scale in (100, 10)))
            for _ in range(3)
        ]
        held += all(one.low <= other.value <= one.high for one in found for other in found)
    assert held / 300 > 0.9


def test_what_disturbs_both_in_a_turn_cancels() -> None:
    rng = np.random.default_rng(1)
    machine = rng.normal(1, 0.2, 8)
    found = ratio_again(list(100 * machine), list(10 * machine))
    assert (found.low, found.high) == pytest.approx((10, 10))
    apart = ratio_again(list(100 * machine), list(10 * machine[::-1]))
    assert apart.high / apart.low > 1.5


def test_of_one_run_nothing_is_known_of_the_noise() -> None:
    assert ratio_again([20.0], [5.0]) == Interval(4.0, 4.0, 4.0)


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0, 2.0], [1.0])])
def test_what_took_no_turns_is_refused(above: list[float], below: list[float]) -> None:
    with pytest.raises(ValueError, match="equally many runs"):
        ratio_again(above, below)
