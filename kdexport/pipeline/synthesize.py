"""Sequence-level distillation data: the teacher writes the copy for each brief.

Kim & Rush 2016, section 3.2, with sampling in place of beam search. It runs on the project's own
torch-free engine. What was written before an interruption is not written again. Which of the drafts
are of use is told in `choosing`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel, Channels, load_channels
from kdexport.content.prompts import brief_messages
from kdexport.copywriting.checking import Checks
from kdexport.data.card import language_identifier
from kdexport.pipeline.choosing import Asked, Draft, Job, Review, Written, choose_drafts
from kdexport.runtime.generate import Completion, generate_batch
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.text import first_line
from kdexport.system.files import write_whole
from kdexport.system.journal import fingerprint

CHUNK = 64


@dataclass(frozen=True)
class Sampling:
    """How the teacher writes. ``variants``: copies for each brief.

    ``best_of``: candidates for each copy, of which ``scorer``, a row of `SCORERS`, takes the best,
    or where ``review`` is "drop" or "keep" all checks of copy do; where none passes, that is what
    becomes of the nearest.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    variants: int = 1
    best_of: int = 1
    scorer: str = "likelihood"
    review: str | None = None
    batch_size: int = 16
    seed: int = 0


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
    """Have the teacher write; keep the usable, as `choose_drafts` has it.

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
    drafts = write_drafts(jobs, session, codec, sampling, drafts_path, progress)
    review = None
    if sampling.review is not None:
        checks = Checks(channels, brand, language_identifier())
        review = Review(checks, keeps=sampling.review == "keep")
    return choose_drafts(jobs, drafts, scorer=sampling.scorer, brand=brand, review=review)


def write_drafts(
    jobs: Sequence[Asked],
    session: Any,
    codec: Any,
    sampling: Sampling,
    drafts_path: Path,
    progress: Callable[[int, int], None],
) -> Mapping[str, Draft]:
    """A draft for each job, by its id, and whatever else the file holds; see `synthesize`."""
    drafts = _load_drafts(drafts_path)
    waiting = [job for job in jobs if job.id not in drafts or drafts[job.id].key != job.key]
    waiting.sort(key=lambda job: (job.max_new_tokens, len(codec.render_chat(job.messages))))
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
    return drafts


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


def _write_chunk(
    jobs: Sequence[Asked], session: Any, codec: Any, sampling: Sampling
) -> list[Draft]:
    """One chunk of drafts; a draft's seed is its id, so chunks and batches change nothing."""
    sampler = make_sampler(
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k
    )
    drafts: list[Draft] = []
    for one_line in (True, False):
        group = [job for job in jobs if job.one_line is one_line]
        cut = first_line if one_line else str
        completions = generate_batch(
            session,
            [codec.encode(codec.render_chat(job.messages)) for job in group],
            sampler,
            max_new_tokens=[job.max_new_tokens for job in group],
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
