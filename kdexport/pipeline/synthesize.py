"""Sequence-level distillation data: the teacher writes the copy for each brief.

Kim & Rush 2016, section 3.2, with sampling in place of beam search. It runs on the project's own
torch-free engine. Of several candidates the best by a row of `SCORERS` is taken. What is unusable
is dropped and counted, and what was written before an interruption is not written again.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel, Channels, load_channels
from kdexport.content.checks import clean_copy, share_passed, strays, why_drop
from kdexport.content.prompts import Message, brief_messages, split_opening
from kdexport.content.review import review_wording
from kdexport.data.pairs import Pair
from kdexport.runtime.generate import Completion, generate_batch
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.text import first_line
from kdexport.system.files import write_whole
from kdexport.system.journal import fingerprint

CHUNK = 64


@dataclass(frozen=True)
class Sampling:
    """How the teacher writes. ``variants``: copies for each brief.

    ``best_of``: candidates for each copy, of which ``scorer``, a row of `SCORERS`, takes the best.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    variants: int = 1
    best_of: int = 1
    scorer: str = "likelihood"
    batch_size: int = 16
    seed: int = 0


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


@dataclass(frozen=True)
class Job:
    """One candidate for one variant of a brief, and what is asked of the teacher for it.

    ``copy_id``: of the copy that it is a candidate for.

    ``key`` is a fingerprint of all that the copy depends on. It has the messages in place of the
    rendered prompt: the template is the teacher's, and may write today's date into the prompt.
    """

    id: str
    copy_id: str
    brief: Brief
    channel: Channel
    messages: tuple[Message, ...]
    key: str


@dataclass(frozen=True)
class Written:
    """The usable pairs in the order of the briefs, and the ids of what was dropped, by reason.

    ``candidates``: how many were written, how many of them pass every check of copy, and how many
    that were taken are not the first for their copy.
    """

    pairs: list[Pair]
    dropped: dict[str, list[str]]
    candidates: dict[str, int]


def synthesize(
    briefs: Sequence[Brief],
    session: Any,
    codec: Any,
    sampling: Sampling,
    *,
    drafts_path: Path,
    teacher: str,
    progress: Callable[[int, int], None],
    channels: Channels | None = None,
    brand: Brand | None = None,
) -> Written:
    """Have the teacher write; keep the usable.

    ``drafts_path`` grows by a chunk at a time; of one that is not whole nothing is used, so that
    texts are always written in the same company, which their last bits depend on. A draft is used
    again where the teacher (by its fingerprint), the prompt and the sampling are what they were.
    """
    channels = channels or load_channels()
    jobs = [
        _job(brief, variant, candidate, sampling, teacher, channels[brief.channel], brand)
        for brief in briefs
        for variant in range(sampling.variants)
        for candidate in range(sampling.best_of)
    ]
    drafts = _load_drafts(drafts_path)
    waiting = [job for job in jobs if job.id not in drafts or drafts[job.id].key != job.key]
    waiting.sort(key=lambda job: (job.channel.max_new_tokens, len(codec.render_chat(job.messages))))
    n_done = len(jobs) - len(waiting)
    progress(n_done, len(jobs))
    with drafts_path.open("a", encoding="utf-8") as file:
        for begin in range(0, len(waiting), CHUNK):
            chunk = _write_chunk(waiting[begin : begin + CHUNK], session, codec, sampling)
            for n_following, draft in zip(range(len(chunk))[::-1], chunk, strict=True):
                drafts[draft.id] = draft
                file.write(_line(replace(draft, n_following=n_following)))
            file.flush()
            n_done += len(chunk)
            progress(n_done, len(jobs))
    best = _best(jobs, drafts, sampling)
    pairs, dropped = _select(best, drafts, brand)
    passing = [job for job in jobs if _share_passed(job, drafts[job.id]) == 1]
    firsts = {job.id for job in jobs[:: sampling.best_of]}
    later = [job for job in best if job.id not in firsts]
    counts = {"written": len(jobs), "passing": len(passing), "not the first": len(later)}
    return Written(pairs, dropped, counts)


def variant_ids(brief: Brief, variants: int) -> list[str]:
    """The ids of the pairs that a brief becomes."""
    return [f"{brief.id}-{n}" for n in range(variants)] if variants > 1 else [brief.id]


def _job(
    brief: Brief,
    variant: int,
    candidate: int,
    sampling: Sampling,
    teacher: str,
    channel: Channel,
    brand: Brand | None,
) -> Job:
    """The job of one candidate for a variant of a brief."""
    copy_id = variant_ids(brief, sampling.variants)[variant]
    name = f"{copy_id}#{candidate}" if sampling.best_of > 1 else copy_id
    messages = tuple(brief_messages(brief, channel, brand))
    how = [sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, name]
    asked = [messages, channel.max_new_tokens, channel.one_line]
    return Job(name, copy_id, brief, channel, messages, fingerprint(teacher, asked, how))


def _write_chunk(jobs: Sequence[Job], session: Any, codec: Any, sampling: Sampling) -> list[Draft]:
    """One chunk of drafts; a draft's seed is its id, so chunks and batches change nothing."""
    sampler = make_sampler(
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k
    )
    drafts: list[Draft] = []
    for one_line in (True, False):
        group = [job for job in jobs if job.channel.one_line is one_line]
        cut = first_line if one_line else str
        completions = generate_batch(
            session,
            [codec.encode(codec.render_chat(job.messages)) for job in group],
            sampler,
            max_new_tokens=[job.channel.max_new_tokens for job in group],
            seed=sampling.seed,
            stop_ids=codec.line_end_ids if one_line else (),
            batch_size=sampling.batch_size,
            row_keys=[job.id for job in group],
            n_logprobs=0 if sampling.best_of > 1 else None,
        )
        drafts += [
            Draft(
                job.id,
                cut(codec.decode(completion.ids)),
                completion.finished,
                job.key,
                logprob=_mean_logprob(completion) if sampling.best_of > 1 else None,
            )
            for job, completion in zip(group, completions, strict=True)
        ]
    return drafts


def _mean_logprob(completion: Completion) -> float:
    return sum(step.logprob or 0.0 for step in completion.steps) / len(completion.steps)


def _best(jobs: Sequence[Job], drafts: dict[str, Draft], sampling: Sampling) -> list[Job]:
    """Of the candidates for each copy the best, of equal ones the first."""
    scorer = SCORERS[sampling.scorer]
    return [
        max(candidates, key=lambda job: scorer(job, drafts[job.id]))
        for _, candidates in groupby(jobs, key=lambda job: job.copy_id)
    ]


def _added(job: Job, draft: Draft) -> tuple[str, str]:
    """A draft's opening, and what it adds.

    What goes on from an opening has no label or quotes around it that could be cleaned away.
    """
    _, opening = split_opening(job.messages)
    return opening, draft.text.rstrip() if opening else clean_copy(draft.text)


def _select(
    jobs: Sequence[Job], drafts: dict[str, Draft], brand: Brand | None
) -> tuple[list[Pair], dict[str, list[str]]]:
    """Clean the drafts and drop the unusable ones."""
    dropped: dict[str, list[str]] = {}
    seen: set[str] = set()
    pairs: list[Pair] = []
    for job in jobs:
        draft = drafts[job.id]
        opening, added = _added(job, draft)
        if not added:
            dropped.setdefault("empty", []).append(job.copy_id)
            continue
        reason = why_drop(opening + added, finished=draft.finished, seen=seen)
        reason = reason or ("stray" if strays(added, job.brief.facts) else None)
        reason = reason or next(
            (fault.check for fault in review_wording(opening + added, job.brief, brand)), None
        )
        if reason:
            dropped.setdefault(reason, []).append(job.copy_id)
            continue
        pairs.append(Pair(job.copy_id, job.brief.split, job.messages, added))
    return pairs, dropped


def _load_drafts(path: Path) -> dict[str, Draft]:
    """The last draft of each id, whatever it answers; the file is left with these alone.

    A chunk cut off by a kill, or what is no draft, is passed over.
    """
    drafts: dict[str, Draft] = {}
    chunk: list[Draft] = []
    lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else []
    for line in lines:
        try:
            draft = Draft(**json.loads(line))
        except (ValueError, TypeError):
            continue
        chunk.append(draft)
        if not draft.n_following:
            drafts |= {one.id: replace(one, n_following=0) for one in chunk}
            chunk = []
    write_whole(path, map(_line, drafts.values()))
    return drafts


def _line(draft: Draft) -> str:
    known = {name: value for name, value in vars(draft).items() if value is not None}
    return json.dumps(known, ensure_ascii=False) + "\n"


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
    return share_passed(opening, added, finished=draft.finished, facts=job.brief.facts)


SCORERS: Mapping[str, Scorer] = {"likelihood": _by_likelihood, "checks": _by_checks}
"""What the best of several candidates has most of, compared from the first number on."""
