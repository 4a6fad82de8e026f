"""A teacher is asked for targets: whole, or the likeliest tokens of what it gives.

Knows models and batches; not whether anything is kept.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kdexport.errors import InputError
from kdexport.train.data import Batch
from kdexport.train.model import Reading, head_is_plain, head_of, low_precision, read_batch
from kdexport.train.targets import LOWEST, HeadTargets, TargetRows, Targets, joined, runs

TargetFn = Callable[[Batch], TargetRows]


def live_targets(
    teacher: Any,
    kept_ids: Sequence[int] | None,
    temperature: float,
    precision: str = "float32",
) -> TargetFn:
    """Ask the teacher at every call.

    ``kept_ids``: the teacher's id of each of the student's tokens (None: the vocabularies are the
    same). The teacher reads the same tokens as the student, and its distribution is renormalised
    over the student's vocabulary. ``precision``: of the products before its head.
    """
    kept = as_ids(kept_ids)
    told = told_by_reading(teacher, kept, temperature)

    @torch.no_grad()
    def ask(batch: Batch) -> TargetRows:
        with low_precision(teacher, precision):
            reading = read_batch(teacher, batch.renamed(kept))
        return told(reading)

    return ask


def told_by_reading(
    teacher: Any, kept: torch.Tensor | None, temperature: float
) -> Callable[[Reading], TargetRows]:
    """What a teacher's reading of a batch says, over the tokens of ``kept``: int64 [V], or all."""
    with torch.no_grad():
        weight, bias = head_of(teacher, kept) if head_is_plain(teacher) else (None, None)

    @torch.no_grad()
    def told(reading: Reading) -> TargetRows:
        if reading.hidden is None:
            logits = reading.to_logits(teacher, kept).float()
            return Targets(torch.log_softmax(logits / temperature, dim=-1))
        assert weight is not None
        return HeadTargets(reading.hidden, weight, bias, temperature)

    return told


def top_k_targets(ask: TargetFn, top_k: int, n_drawn: int = 0) -> TargetFn:
    """Only the ``top_k`` most likely tokens of what ``ask`` gives whole, and the tail's mass.

    ``n_drawn``: with so many draws from the tail; the same batch gives the same draws.
    """

    @torch.no_grad()
    def few(batch: Batch) -> Targets:
        asked = ask(batch)
        generator = torch.Generator().manual_seed(zlib.crc32(batch.ids.numpy().tobytes()))
        parts = [
            _top_k(asked.rows(rows), top_k, n_drawn, generator) for rows in runs(batch.n_targets)
        ]
        return joined(parts)

    return few


def as_ids(kept_ids: Sequence[int] | None) -> torch.Tensor | None:
    """The teacher's id of each of the student's tokens, int64 [V]; None: they are the same."""
    return None if kept_ids is None else torch.as_tensor(kept_ids, dtype=torch.long)


def _top_k(whole: Targets, top_k: int, n_drawn: int, generator: torch.Generator) -> Targets:
    """The likeliest tokens, and draws from the rest in proportion to the teacher's distribution."""
    logprobs = whole.logprobs
    best = logprobs.topk(top_k, dim=-1)
    # Summed, not one less the others: a sure teacher's tail is lost in float32's rounding of 1.
    others = logprobs.scatter(1, best.indices, -torch.inf)
    tail = torch.logsumexp(others, -1).clamp(min=LOWEST)
    if not n_drawn:
        return Targets(best.values, best.indices, tail)
    rest = logprobs.exp().scatter(1, best.indices, 0.0).clamp(min=1e-30)
    drawn = torch.multinomial(rest.cpu(), n_drawn, replacement=True, generator=generator)
    drawn = drawn.to(logprobs.device)
    return Targets(
        torch.cat([best.values, logprobs.gather(1, drawn)], -1),
        torch.cat([best.indices, drawn], -1),
        tail,
        n_drawn,
    )


def check_vocabularies(
    teacher_vocab: dict[str, int], student_vocab: dict[str, int], kept_ids: Sequence[int] | None
) -> None:
    """Refuse a student whose tokens are not the teacher's: equal sizes prove nothing."""
    teacher_token = {i: token for token, i in teacher_vocab.items()}
    for token, i in student_vocab.items():
        if kept_ids is not None and i >= len(kept_ids):
            found = None
        else:
            found = teacher_token.get(i if kept_ids is None else kept_ids[i])
        if found != token:
            raise InputError(
                f"teacher and student vocabularies do not match: the student's token {i} is "
                f"{json.dumps(token)}, the teacher's is {json.dumps(found)}",
                remedy="distil with a student made from this teacher's tokenizer",
            )
