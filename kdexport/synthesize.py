"""Sequence-level distillation data: the teacher writes the copy for each brief.

Kim & Rush 2016, section 3.2, with sampling in place of beam search. It runs on the project's own
torch-free engine. What is unusable is dropped and counted, and what was written before an
interruption is not written again.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.checks import clean_copy, why_drop
from kdexport.content.prompts import brief_messages, split_opening
from kdexport.pairs import Pair
from kdexport.runtime.generate import generate_batch
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.text import first_line

CHUNK = 64


@dataclass(frozen=True)
class Sampling:
    """How the teacher writes. ``variants``: copies for each brief."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    variants: int = 1
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Draft:
    """What the teacher wrote for one variant of a brief, as it came."""

    id: str
    text: str
    finished: bool


def synthesize(
    briefs: Sequence[Brief],
    session: Any,
    codec: Any,
    sampling: Sampling,
    *,
    drafts_path: Path,
    fingerprint: str,
    progress: Callable[[int, int], None],
) -> tuple[list[Pair], Counter[str]]:
    """Have the teacher write; return the usable pairs in the order of the briefs, and drop counts.

    ``drafts_path`` grows by a chunk at a time; drafts of another ``fingerprint`` are discarded.
    """
    drafts = _load_drafts(drafts_path, fingerprint)
    jobs = [
        (f"{brief.id}-{variant}" if sampling.variants > 1 else brief.id, brief)
        for brief in briefs
        for variant in range(sampling.variants)
    ]
    channels = load_channels()
    waiting = [job for job in jobs if job[0] not in drafts]
    waiting.sort(
        key=lambda job: (channels[job[1].channel].max_new_tokens, len(_prompt(job[1], codec)))
    )
    progress(len(jobs) - len(waiting), len(jobs))
    with drafts_path.open("a", encoding="utf-8") as file:
        for begin in range(0, len(waiting), CHUNK):
            for draft in _write_chunk(waiting[begin : begin + CHUNK], session, codec, sampling):
                drafts[draft.id] = draft
                file.write(json.dumps(vars(draft), ensure_ascii=False) + "\n")
            file.flush()
            progress(len(drafts), len(jobs))
    return _select(jobs, drafts)


def _prompt(brief: Brief, codec: Any) -> str:
    messages = brief_messages(brief, load_channels()[brief.channel])
    return str(codec.render_chat(messages))


def _write_chunk(
    jobs: Sequence[tuple[str, Brief]], session: Any, codec: Any, sampling: Sampling
) -> list[Draft]:
    """One chunk of drafts; a draft's seed is its id, so chunks and batches change nothing."""
    channels = load_channels()
    sampler = make_sampler(
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k
    )
    drafts: list[Draft] = []
    for one_line in (True, False):
        group = [job for job in jobs if channels[job[1].channel].one_line is one_line]
        cut = first_line if one_line else str
        completions = generate_batch(
            session,
            [codec.encode(_prompt(brief, codec)) for _, brief in group],
            sampler,
            max_new_tokens=[channels[brief.channel].max_new_tokens for _, brief in group],
            seed=sampling.seed,
            stop_ids=codec.line_end_ids if one_line else (),
            batch_size=sampling.batch_size,
            row_keys=[name for name, _ in group],
        )
        drafts += [
            Draft(name, cut(codec.decode(completion.ids)), completion.finished)
            for (name, _), completion in zip(group, completions, strict=True)
        ]
    return drafts


def _select(
    jobs: Sequence[tuple[str, Brief]], drafts: dict[str, Draft]
) -> tuple[list[Pair], Counter[str]]:
    """Clean the drafts and drop the unusable ones."""
    channels = load_channels()
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    pairs: list[Pair] = []
    for name, brief in jobs:
        draft = drafts[name]
        messages = brief_messages(brief, channels[brief.channel])
        _, opening = split_opening(messages)
        text = clean_copy(opening + draft.text)
        reason = why_drop(text, finished=draft.finished, seen=seen)
        if reason:
            dropped[reason] += 1
            continue
        pairs.append(Pair(name, brief.split, tuple(messages), text.removeprefix(opening)))
    return pairs, dropped


def _load_drafts(path: Path, fingerprint: str) -> dict[str, Draft]:
    """Drafts of this fingerprint; the file begins anew when it is of another one.

    A last line cut off by a kill is passed over.
    """
    drafts: dict[str, Draft] = {}
    if path.exists():
        lines = path.read_text("utf-8", errors="replace").split("\n")
        if lines[0] == json.dumps({"fingerprint": fingerprint}):
            for line in lines[1:]:
                try:
                    draft = Draft(**json.loads(line))
                except (json.JSONDecodeError, TypeError):
                    continue
                drafts[draft.id] = draft
    rows = [json.dumps(vars(draft), ensure_ascii=False) for draft in drafts.values()]
    head = json.dumps({"fingerprint": fingerprint})
    beside = path.with_suffix(".partial")
    beside.write_text("\n".join([head, *rows]) + "\n", "utf-8")
    beside.replace(path)
    return drafts
