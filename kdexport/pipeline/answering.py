"""Sequence-level distillation on prompts of one's own: the teacher answers those that stand alone.

Written as the copy of briefs is (`synthesize`): resumable, and the same whatever the batches.
What a good answer is nobody has said, so only those are left out that break off, say nothing or
repeat themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from kdexport.content.checks import is_repetitive
from kdexport.content.prompts import Message
from kdexport.data.pairs import Pair
from kdexport.pipeline.choosing import Draft
from kdexport.pipeline.synthesize import Sampling, write_drafts
from kdexport.system.journal import fingerprint


@dataclass(frozen=True)
class Question:
    """One candidate for the answer to a pair's prompt; see `choosing.Asked`."""

    pair: Pair
    id: str
    key: str
    max_new_tokens: int
    one_line: bool = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt's."""
        return self.pair.messages


@dataclass
class Answered:
    """The pairs in their order, all with a completion; the ids of what was dropped, by reason."""

    pairs: list[Pair] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)


def answer(
    pairs: Sequence[Pair],
    session: Any,
    codec: Any,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    drafts_path: Path,
    teacher: str,
    progress: Callable[[int, int], None],
) -> Answered:
    """Have the teacher answer the pairs that have no completion; the others stay as they are.

    Of ``sampling.best_of`` candidates the likeliest that is of use is taken. ``teacher``: its
    fingerprint. ``drafts_path``: see `synthesize`.
    """
    asked = [
        question
        for pair in pairs
        if not pair.completion
        for question in _questions(pair, sampling, teacher, max_new_tokens)
    ]
    drafts = write_drafts(asked, session, codec, sampling, drafts_path, progress)
    best = {
        name: _best([drafts[one.id] for one in group])
        for name, group in groupby(asked, key=lambda one: one.pair.id)
    }
    found = Answered()
    for pair in pairs:
        if pair.completion:
            found.pairs.append(pair)
        elif (reason := why_useless(best[pair.id])) is None:
            found.pairs.append(replace(pair, completion=best[pair.id].text.strip()))
        else:
            found.dropped.setdefault(reason, []).append(pair.id)
    return found


def why_useless(draft: Draft) -> str | None:
    """The reason to drop an answer: empty, truncated, repetitive; None when it is of use."""
    text = draft.text.strip()
    reasons: Mapping[str, bool] = {
        "empty": not text,
        "truncated": not draft.finished,
        "repetitive": is_repetitive(text),
    }
    return next((reason for reason, is_so in reasons.items() if is_so), None)


def _best(drafts: Sequence[Draft]) -> Draft:
    """The likeliest that is of use, or of all where none is."""
    useful = [draft for draft in drafts if why_useless(draft) is None]
    return max(useful or drafts, key=lambda draft: draft.logprob or 0.0)


def _questions(
    pair: Pair, sampling: Sampling, teacher: str, max_new_tokens: int
) -> Sequence[Question]:
    names = [pair.id]
    if sampling.best_of > 1:
        names = [f"{pair.id}#{n}" for n in range(sampling.best_of)]
    how = [sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed]
    return [
        Question(
            pair,
            name,
            fingerprint(teacher, [pair.messages, max_new_tokens], [*how, name]),
            max_new_tokens,
        )
        for name in names
    ]
