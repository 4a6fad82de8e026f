"""A small model guesses the next tokens, the big one judges them all in one call.

The guesses decide only which logits are computed ahead. Every token is chosen by the caller's
sampler from the big model's own logits, so a text is the one that it writes alone: greedy or
drawn, with the same seed, penalties and stops. (Leviathan et al. 2023 and Chen et al. 2023 accept
a guess with probability min(1, p / q), which keeps the distribution but not the text of a seed;
here a guess is drawn with the random number that will choose the token.) That logits do not depend
on how tokens are grouped into calls is the part of the session, opened ``exact``: `grouping_error`
tells.

Knows tokens of two vocabularies; no text beyond the tokens' own strings.
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdexport.errors import InputError
from kdexport.runtime.kv_cache import KVCache
from kdexport.runtime.logits import log_sum_exp
from kdexport.runtime.sample import Row, TokenSampler
from kdexport.runtime.session import Session
from kdexport.runtime.text import TextCodec

Array = np.ndarray[Any, Any]


@dataclass
class Guesses:
    """``n_calls`` of the big model after the prompt; tokens guessed, and guessed right."""

    n_calls: int = 0
    n_proposed: int = 0
    n_accepted: int = 0

    @property
    def acceptance(self) -> float:
        """The share of guesses that were right; 0 where there were none."""
        return self.n_accepted / max(self.n_proposed, 1)

    @property
    def tokens_per_call(self) -> float:
        """Tokens that a call of the big model gave; 1 without a draft."""
        return (self.n_calls + self.n_accepted) / max(self.n_calls, 1)


class Vocabularies:
    """The tokens of a draft in the target's numbers, and the other way round."""

    def __init__(self, target: dict[str, int], draft: dict[str, int]) -> None:
        pairs = sorted((number, target[text]) for text, number in draft.items())
        self.draft_ids = np.asarray([pair[0] for pair in pairs], dtype=np.int64)
        self.target_ids = np.asarray([pair[1] for pair in pairs], dtype=np.int64)
        self._draft = draft
        self._texts = {number: text for text, number in target.items()}
        self._pieces: dict[int, tuple[int, ...]] = {}

    def pieces(self, target_id: int) -> tuple[int, ...]:
        """A token of the target in the draft's: one, or the longest pieces of it from the left."""
        if target_id not in self._pieces:
            self._pieces[target_id] = self._split(self._texts.get(target_id, ""))
        return self._pieces[target_id]

    def _split(self, text: str) -> tuple[int, ...]:
        found: list[int] = []
        begin = 0
        while begin < len(text):
            ends = range(len(text), begin, -1)
            end = next((end for end in ends if text[begin:end] in self._draft), None)
            if end is None:  # a character that the draft does not know; it guesses without
                end = begin + 1
            else:
                found.append(self._draft[text[begin:end]])
            begin = end
        return tuple(found)


def match_vocabularies(target: TextCodec, draft: TextCodec) -> Vocabularies:
    """Compare two tokenizers token by token.

    Raises InputError unless each token of the draft's is one of the target's, with the same string
    and as special or not, and both make text of them in the same way.
    """
    remedy = "use a student of this teacher as its draft"
    read = [json.loads(codec.tokenizer.to_str()) for codec in (target, draft)]
    if read[0]["decoder"] != read[1]["decoder"]:
        raise InputError(
            "makes text of its tokens otherwise than the teacher", where=draft.where, remedy=remedy
        )
    special = [
        {token["content"] for token in one["added_tokens"] if token["special"]} for one in read
    ]
    vocabularies = [codec.tokenizer.get_vocab(with_added_tokens=True) for codec in (target, draft)]
    for text in sorted(vocabularies[1], key=vocabularies[1].__getitem__):
        if text not in vocabularies[0] or (text in special[0]) != (text in special[1]):
            raise InputError(
                f"its token {text!r} is not the teacher's", where=draft.where, remedy=remedy
            )
    return Vocabularies(*vocabularies)


class Speculation:
    """A target session with a draft beside it; for `generate`, in place of the session.

    One text at a time: ``generate(speculation, prompt_ids, speculation.choose, ...)``. Up to
    ``most`` tokens are guessed at once, as long as the draft gives it at least the probability
    ``sure`` that all its likeliest tokens are right. ``guesses`` counts, over all texts. Several
    texts at once are written without guesses.
    """

    def __init__(
        self,
        target: Session,
        draft: Session,
        vocabularies: Vocabularies,
        sampler: TokenSampler,
        *,
        most: int = 8,
        sure: float = 0.5,
    ) -> None:
        self.manifest = target.manifest
        self.guesses = Guesses()
        self._target = target
        self._sampler = sampler
        self._most = most
        self._draft = _Draft(draft, vocabularies, target.vocab_size, sampler, sure)
        self._row: Row | None = None
        self._cache: KVCache | None = None  # held: another may not get its identity
        self._ahead: list[int] = []  # guesses whose logits are there, after `_logits`' first row
        self._at = 0  # how many of them were right
        self._logits = np.empty((0, 0), dtype=np.float32)

    def new_cache(self, batch_size: int = 1, capacity: int = 256) -> KVCache:
        """The target's cache, for new texts."""
        return self._target.new_cache(batch_size, capacity)

    def choose(self, logits: Array, rows: Sequence[Row]) -> Array:
        """The sampler, which tells whose text it is by the way."""
        self._row = rows[0] if len(rows) == 1 else None
        return self._sampler(logits, rows)

    def run(
        self,
        ids: Array,
        cache: KVCache,
        *,
        lengths: Array | None = None,
        logit_rows: Array | None = None,
    ) -> Array:
        """`Session.run`; for the next token of a text it may have run already."""
        row = self._row
        if cache is not self._cache or row is None or ids.shape != (1, 1):
            self._cache, self._row = cache, None
            self._ahead, self._at = [], 0
            return self._target.run(ids, cache, lengths=lengths, logit_rows=logit_rows)
        token = int(ids[0, 0])
        if self._at < len(self._ahead) and self._ahead[self._at] == token:
            self._at += 1
            self.guesses.n_accepted += 1
            return self._logits[self._at : self._at + 1]
        cache.truncate(int(cache.lengths[0]) - (len(self._ahead) - self._at))
        room = cache.capacity - int(cache.lengths[0]) - 1
        self._ahead, self._at = self._draft.guess(row, min(self._most, room)), 0
        self.guesses.n_calls += 1
        self.guesses.n_proposed += len(self._ahead)
        tokens = np.asarray([[token, *self._ahead]], dtype=np.int64)
        self._logits = self._target.run(tokens, cache, logit_rows=np.arange(tokens.shape[1]))
        return self._logits[:1]


class _Draft:
    """The small model, and what it has read of the text under way."""

    def __init__(
        self,
        session: Session,
        vocabularies: Vocabularies,
        n_target: int,
        sampler: TokenSampler,
        sure: float,
    ) -> None:
        self._session = session
        self._vocabularies = vocabularies
        self._sampler = sampler
        self._sure = sure
        self._scores = np.full(n_target, -np.inf, dtype=np.float32)
        self._row: Row | None = None
        self._n_seen = 0  # tokens of the row that `_wanted` has in the draft's pieces
        self._wanted: list[int] = []
        self._held: list[int] = []  # what the cache holds
        self._n_right = 0  # how much of it is known to be the text's
        self._cache = session.new_cache(1, 1)

    def guess(self, row: Row, n_most: int) -> list[int]:
        """What the sampler would choose next if the draft's logits were the target's."""
        self._follow(row)
        room = self._session.manifest.model.max_length - len(self._wanted)
        n_most = min(n_most, room)
        guesses: list[int] = []
        if n_most <= 0 or not self._wanted:
            return guesses
        ahead = replace(row, ids=list(row.ids), generator=row.generator)
        if not self._sampler.greedy:
            ahead.generator = copy.deepcopy(row.generator)  # the row's own is not used up
        logits = self._read()
        all_right = 1.0
        while True:
            all_right *= math.exp(float(logits.max()) - log_sum_exp(logits))
            if all_right < self._sure:
                break
            self._scores[self._vocabularies.target_ids] = logits[self._vocabularies.draft_ids]
            try:
                chosen = int(self._sampler(self._scores[None], [ahead])[0])
            except InputError:  # each token that the draft knows is barred here
                break
            guesses.append(chosen)
            if len(guesses) == n_most:
                break
            ahead.ids.append(chosen)
            self._held += self._vocabularies.pieces(chosen)
            one = np.asarray([self._held[-1:]], dtype=np.int64)
            logits = self._session.run(one, self._cache)[0]
        return guesses

    def _follow(self, row: Row) -> None:
        """Take in what the text has got since the last time, or begin with another text."""
        if row is not self._row:
            self._row, self._n_seen, self._wanted, self._n_right = row, 0, [], 0
        for token in row.ids[self._n_seen :]:
            self._wanted += self._vocabularies.pieces(token)
        self._n_seen = len(row.ids)

    def _read(self) -> Array:
        """Read what is new, after forgetting wrong guesses; the logits of the last token."""
        wanted, held = self._wanted, self._held
        while self._n_right < min(len(wanted) - 1, len(held)):
            if wanted[self._n_right] != held[self._n_right]:
                break
            self._n_right += 1
        self._cache.truncate(self._n_right)
        new = np.asarray(wanted[self._n_right :], dtype=np.int64)[None]
        self._held = wanted.copy()
        return np.asarray(self._session.run(new, self._cache)[0])


def grouping_error(session: Session, ids: Sequence[int]) -> float:
    """How far logits of the last six tokens lie apart: read at once, by twos and threes, or alone.

    0: a text with a draft is the text without, to the bit, as in a session opened ``exact``. 1e-5
    is float32 summed in another order; where activations are rounded to 8 bits, that much turns
    some of them to the next step, which is 0.1 to 1 in the logits: texts then differ.
    """
    tokens = np.asarray(ids, dtype=np.int64)[None]
    n_before = max(tokens.shape[1] - 6, 0)
    cache = session.new_cache(1, tokens.shape[1] + 1)
    if n_before:
        session.run(tokens[:, :n_before], cache)
    rest = tokens[:, n_before:]
    found = []
    for size in (6, 1, 2, 3):
        cache.truncate(n_before)
        parts = [rest[:, at : at + size] for at in range(0, rest.shape[1], size)]
        calls = [(part, np.arange(part.size)) for part in parts]
        logits = [session.run(part, cache, logit_rows=rows).copy() for part, rows in calls]
        found.append(np.concatenate(logits))
    return float(np.abs(np.stack(found) - found[0]).max())
