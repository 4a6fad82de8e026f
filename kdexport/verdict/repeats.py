"""How far apart two benches of the same may lie, from the runs of one.

Whole runs are drawn again, since gaps of one run are alike, and one fewer than there are, or few
runs would seem surer than they are (Hesterberg 2015, What Teachers Should Know About the
Bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from kdexport.verdict.bootstrap import Interval

LEVEL = 0.99  # of an interval: a comparison has dozens
N_DRAWS = 500
Array = np.ndarray[Any, Any]


def runs_drawn(n_runs: int) -> Array:
    """Which runs each draw has, int [N_DRAWS, n_runs - 1].

    The same for all arms of a report: they took turns, and share what disturbed them.
    """
    return np.random.default_rng(0).integers(0, n_runs, (N_DRAWS, n_runs - 1))


def ratio_again(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Mean of ``above`` over mean of ``below``, a number a run, the two taken in turns.

    The interval is where another bench of as many runs would find it, at `LEVEL`: Student's, of the
    difference between two such benches, on the logarithm. Of one run it is the value alone. Raises
    ValueError where the two have not equally many runs, or none.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (above, below)]
    n_runs = len(sides[0])
    if not n_runs or n_runs != len(sides[1]):
        raise ValueError("both take equally many runs, and one at least")
    value = float(sides[0].mean() / sides[1].mean())
    if n_runs == 1:
        return Interval(value, value, value)
    drawn = runs_drawn(n_runs)
    error = np.log(sides[0][drawn].mean(-1) / sides[1][drawn].mean(-1)).std()
    width = student_t(n_runs - 1) * math.sqrt(2) * float(error)
    return Interval(value, value * math.exp(-width), value * math.exp(width))


def student_t(n_free: int) -> float:
    """Half the width of an interval at LEVEL in standard errors, for so many degrees of freedom.

    Cornish and Fisher's expansion about the normal (Abramowitz & Stegun 26.7.5).
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n_free + second / n_free**2 + third / n_free**3
