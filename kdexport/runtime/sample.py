"""From logits to the next tokens, in numpy.

Every row draws from a generator of its own, keyed by (seed, row key): a text does not depend on
what else is in its batch. Knows token ids; no text, no model.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kdexport.errors import InputError
from kdexport.runtime.logits import (
    LEAST,
    MOST,
    Rows,
    all_ids,
    highest,
    nucleus,
    place_at,
    running_sums,
    weights_of,
)
from kdexport.runtime.penalties import bar_repeated_ngrams, penalize_counts, penalize_repetition

Array = np.ndarray[Any, Any]
LARGEST_BIAS = float(np.finfo(np.float32).max) / 2  # a score and it are a finite float32


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
    """What a token is drawn from: ``ids``, int64 [K], in proportion to ``weights``, float64 [K]."""

    ids: Array
    weights: Array

    @property
    def probabilities(self) -> Array:
        """Those of the ids, float64 [K], sum 1."""
        return np.asarray(self.weights / self.weights.sum())

    def draw(self, generator: np.random.Generator) -> int:
        """One token; takes one number from the generator, none where there is no choice."""
        return int(self.ids[0]) if len(self.ids) == 1 else self.at(generator.random())

    def at(self, number: float) -> int:
        """The token at which the running sum of weights passes ``number`` (0 to 1) of the whole."""
        reached = self.weights.cumsum()
        total = float(reached[-1])
        wanted = min(number * total, math.nextafter(total, 0))
        return int(self.ids[reached.searchsorted(wanted, side="right")])


class Choices(NamedTuple):
    """The token ids of B rows.

    ``log_sums``: those of their logits (`kdexport.runtime.logits.log_sums`), where choosing brought
    them up.
    """

    ids: list[int]
    log_sums: list[float] | None = None


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


@dataclass(frozen=True)
class TokenSampler:
    """A `Sampler` that also tells what it draws from. Make one with `make_sampler`.

    A token is drawn by `distribution`, and found by less work where that is known to be the same.
    Equal samplers choose alike: rows of theirs can be given to one of them.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram: int
    logit_bias: tuple[tuple[int, float], ...]

    @cached_property
    def _bias(self) -> tuple[Array, Array]:
        ids = np.asarray([token for token, _ in self.logit_bias], dtype=np.int64)
        return ids, np.asarray([value for _, value in self.logit_bias], dtype=np.float32)

    @cached_property
    def changes(self) -> bool:
        """Whether a bias, penalties or bars change the scores."""
        counted = self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty
        return bool(counted or self.no_repeat_ngram or self.logit_bias)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    def __call__(self, logits: Array, rows: Sequence[Row]) -> Array:
        """Token ids, int64 [B], for logits, float32 [B, V], which are left as they are."""
        return np.asarray(self.choose(logits, rows).ids, dtype=np.int64)

    def choose(self, logits: Rows, rows: Sequence[Row]) -> Choices:
        """The next token of each of B rows, given their logits, float32 [V] each.

        Raises InputError where for one of them every token is barred or the logits are no numbers;
        then no row has drawn a number.
        """
        scores = [self.penalized(*one) for one in zip(logits, rows, strict=True)]
        if not (self.greedy or self.top_k or self.top_p < 1 or self.min_p):
            are_logits = not self.changes and all(row.may_end for row in rows)
            return self._from_all(scores, rows, are_logits=are_logits)
        best = [_best(*one) for one in zip(scores, rows, strict=True)]
        if self.greedy:
            return Choices(best)
        drawn = [
            self._choices(values, float(values[top])).draw(row.generator)
            for values, top, row in zip(scores, best, rows, strict=True)
        ]
        return Choices(drawn)

    def _from_all(self, scores: Rows, rows: Sequence[Row], *, are_logits: bool) -> Choices:
        """Draw without filters: by `distribution` only where float32 cannot tell the token."""
        reached = running_sums(scores, self.temperature)
        totals = reached[:, -1].tolist()
        are_sound = all(LEAST < total < MOST for total in totals)
        if not are_sound:
            for values, row in zip(scores, rows, strict=True):
                _best(values, row)
        ids = []
        for values, row, sums in zip(scores, rows, reached, strict=True):
            number = row.generator.random()
            place = place_at(number, sums, values, self.temperature)
            if place is None:
                place = self._choices(values, float(values.max())).at(number)
            ids.append(place)
        is_known = are_sound and are_logits and self.temperature == 1
        return Choices(ids, [math.log(total) for total in totals] if is_known else None)

    def distribution(self, logits: Array, row: Row) -> Distribution:
        """What the next token of a row is drawn from, given its logits, float32 [V].

        After all penalties and filters; greedy is one token with probability 1. Errors as in
        `choose`.
        """
        scores = self.penalized(logits, row)
        best = _best(scores, row)
        if self.greedy:
            return Distribution(np.asarray([best]), np.ones(1))
        found = self._choices(scores, float(scores[best]))
        return Distribution(found.ids, found.weights.copy())

    def _choices(self, scores: Array, top: float) -> Distribution:
        """What filters leave of a row whose highest score is ``top``.

        The weights may be overwritten by the next call.
        """
        ids: Array | None = None
        if 0 < self.top_k < len(scores):
            ids = highest(scores, self.top_k)
            if self.top_p == 1:  # a draw goes through the ids then
                ids.sort()
            scores = scores[ids]
        weights = weights_of(scores, top, self.temperature)
        if self.top_p < 1 and ids is not None:  # the heaviest first
            reached = weights.cumsum()
            n_kept = int(reached.searchsorted(self.top_p * float(reached[-1]))) + 1
            ids, weights = ids[:n_kept], weights[:n_kept]
        elif self.top_p < 1:
            ids = nucleus(weights, self.top_p)
            weights = weights[ids]
        if self.min_p > 0:  # the most likely token's weight is 1
            likely = np.flatnonzero(weights >= self.min_p)
            ids = likely if ids is None else ids[likely]
            weights = weights[likely]
        return Distribution(all_ids(len(weights)) if ids is None else ids, weights)

    def penalized(self, scores: Array, row: Row) -> Array:
        """The scores of a row, float32 [V], after bias, penalties and bars; a copy if they change.

        In this order: bias, repetition, frequency and presence, n-grams, too early an end.
        """
        if not self.changes and row.may_end:
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


def _best(scores: Array, row: Row) -> int:
    """The most likely token, the first of equal ones."""
    best = int(scores.argmax())
    if -np.inf < scores[best] < np.inf:
        return best
    raise InputError(
        "no token is left to choose from",
        where=f"token {len(row.ids) - row.n_prompt + 1} of the text",
        remedy="bar fewer tokens; or else the model's logits are not finite",
    )


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
        if token < 0 or math.isnan(value) or value > LARGEST_BIAS:
            raise InputError(
                f"{value} for token {token} cannot be added to a logit", where="logit_bias"
            )
    return TokenSampler(**options, logit_bias=tuple(bias.items()))


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
