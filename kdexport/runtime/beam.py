"""Beam search: the likeliest whole text, as far as a few beginnings kept at each step tell.

The rules are those of transformers' `generate`, so that a model writes the same in both. Knows
tokens; no text.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Required, TypedDict, Unpack

import numpy as np

from kdexport.errors import InputError
from kdexport.runtime.generate import Runs, check_least, room_after
from kdexport.runtime.logits import log_sum_exp, most_likely
from kdexport.runtime.sample import Row, TokenSampler, make_sampler, new_row

Array = np.ndarray[Any, Any]
EarlyStopping = bool | Literal["never"]


class BeamOptions(TypedDict, total=False):
    """How a beam search goes.

    ``width``: how many beams are kept. ``n``: how many texts are wanted, up to ``width``.
    ``length_penalty``: a text's score is its log-probability over its length to this power; above
    0 favours long texts. ``early_stopping``: with ``width`` texts ended, True stops at once, False
    when no beam has a better score now, "never" when none can get one.
    ``sampler``: its penalties and bars hold; it has to be greedy. ``stops`` is told the tokens of a
    text so far; True ends it there. The others as in `generate`'s options.
    """

    width: Required[int]
    max_new_tokens: Required[int]
    n: int
    min_new_tokens: int
    length_penalty: float
    early_stopping: EarlyStopping
    sampler: TokenSampler
    stop_ids: Collection[int]
    stops: Callable[[Sequence[int]], bool] | None


@dataclass(frozen=True)
class Beam:
    """A text: its new tokens, with the one that ended it; the sum of their log-probabilities
    (natural, after penalties); its score; "stop" or "length".
    """

    ids: list[int]
    logprob: float
    score: float
    finish_reason: str


def beam_search(
    session: Runs, prompt_ids: Sequence[int], **options: Unpack[BeamOptions]
) -> list[Beam]:
    """The ``n`` best texts after a prompt, best first.

    Raises InputError as `generate` does, for a sampler that draws, and for ``n`` above ``width``.
    """
    search = _Search(session, prompt_ids, options)
    cache = session.new_cache(1, len(prompt_ids) + search.n_new)
    logits = session.run(np.asarray(prompt_ids, dtype=np.int64)[None], cache)
    while (parents := search.advance(logits)) is not None:
        if parents != list(range(len(cache.lengths))):
            cache.keep_rows(parents)
        last = np.asarray([[row.ids[-1]] for row in search.rows], dtype=np.int64)
        logits = session.run(last, cache)
    return search.ended[: options.get("n", 1)]


class _Search:
    """The beams that go on (``rows``, best first) and the best texts that have ended."""

    def __init__(self, session: Runs, prompt_ids: Sequence[int], options: BeamOptions) -> None:
        self.width = options["width"]
        self.sampler = options.get("sampler") or make_sampler()
        self.length_penalty = options.get("length_penalty", 1.0)
        self.early_stopping = options.get("early_stopping", False)
        self.stops = options.get("stops")
        eos_ids = session.manifest.text.eos_token_ids
        self.end_ids = frozenset(eos_ids).union(options.get("stop_ids", ()))
        n, shortest = options.get("n", 1), options.get("min_new_tokens", 0)
        check_least(1, n=n)
        check_least(n, width=self.width)
        check_least(0, min_new_tokens=shortest)
        if not self.sampler.greedy:
            raise InputError("a beam search draws no tokens", remedy="leave the temperature at 0")
        self.n_new = room_after(session, len(prompt_ids), options["max_new_tokens"], shortest)
        row = new_row(0, "", prompt_ids, min_new_tokens=shortest, end_ids=self.end_ids)
        self.rows = [row]
        self.totals = [0.0]
        self.ended: list[Beam] = []

    def advance(self, logits: Array) -> list[int] | None:
        """Go on by one token, given the logits of all rows, float32 [B, V].

        Returns for each of the new rows which of the old ones it goes on from; None at the end.
        """
        n_written = len(self.rows[0].ids) - self.rows[0].n_prompt + 1
        going: list[tuple[int, Row, float]] = []
        for rank, (parent, token_id, total) in enumerate(self._best(logits)):
            row = replace(self.rows[parent], ids=[*self.rows[parent].ids, token_id])
            reason = self._why_end(row, n_written)
            if reason is None:
                going.append((parent, row, total))
            elif rank < self.width:
                score = total / n_written**self.length_penalty
                self.ended.append(Beam(row.ids[row.n_prompt :], total, score, reason))
            if len(going) == self.width:
                break
        self.ended = sorted(self.ended, key=lambda beam: -beam.score)[: self.width]
        self.rows = [row for _, row, _ in going]
        self.totals = [total for _, _, total in going]
        if not going or not self._may_improve(n_written):
            return None
        return [parent for parent, _, _ in going]

    def _best(self, logits: Array) -> Iterator[tuple[int, int, float]]:
        """The likeliest continuations: row, token and the text's log-probability, best first."""
        n_rows, n_tokens = logits.shape
        totals = np.empty((n_rows, n_tokens))
        for row_totals, row_logits, row, total in zip(
            totals, logits, self.rows, self.totals, strict=True
        ):
            scores = row_logits.astype(np.float64) - log_sum_exp(row_logits)
            np.add(self.sampler.penalized(scores, row), total, out=row_totals)
        # So many that the end tokens of every row cannot take the places of all others.
        n_wanted = min(max(2, 1 + len(self.end_ids)) * self.width, totals.size)
        flat = totals.reshape(-1)
        for place in most_likely(flat, n_wanted).tolist():
            if flat[place] > -np.inf:
                yield place // n_tokens, place % n_tokens, float(flat[place])

    def _why_end(self, row: Row, n_written: int) -> str | None:
        if row.ids[-1] in self.end_ids or (self.stops and self.stops(row.ids[row.n_prompt :])):
            return "stop"
        return "length" if n_written >= self.n_new else None

    def _may_improve(self, n_written: int) -> bool:
        """Whether the best beam could yet be better than the worst of the texts that have ended."""
        if len(self.ended) < self.width:
            return True
        if self.early_stopping is True:
            return False
        far = self.early_stopping == "never" and self.length_penalty > 0
        length = self.n_new if far else n_written
        possible: float = self.totals[0] / length**self.length_penalty
        return possible > self.ended[-1].score
