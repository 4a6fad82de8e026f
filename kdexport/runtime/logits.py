"""What is done to the scores of a whole vocabulary, at the least cost.

A vocabulary is tens of thousands of numbers wide and this runs at every token. Knows arrays alone.
"""

import math
import threading
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
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
        with np.errstate(over="ignore"):  # of one near 0, under which one token is left
            weights /= temperature
    np.exp(weights, out=weights)
    return weights


def log_sum_exp(logits: Array) -> float:
    """The natural log of the sum of exp(logits), float32 [V]; right to about 1e-6."""
    top = float(logits.max())
    terms = scratch((len(logits) + 1) // 2).view(np.float32)[: len(logits)]
    np.subtract(logits, top, out=terms, dtype=np.float32)
    np.exp(terms, out=terms)  # in float32, which takes half the time of float64
    return top + math.log(terms.sum())


def most_likely(scores: Array, n: int) -> Array:
    """The places of the ``n`` highest of [V] scores, highest first; of equal ones the first."""
    places = np.flatnonzero(scores >= kth_largest(scores, min(n, len(scores))))
    return places[np.argsort(-scores[places], kind="stable")][:n]


def kth_largest(values: Array, k: int) -> Any:
    """The k-th largest of [V] values, without sorting all of them."""
    width = len(values) // (4 * k)
    if width > 1:  # the k-th largest of the blocks' maxima is not above it
        maxima = np.maximum.reduceat(values, np.arange(0, len(values), width))
        values = values[values >= np.partition(maxima, -k)[-k]]
    return np.partition(values, -k)[-k]


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
