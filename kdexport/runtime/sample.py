"""From logits to the next tokens, in numpy.

Every row draws from a generator of its own, keyed by (seed, row key, step): a text does not depend
on what else is in its batch.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Row:
    """One text under way: its random generator and the tokens it has so far."""

    generator: np.random.Generator
    ids: list[int] = field(default_factory=list)


Sampler = Callable[[Array, Sequence[Row]], Array]


def new_row(seed: int, key: str = "", prompt_ids: Sequence[int] = ()) -> Row:
    """A row whose draws depend on ``seed`` and ``key`` alone."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return Row(np.random.default_rng(int.from_bytes(digest[:8], "big")), list(prompt_ids))


def make_sampler(
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
) -> Sampler:
    """A function from logits, float32 [B, V], and the B rows to token ids, int64 [B].

    ``temperature`` 0 is greedy. ``top_p``: the smallest set of tokens whose probability reaches it
    (Holtzman et al. 2020). ``repetition_penalty``: Keskar et al. 2019, section 4.1.
    """

    def sample(logits: Array, rows: Sequence[Row]) -> Array:
        if repetition_penalty != 1.0:
            logits = _penalize(logits, rows, repetition_penalty)
        if temperature == 0:
            return np.asarray(logits.argmax(-1), dtype=np.int64)
        chosen = [
            _draw(row_logits, row.generator, temperature, top_k, top_p)
            for row_logits, row in zip(logits, rows, strict=True)
        ]
        return np.asarray(chosen, dtype=np.int64)

    return sample


def _penalize(logits: Array, rows: Sequence[Row], penalty: float) -> Array:
    logits = logits.copy()
    for row_logits, row in zip(logits, rows, strict=True):
        used = np.unique(np.asarray(row.ids, dtype=np.int64))
        value = row_logits[used]
        row_logits[used] = np.where(value > 0, value / penalty, value * penalty)
    return logits


def _draw(
    logits: Array, generator: np.random.Generator, temperature: float, top_k: int, top_p: float
) -> int:
    """One token of one row. Sorting is confined to the tokens that can be drawn at all."""
    if top_k and top_k < len(logits):
        ids = np.argpartition(logits, -top_k)[-top_k:]
    elif top_p < 1.0:
        # Below e^-20 of the most likely token, all others together weigh under 1e-3 of it.
        ids = np.flatnonzero(logits >= logits.max() - 20.0 * temperature)
    else:
        ids = np.arange(len(logits))
    scores = logits[ids].astype(np.float64)
    with np.errstate(over="ignore"):  # of a temperature near 0, under which one token is left
        weights = np.exp((scores - scores.max()) / temperature)
    probabilities = weights / weights.sum()
    if top_p < 1.0:
        order = np.argsort(-probabilities, kind="stable")
        reached = np.cumsum(probabilities[order])
        order = order[: int(np.searchsorted(reached, top_p)) + 1]
        ids, probabilities = ids[order], probabilities[order] / probabilities[order].sum()
    position = int(np.searchsorted(np.cumsum(probabilities), generator.random()))
    return int(ids[min(position, len(ids) - 1)])
