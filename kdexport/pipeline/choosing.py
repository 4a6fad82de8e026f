"""Which of a teacher's drafts become pairs, and why others do not. Knows no models, no files."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel
from kdexport.content.checks import clean_copy, share_passed, strays, why_drop, words_key
from kdexport.content.prompts import Message, split_opening
from kdexport.content.review import review_wording
from kdexport.copywriting.checking import Checks, check_of
from kdexport.copywriting.ranking import FAIL, Scored, choose
from kdexport.data.pairs import Pair

ALIKE = "alike"  # why a copy is dropped for which all that was written is taken


@dataclass(frozen=True)
class Draft:
    """What the teacher wrote for a job, as it came. ``key``: of its `Job`.

    ``n_following``: how many drafts of its chunk stand after it in the file. ``logprob``: the
    teacher's mean over the tokens it wrote, the end included, in nats at temperature 1; None where
    there is nothing to choose from.
    """

    id: str
    text: str
    finished: bool
    key: str
    n_following: int = 0
    logprob: float | None = None


class Asked(Protocol):
    """What the teacher is to write, under an id. ``key``: a fingerprint of all that it depends on.

    That has the messages in place of the rendered prompt: the template is the teacher's, and may
    write today's date into the prompt.
    """

    @property
    def id(self) -> str:
        """Of the draft."""
        ...

    @property
    def key(self) -> str:
        """Of the draft, too."""
        ...

    @property
    def messages(self) -> tuple[Message, ...]:
        """What it is asked."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """How long the answer may be."""
        ...

    @property
    def one_line(self) -> bool:
        """Whether it ends with its first line."""
        ...


@dataclass(frozen=True)
class Job:
    """One candidate for one variant of a brief, and what is asked of the teacher for it.

    ``copy_id``: of the copy that it is a candidate for. One of `Asked`.
    """

    id: str
    copy_id: str
    brief: Brief
    channel: Channel
    messages: tuple[Message, ...]
    key: str

    @property
    def max_new_tokens(self) -> int:
        """The channel's."""
        return self.channel.max_new_tokens

    @property
    def one_line(self) -> bool:
        """The channel's."""
        return self.channel.one_line


@dataclass(frozen=True)
class Review:
    """All checks of copy. ``keeps``: where no text passes, the nearest one is taken."""

    checks: Checks
    keeps: bool = False


@dataclass
class Written:
    """The usable pairs in the order of the briefs, and the ids of what was dropped, by reason.

    ``kept``: those that were taken though they fail the review, by the check. ``candidates``: how
    many were written, how many of them pass every check, and how many that were taken are not the
    first for their copy. ``faults``: how many of the reviewed ones fail, by the check.
    """

    pairs: list[Pair] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    candidates: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Taken:
    """What is taken for a copy. ``dropped``: why it is not; ``fault``: kept in spite of it."""

    copy_id: str
    job: Job | None  # None: nothing of use was written
    dropped: str | None = None
    fault: str | None = None


def choose_drafts(
    jobs: Sequence[Job],
    drafts: Mapping[str, Draft],
    *,
    scorer: str = "likelihood",
    brand: Brand | None = None,
    review: Review | None = None,
) -> Written:
    """The best candidate for each copy, cleaned; the unusable are dropped.

    ``jobs``: all candidates of a brief one after another, by copy. Without ``review`` the best by a
    row of `SCORERS` is taken. With it a brief's candidates are one pool: of the usable, those that
    pass come first, then as `ranking.choose` has it, no two nearly alike. Test texts are not
    reviewed: what is measured on is not picked by what is measured.
    """
    chooser = _Chooser(drafts, brand, SCORERS[scorer], review)
    found, n_later = Written(), 0
    for _, group in groupby(jobs, key=lambda job: job.brief.id):
        candidates = list(group)
        firsts = {next(of).id for _, of in groupby(candidates, key=lambda job: job.copy_id)}
        for taken in chooser.take(candidates):
            job = taken.job
            if job is None or taken.dropped is not None:
                found.dropped.setdefault(taken.dropped or ALIKE, []).append(taken.copy_id)
                continue
            _, added = _added(job, drafts[job.id])
            own = taken.copy_id, job.brief.split, job.messages, added
            found.pairs.append(Pair(*own, language=job.brief.language))
            n_later += job.id not in firsts
            if taken.fault is not None:
                found.kept.setdefault(taken.fault, []).append(taken.copy_id)
    passing = {"passing": chooser.n_passing, "not the first": n_later}
    found.candidates = {"written": len(jobs), **passing}
    found.faults = dict(chooser.faults.most_common())
    return found


class _Chooser:
    """Takes from the candidates of one brief after another; remembers what was taken before.

    The same words for another channel or in another language are no duplicate: a prompt of its own
    asks for them.
    """

    def __init__(
        self,
        drafts: Mapping[str, Draft],
        brand: Brand | None,
        scorer: "Scorer",
        review: Review | None,
    ) -> None:
        self._drafts = drafts
        self._brand = brand
        self._scorer = scorer
        self._review = review
        self._seen: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.n_passing = 0
        self.faults: Counter[str] = Counter()

    def take(self, candidates: Sequence[Job]) -> Iterable[_Taken]:
        """What is taken for each copy of a brief."""
        if self._review is None or candidates[0].brief.split == "test":
            return self._by_score(candidates)
        return self._by_review(candidates, self._review)

    def _by_score(self, candidates: Sequence[Job]) -> Iterator[_Taken]:
        passing = [job for job in candidates if _share_passed(job, self._drafts[job.id]) == 1]
        self.n_passing += len(passing)
        for copy_id, of_copy in groupby(candidates, key=lambda job: job.copy_id):
            job = max(of_copy, key=lambda job: self._scorer(job, self._drafts[job.id]))
            yield _Taken(copy_id, job, self._why_unusable(job, self._seen_like(job.brief)))

    def _by_review(self, candidates: Sequence[Job], review: Review) -> Iterator[_Taken]:
        scored: list[Scored] = []
        unusable: list[str] = []
        seen = self._seen_like(candidates[0].brief)
        for number, job in enumerate(candidates):
            draft = self._drafts[job.id]
            text = "".join(_added(job, draft)).strip()
            why = self._why_unusable(job, set())
            if why is None and words_key(text) in seen:
                why = "duplicate"
            if why is not None:
                unusable.append(why)
                self.faults[why] += 1
                continue
            checked = review.checks(job.brief, text, finished=draft.finished)
            self.faults.update({check_of(fault) for fault in checked.hard})
            self.n_passing += not checked.hard
            scored.append(Scored(number, text, checked, draft.logprob))
        copy_ids = list(dict.fromkeys(job.copy_id for job in candidates))
        reasons = iter(unusable)
        for copy_id, place in zip(copy_ids, choose(scored, len(copy_ids)), strict=True):
            if place.scored is None:
                yield _Taken(copy_id, None, dropped=next(reasons, ALIKE))
                continue
            job = candidates[place.scored.number]
            fault = check_of(place.violations[0]) if place.status == FAIL else None
            key = words_key(place.scored.text)
            if fault is not None and (key in seen or not review.keeps):
                yield _Taken(copy_id, job, dropped="duplicate" if key in seen else fault)
                continue
            seen.add(key)
            yield _Taken(copy_id, job, fault=fault)

    def _seen_like(self, brief: Brief) -> set[str]:
        """The words of what was taken for a brief's channel in its language."""
        return self._seen[brief.channel, brief.language]

    def _why_unusable(self, job: Job, seen: set[str]) -> str | None:
        """Why a draft is of no use, whatever the review; ``seen`` grows as in `why_drop`."""
        draft = self._drafts[job.id]
        opening, added = _added(job, draft)
        if not added:
            return "empty"
        text = opening + added
        reason = why_drop(text, finished=draft.finished, seen=seen)
        reason = reason or ("stray" if strays(added, job.brief.facts, job.brief.language) else None)
        faults = () if reason else review_wording(text, job.brief, self._brand)
        return reason or next((fault.check for fault in faults), None)


def _added(job: Job, draft: Draft) -> tuple[str, str]:
    """A draft's opening, and what it adds.

    What goes on from an opening, or is made of labelled parts, has no label or quotes around it
    that could be cleaned away.
    """
    _, opening = split_opening(job.messages)
    if opening:
        return opening, draft.text.rstrip()
    if job.channel.parts:
        return "", draft.text.strip()
    return "", clean_copy(draft.text, job.brief.language)


Scorer = Callable[[Job, Draft], tuple[float, ...]]


def _by_likelihood(job: Job, draft: Draft) -> tuple[float, ...]:
    """The teacher's mean log-probability; a candidate that adds nothing comes last."""
    _, added = _added(job, draft)
    return (-math.inf if draft.logprob is None or not added else draft.logprob,)


def _by_checks(job: Job, draft: Draft) -> tuple[float, ...]:
    """The share of the checks of copy that it passes, then its likelihood."""
    return (_share_passed(job, draft), *_by_likelihood(job, draft))


def _share_passed(job: Job, draft: Draft) -> float:
    opening, added = _added(job, draft)
    return share_passed(
        opening,
        added,
        finished=draft.finished,
        facts=job.brief.facts,
        language=job.brief.language,
    )


SCORERS: Mapping[str, Scorer] = {"likelihood": _by_likelihood, "checks": _by_checks}
"""What the best of several candidates has most of, compared from the first number on."""
