"""What is done to the scores of a whole vocabulary, at the least cost.

A vocabulary is tens of thousands of numbers wide and this runs at every token. Knows arrays alone.
"""

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Rows = Array | Sequence[Array]  # [B, V], or B of [V] wherever they are
BLOCK = 256  # tokens whose sum is known before each of them is looked at
N_COLUMNS = 1024  # that a vocabulary is folded into, to find its highest scores
LEAST, MOST = 1e-20, 1e30  # a sum of float32 between them has lost no term that counts
# How far rounding may move a place in a running sum of float32, in shares of the total: by half of
# the error of a term and of a block's sum, 1.5e-6 (the other half is in the total alike). What was
# divided by a temperature is rounded besides, by 6e-8 of an exponent, which is below 88.
SLACK, SLACK_DIVIDED = 1e-6, 5e-6
FLOORS = (*(10.0**-n for n in range(2, 9)), 0.0)  # of weights, the largest of which is 1
_of_thread = threading.local()


def scratch(size: int) -> Array:
    """Room for float64 [size], of this thread and until its next call.

    Fresh memory of a vocabulary's size comes from the system at every token and costs more than
    the softmax.
    """
    held: Array = getattr(_of_thread, "held", np.empty(0))
    if len(held) < size:
        held = _of_thread.held = np.empty(size)
    return held[:size]


@lru_cache(maxsize=4)
def all_ids(size: int) -> Array:
    """0 to size - 1, int64, not to be written to."""
    numbers = np.arange(size, dtype=np.int64)
    numbers.flags.writeable = False
    return numbers


def weights_of(scores: Array, top: float, temperature: float) -> Array:
    """exp((score - top) / temperature), float64 [V], in `scratch`."""
    weights = scratch(len(scores))
    np.subtract(scores, top, out=weights, dtype=np.float64)
    if temperature != 1:
        weights /= max(temperature, 1e-100)  # from there on no two scores are told apart otherwise
    np.exp(weights, out=weights)
    return weights


def running_sums(rows: Rows, temperature: float = 1.0) -> Array:
    """Of exp(score / temperature), by blocks: float64 [B, V / BLOCK] of B rows, float32 [V].

    The highest score is not taken off first, which would cost as much again: a total between
    LEAST and MOST is right to 1e-5 of itself, others are not.
    """
    terms, blocks = _room_for_terms(len(rows[0]))
    sums = np.empty((len(rows), len(blocks)), dtype=np.float32)
    with np.errstate(all="ignore"):
        for scores, of_row in zip(rows, sums, strict=True):
            exponents = scores
            if temperature != 1:
                exponents = np.divide(scores, temperature, out=terms)
            np.exp(exponents, out=terms)
            np.einsum("ij->i", blocks, out=of_row)
    return sums.astype(np.float64).cumsum(-1)


def _room_for_terms(size: int) -> tuple[Array, Array]:
    """Float32 [V], of this thread and until the next call; and the same in whole blocks."""
    held: tuple[Array, Array] | None = getattr(_of_thread, "terms", None)
    if held is None or len(held[0]) != size:
        blocks = np.zeros((-(-size // BLOCK), BLOCK), dtype=np.float32)
        held = _of_thread.terms = blocks.reshape(-1)[:size], blocks
    return held


def place_at(number: float, reached: Array, scores: Array, temperature: float = 1.0) -> int | None:
    """Where a row's `running_sums` reach ``number`` (0 to 1) of their total.

    None where float32 is not enough to tell.
    """
    total = float(reached[-1])
    if not LEAST < total < MOST:
        return None
    block = int(reached.searchsorted(number * total, side="right"))
    rest = number * total - (float(reached[block - 1]) if block else 0.0)
    inside = scores[block * BLOCK : (block + 1) * BLOCK].astype(np.float64)
    if temperature != 1:
        inside /= temperature
    ends = np.exp(inside, out=inside).cumsum()
    place = int(ends.searchsorted(rest, side="right"))
    if place == len(ends):
        return None
    begin = float(ends[place - 1]) if place else 0.0
    slack = (SLACK if temperature == 1 else SLACK_DIVIDED) * total
    is_clear = min(rest - begin, float(ends[place]) - rest) > slack
    return block * BLOCK + place if is_clear else None


def log_sums(rows: Rows) -> list[float]:
    """The natural log of the sum of exp(logits), right to about 1e-6, of rows, float32 [V]."""
    totals = running_sums(rows)[:, -1].tolist()
    return [
        math.log(total) if LEAST < total < MOST else _log_sum_apart(logits)
        for total, logits in zip(totals, rows, strict=True)
    ]


def _log_sum_apart(logits: Array) -> float:
    top = logits.max()
    return float(top) + math.log(running_sums([logits - top])[0, -1])


def log_sum_exp(logits: Array) -> float:
    """`log_sums` of one row."""
    return log_sums([logits])[0]


def most_likely(scores: Array, n: int) -> Array:
    """The places of the ``n`` highest of [V] scores, highest first; of equal ones the first."""
    return highest(scores, min(n, len(scores)))[:n]


def highest(scores: Array, k: int) -> Array:
    """The places of the ``k`` highest of [V] scores, and of those as high as the last of them.

    Highest first, and of equal ones the first.
    """
    n_columns = max(N_COLUMNS, 4 * k)
    whole = len(scores) // n_columns * n_columns
    maxima = scores[:whole].reshape(-1, n_columns).max(0) if whole > n_columns else scores.copy()
    maxima.partition(len(maxima) - k)
    # The k-th highest of the columns' maxima is not above that of all.
    places = (scores >= maxima[-k]).nonzero()[0]
    found = scores[places]
    order = (-found).argsort(kind="stable")
    if len(order) > k:
        order = order[: np.count_nonzero(found >= found[order[k - 1]])]
    return np.asarray(places[order])


def nucleus(weights: Array, top_p: float) -> Array:
    """The smallest set of places whose weights reach ``top_p`` of their sum, heaviest first.

    The largest weight is 1; of equal ones the first come first. Sorting is confined to those that
    are needed.
    """
    wanted = top_p * weights.sum()
    for floor in FLOORS:
        places = np.flatnonzero(weights >= floor)
        if weights[places].sum() >= wanted:
            break
    places = places[np.argsort(-weights[places], kind="stable")]
    return places[: int(np.searchsorted(np.cumsum(weights[places]), wanted)) + 1]
