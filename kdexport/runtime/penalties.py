"""What makes some tokens of a text less likely, or bars them, before one is chosen.

Every function changes one row's scores, float32 [V], in place: logits, or log-probabilities in a
beam search. Knows token ids; neither text nor how a token is drawn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def penalize_repetition(scores: Array, ids: Sequence[int], penalty: float) -> None:
    """Each token of ``ids``: score / penalty where positive, score · penalty where negative.

    Keskar et al. 2019, section 4.1.
    """
    used = np.asarray(ids, dtype=np.int64)
    value = scores[used]
    scores[used] = np.where(value > 0, value / penalty, value * penalty)


def penalize_counts(
    scores: Array, written: Sequence[int], frequency: float, presence: float
) -> None:
    """Take count · frequency + presence from the score of each token that was ``written``.

    The definition of OpenAI's API. The prompt does not count.
    """
    used, counts = np.unique(np.asarray(written, dtype=np.int64), return_counts=True)
    scores[used] -= (counts * frequency + presence).astype(np.float32)


def bar_repeated_ngrams(scores: Array, ids: Sequence[int], n: int) -> None:
    """Bar each token that would end an n-gram which ``ids`` has already (Paulus et al. 2017)."""
    text = np.asarray(ids, dtype=np.int64)
    n_grams = len(text) - n + 1
    if n_grams < 1:
        return
    same = np.ones(n_grams, dtype=bool)
    for place in range(n - 1):
        same &= text[place : place + n_grams] == text[len(text) - n + 1 + place]
    scores[text[n - 1 :][same]] = -np.inf
