"""From logits to the next tokens, in numpy.

Every row draws from a generator of its own, keyed by (seed, row key): a text does not depend on
what else is in its batch. Knows token ids; no text, no model.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdexport.errors import InputError
from kdexport.runtime.logits import all_ids, kth_largest, nucleus, weights_of
from kdexport.runtime.penalties import bar_repeated_ngrams, penalize_counts, penalize_repetition

Array = np.ndarray[Any, Any]
BLOCK = 256  # of the sums that a draw from a whole vocabulary looks through first


@dataclass
class Row:
    """One text under way: its random generator and the tokens it has so far.

    ``n_prompt``: how many of ``ids`` were read, not written. Until ``min_new_tokens`` are written,
    none of ``end_ids`` is chosen.
    """

    generator: np.random.Generator
    ids: list[int] = field(default_factory=list)
    n_prompt: int = 0
    min_new_tokens: int = 0
    end_ids: Collection[int] = ()

    @property
    def may_end(self) -> bool:
        """Whether the next token may be one that ends the text."""
        return len(self.ids) - self.n_prompt >= self.min_new_tokens


Sampler = Callable[[Array, Sequence[Row]], Array]


@dataclass(frozen=True)
class Distribution:
    """What a token is drawn from: ``ids``, int64 [K], and ``probabilities``, float64 [K], sum 1."""

    ids: Array
    probabilities: Array

    def draw(self, generator: np.random.Generator) -> int:
        """One token; takes one number from the generator, none where there is no choice."""
        weights = self.probabilities
        if len(weights) == 1:
            return int(self.ids[0])
        # A running sum over a whole vocabulary costs more than its softmax: first by blocks.
        begins = np.arange(0, len(weights), BLOCK)
        reached = np.cumsum(np.add.reduceat(weights, begins))
        wanted = generator.random() * reached[-1]
        block = min(int(np.searchsorted(reached, wanted, side="right")), len(begins) - 1)
        begin = int(begins[block])
        inside = np.cumsum(weights[begin : begin + BLOCK])
        rest = wanted - (reached[block - 1] if block else 0.0)
        place = begin + int(np.searchsorted(inside, rest, side="right"))
        if place >= begin + len(inside) or weights[place] == 0:  # by rounding, at a block's end
            place = begin + int(np.flatnonzero(weights[begin : begin + BLOCK])[-1])
        return int(self.ids[place])


def new_row(
    seed: int,
    key: str = "",
    prompt_ids: Sequence[int] = (),
    *,
    min_new_tokens: int = 0,
    end_ids: Collection[int] = (),
) -> Row:
    """A row whose draws depend on ``seed`` and ``key`` alone."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return Row(generator, list(prompt_ids), len(prompt_ids), min_new_tokens, end_ids)


@dataclass
class TokenSampler:
    """A `Sampler` that also tells what it draws from. Make one with `make_sampler`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram: int
    logit_bias: Mapping[int, float]
    _bias: tuple[Array, Array] = field(init=False, repr=False, compare=False)
    _changes: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = np.asarray(list(self.logit_bias), dtype=np.int64)
        self._bias = ids, np.asarray(list(self.logit_bias.values()), dtype=np.float32)
        counted = self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty
        self._changes = bool(counted or self.no_repeat_ngram or len(ids))

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    def __call__(self, logits: Array, rows: Sequence[Row]) -> Array:
        """Token ids, int64 [B], for logits, float32 [B, V], which are left as they are."""
        if self.greedy and not self._changes and all(row.may_end for row in rows):
            return np.asarray(logits.argmax(-1), dtype=np.int64)
        chosen = [
            self._choices(row_logits, row).draw(row.generator)
            for row_logits, row in zip(logits, rows, strict=True)
        ]
        return np.asarray(chosen, dtype=np.int64)

    def distribution(self, logits: Array, row: Row) -> Distribution:
        """What the next token of a row is drawn from, given its logits, float32 [V].

        After all penalties and filters; greedy is one token with probability 1. Raises InputError
        where every token is barred or the logits are no numbers.
        """
        found = self._choices(logits, row)
        return Distribution(found.ids, found.probabilities.copy())

    def _choices(self, logits: Array, row: Row) -> Distribution:
        """The distribution of a row; its probabilities may be overwritten by the next call."""
        scores = self.penalized(logits, row)
        best = int(scores.argmax())
        if not scores[best] > -np.inf:
            raise InputError(
                "no token is left to choose from",
                where=f"token {len(row.ids) - row.n_prompt + 1} of the text",
                remedy="bar fewer tokens; or else the model's logits are not finite",
            )
        if self.greedy:
            return Distribution(np.asarray([best]), np.ones(1))
        top = float(scores[best])
        ids: Array | None = None
        if 0 < self.top_k < len(scores):
            ids = np.flatnonzero(scores >= kth_largest(scores, self.top_k))
            scores = scores[ids]
        weights = weights_of(scores, top, self.temperature)
        kept = nucleus(weights, self.top_p) if self.top_p < 1 else None
        if self.min_p > 0:  # the most likely token's weight is 1
            likely = weights >= self.min_p
            kept = np.flatnonzero(likely) if kept is None else kept[likely[kept]]
        if kept is not None:
            weights = weights[kept]
            ids = kept if ids is None else ids[kept]
        weights /= weights.sum()
        return Distribution(all_ids(len(weights)) if ids is None else ids, weights)

    def penalized(self, scores: Array, row: Row) -> Array:
        """The scores of a row, float32 [V], after bias, penalties and bars; a copy if they change.

        In this order: bias, repetition, frequency and presence, n-grams, too early an end.
        """
        if not self._changes and row.may_end:
            return scores
        scores = scores.copy()
        ids, values = self._bias
        if len(ids):
            if ids.max() >= len(scores):
                raise InputError(
                    f"token {ids.max()} is not of the model's vocabulary of {len(scores)}",
                    where="logit_bias",
                )
            scores[ids] += values
        if self.repetition_penalty != 1:
            penalize_repetition(scores, row.ids, self.repetition_penalty)
        if self.frequency_penalty or self.presence_penalty:
            written = row.ids[row.n_prompt :]
            penalize_counts(scores, written, self.frequency_penalty, self.presence_penalty)
        if self.no_repeat_ngram:
            bar_repeated_ngrams(scores, row.ids, self.no_repeat_ngram)
        if not row.may_end:
            scores[list(row.end_ids)] = -np.inf
        return scores


def make_sampler(
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    no_repeat_ngram: int = 0,
    logit_bias: Mapping[int, float] | None = None,
) -> TokenSampler:
    """A function from logits, float32 [B, V], and the B rows to token ids, int64 [B].

    ``temperature`` 0 is greedy. ``top_k``: the k most likely tokens, and those as likely as the
    last of them; 0: all. ``top_p``: then the smallest set of tokens whose probability reaches it
    (Holtzman et al. 2020, section 3.1). ``min_p``: then those at least that share as likely as the
    most likely (Nguyen et al. 2024). ``repetition_penalty`` (Keskar et al. 2019, section 4.1) is
    of prompt and text, ``frequency_penalty`` and ``presence_penalty`` (OpenAI's API) of the text
    alone. ``no_repeat_ngram``: no n-gram of prompt and text comes twice; 0: any may.
    ``logit_bias``: token id to what is added to its logit; -inf bars it.
    Raises InputError, with the option's name, for a value out of its range.
    """
    options = dict(locals())
    bias = dict(options.pop("logit_bias") or {})
    for name, value in options.items():
        _check(name, value)
    for token, value in bias.items():
        if token < 0 or math.isnan(value) or value == math.inf:
            raise InputError(
                f"{value} for token {token} cannot be added to a logit", where="logit_bias"
            )
    return TokenSampler(**options, logit_bias=bias)


def _check(name: str, value: float) -> None:
    low, high = RANGES[name]
    if low <= value <= high:
        return
    wanted = f"finite and {low:g} or more" if high > 1e9 else f"between {low:g} and {high:g}"
    raise InputError(f"is {value:g}; it has to be {wanted}", where=name)


RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e300),
    "top_k": (0, 1e300),
    "top_p": (1e-9, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "no_repeat_ngram": (0, 1e300),
}
