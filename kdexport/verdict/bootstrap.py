"""Intervals by drawing units (texts, briefs, runs) anew; knows no report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
N_DRAWS = 2000
COVERED = 95  # per cent
MOST_COUNTS = 2**21  # in memory at once
FEW_UNITS = 64


@dataclass(frozen=True)
class Interval:
    """A value and the 95 % percentile interval of its bootstrap."""

    value: float
    low: float
    high: float

    def covers(self, same: float = 0.0) -> bool:
        """Whether ``same`` lies within it: a difference that may be noise."""
        return self.low <= same <= self.high

    def side(self, same: float) -> str:
        """Which side of ``same`` it is on, if the interval says so."""
        if self.covers(same):
            return "undecided"
        return "above" if self.low > same else "below"


def ratio_of_sums(
    above: Sequence[float], below: Sequence[float] | None = None, n_draws: int = N_DRAWS
) -> Interval:
    """Σ above / Σ below over units that are drawn anew, with replacement (Efron & Tibshirani 1993).

    ``above`` and ``below`` hold a number for each unit, not none; without ``below`` it is the mean
    of ``above``. For a paired comparison ``above`` holds differences within a unit: both sides get
    the same draw. The draws are the same for the same number of units. Of one unit the interval
    is its value alone. Raises ValueError where the two do not match.
    """
    numbers = np.asarray(above, dtype=np.float64)
    weights = np.ones_like(numbers) if below is None else np.asarray(below, dtype=np.float64)
    if not len(numbers) or numbers.shape != weights.shape:
        raise ValueError("one number a unit is wanted, above and below")
    draw = _kept_counts if len(numbers) <= FEW_UNITS else drawn_counts
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = [(counts @ numbers) / (counts @ weights) for counts in draw(len(numbers), n_draws)]
    return interval_of(numbers.sum() / weights.sum(), np.concatenate(drawn))


def interval_of(value: float, draws: Array) -> Interval:
    """The percentile interval of a value that came out so in each draw; infinite ones aside."""
    rest = (100 - COVERED) / 2
    low, high = np.percentile(draws[np.isfinite(draws)], [rest, 100 - rest])
    return Interval(float(value), float(low), float(high))


@lru_cache(maxsize=16)
def _kept_counts(n_units: int, n_draws: int) -> Sequence[Array]:
    """Those of few units: a report has many intervals of equally many texts."""
    return [*drawn_counts(n_units, n_draws)]


def drawn_counts(n_units: int, n_draws: int, seed: int = 0) -> Iterator[Array]:
    """How often each draw has each unit, int [draws, units], a part of the draws at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, MOST_COUNTS // n_units)
    for begin in range(0, n_draws, step):
        yield rng.multinomial(
            n_units, np.full(n_units, 1 / n_units), size=min(step, n_draws - begin)
        )
