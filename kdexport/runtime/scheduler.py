"""Texts that join and leave a batch between two of its steps, each with options of its own.

Scheduling by iterations (Yu et al. 2022, Orca, section 3): no text waits for another's end. Knows
tokens; nothing of requests, threads or text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from kdexport.runtime.generate import Options, Step, Text, Writing, room_after
from kdexport.runtime.kv_cache import KVCache
from kdexport.runtime.sample import Sampler
from kdexport.runtime.session import Session

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Member:
    """A text in the batch. ``error``: why it ended without a step, if it did.

    ``chosen``: its next token, which the next step adds.
    """

    writing: Writing
    text: Text
    chosen: Step | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt that was read, for any number of texts to go on from.

    ``cache``: its keys and values, one row; ``logits``: of the token after it, float32 [V].
    """

    ids: Sequence[int]
    cache: KVCache
    logits: Array


class Batch:
    """Up to ``max_rows`` texts under way; its memory grows and shrinks with them by halves.

    A text depends on its prompt, its options and its key; on its neighbours only by rounding (see
    `generate_variants`).
    """

    def __init__(self, session: Session, max_rows: int = 32) -> None:
        self.max_rows = max_rows
        self._session = session
        self._cache: KVCache | None = None
        self._rows: list[Member | None] = []

    def __len__(self) -> int:
        return sum(member is not None for member in self._rows)

    @property
    def is_full(self) -> bool:
        """Whether another text has to wait."""
        return len(self) >= self.max_rows

    def add(
        self,
        prompt_ids: Sequence[int],
        sampler: Sampler,
        *,
        max_new_tokens: int,
        key: str = "",
        cache: KVCache | None = None,
        **options: Unpack[Options],
    ) -> Member:
        """Read a prompt; the next `step` gives its text's first token.

        Arguments and errors as in `generate`; ``key`` sets its draws apart from others of the seed.
        Raises RuntimeError where the batch is full.
        """
        if self.is_full:
            raise RuntimeError("the batch is full")
        writing = Writing(self._session, sampler, options)
        longest = len(prompt_ids) + writing.room(len(prompt_ids), max_new_tokens)
        prompt = self.read(prompt_ids, cache=cache or self._session.new_cache(1, longest))
        return self._join(
            prompt, prompt.cache, Text(0, writing.new_row(key, prompt_ids), longest), writing
        )

    def read(self, prompt_ids: Sequence[int], *, cache: KVCache | None = None) -> Prompt:
        """Read a prompt that several texts are to `begin` from; it takes no row.

        ``cache`` and errors as in `generate`.
        """
        room_after(self._session, len(prompt_ids), 1)
        read = cache or self._session.new_cache(1, len(prompt_ids))
        read.reserve(len(prompt_ids))
        rest = np.asarray(prompt_ids[int(read.lengths[0]) :], dtype=np.int64)
        return Prompt(prompt_ids, read, self._session.run(rest[None], read)[0].copy())

    def begin(
        self,
        prompt: Prompt,
        sampler: Sampler,
        *,
        max_new_tokens: int,
        key: str = "",
        **options: Unpack[Options],
    ) -> Member:
        """`add` for a prompt that was read, which stays as it is."""
        if self.is_full:
            raise RuntimeError("the batch is full")
        writing = Writing(self._session, sampler, options)
        longest = len(prompt.ids) + writing.room(len(prompt.ids), max_new_tokens)
        cache = prompt.cache
        if self._cache is None:
            cache = self._session.new_cache(1, longest)
            cache.put(0, prompt.cache)
        return self._join(
            prompt, cache, Text(0, writing.new_row(key, prompt.ids), longest), writing
        )

    def _join(self, prompt: Prompt, cache: KVCache, text: Text, writing: Writing) -> Member:
        """Give a text a row; the first one's cache becomes the batch's."""
        member = Member(writing, text)
        _choose([(member, prompt.logits)])
        row = self._free_row()
        if self._cache is None:
            cache.reserve(text.n_longest)
            self._cache = cache
        else:
            self._cache.reserve(text.n_longest)
            self._cache.put(row, cache)
        self._rows[row] = member
        return member

    def remove(self, member: Member) -> None:
        """End a text before its end; one that has ended is none of the batch's."""
        if member in self._rows:
            self._rows[self._rows.index(member)] = None
            self._shrink()

    def step(self) -> list[tuple[Member, Step | None]]:
        """`take` and `read_on`."""
        found = self.take()
        self.read_on()
        return found

    def take(self) -> list[tuple[Member, Step | None]]:
        """The next token of every text. Those that end leave; None: by `Member.error`."""
        found: list[tuple[Member, Step | None]] = []
        for row, member in enumerate(self._rows):
            if member is None:
                continue
            step = self._next(member)
            found.append((member, step))
            if step is None or step.finish_reason is not None:
                self._rows[row] = None
        self._shrink()
        return found

    def read_on(self) -> None:
        """Read what was taken, for the tokens after it."""
        if self._cache is not None:
            self._read(self._cache)

    def _next(self, member: Member) -> Step | None:
        if member.chosen is None:
            return None
        try:
            return member.writing.step(member.text, member.chosen)
        except Exception as error:  # whatever its end may raise: the others go on
            member.error = error
            return None

    def _read(self, cache: KVCache) -> None:
        """The last token of each text, and choose the next while the logits are there.

        An empty row reads a token that nothing sees.
        """
        tokens = [member.text.row.ids[-1] if member else 0 for member in self._rows]
        is_empty = [member is None for member in self._rows]
        cache.lengths[is_empty] = 0
        logits = self._session.run(np.asarray(tokens, dtype=np.int64)[:, None], cache)
        alike: dict[Any, list[tuple[Member, Array]]] = {}
        for member, values in zip(self._rows, logits, strict=True):
            if member is not None:
                alike.setdefault(member.writing.kind, []).append((member, values))
        for found in alike.values():
            _choose(found)

    def _free_row(self) -> int:
        """An empty row; where there is none, there become twice as many."""
        if None not in self._rows:
            n_more = max(1, min(len(self._rows), self.max_rows - len(self._rows)))
            if self._cache is not None:
                self._cache.add_rows(n_more)
            self._rows += [None] * n_more
        return self._rows.index(None)

    def _shrink(self) -> None:
        """Give rows back where half of them are empty, or all."""
        taken = [row for row, member in enumerate(self._rows) if member is not None]
        if not taken:
            self._rows, self._cache = [], None
        elif self._cache is not None and 2 * len(taken) <= len(self._rows):
            self._cache.keep_rows(taken)
            self._rows = [self._rows[row] for row in taken]


def _choose(found: Sequence[tuple[Member, Array]]) -> None:
    """Choose the next tokens of texts of one kind, each with its logits, float32 [V]."""
    members, logits = zip(*found, strict=True)
    for member in members:
        member.chosen = None
    try:
        rows = [member.text.row for member in members]
        for member, step in zip(members, members[0].writing.choose(rows, logits), strict=True):
            member.chosen = step
    except Exception as error:  # whatever a sampler may raise: the others go on
        if len(found) == 1:
            members[0].error = error
        else:  # none has drawn a number yet
            for one in found:
                _choose([one])
