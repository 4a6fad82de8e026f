"""What a cache keeps of a teacher's targets, and the targets that come of it again: a form each.

Numbers are in half precision, token ids in 16 bits where the vocabulary has no more. Knows teachers
and targets; not where columns are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kdexport.errors import InputError
from kdexport.train.cache import Columns, TargetCache
from kdexport.train.data import Batch
from kdexport.train.model import head_is_plain, head_of, low_precision, read_batch
from kdexport.train.sampled import Drawn, sampled
from kdexport.train.targets import HeadTargets, TargetRows, Targets
from kdexport.train.teacher import TargetFn, as_ids, top_k_targets

HALF = 2  # bytes


@dataclass(frozen=True)
class Form:
    """A way to keep targets: what is written of a batch's N tokens, and what it means.

    ``bytes_per_token``: of all its columns.
    """

    ask: Callable[[Batch], Columns]
    read: Callable[[Columns], TargetRows]
    bytes_per_token: int

    def targets(self, cache: TargetCache) -> TargetFn:
        """The targets of a filled cache; they do not keep the teacher in memory."""
        read = self.read
        return lambda batch: read(cache.columns(batch))


def id_type(vocab_size: int) -> torch.dtype:
    """The smallest type that holds the ids of a vocabulary."""
    return torch.uint16 if vocab_size <= 2**16 else torch.int32


def top_k_form(ask: TargetFn, vocab_size: int, top_k: int, n_drawn: int = 0) -> Form:
    """The ``top_k`` most likely tokens of what ``ask`` gives whole, and the tail's mass.

    Columns: ``ids`` and ``logprobs`` [N, k + n_drawn], the last ``n_drawn`` of them draws from the
    tail; ``tail`` [N].
    """
    few = top_k_targets(ask, top_k, n_drawn)
    dtype = id_type(vocab_size)

    def columns(batch: Batch) -> Columns:
        targets = few(batch).rows(slice(None))
        assert targets.ids is not None and targets.tail is not None
        return {
            "ids": targets.ids.to(dtype),
            "logprobs": targets.logprobs.half(),
            "tail": targets.tail.half(),
        }

    n_bytes = top_k_bytes(vocab_size, top_k + n_drawn)
    return Form(columns, partial(read_top_k, n_drawn=n_drawn), n_bytes)


def top_k_bytes(vocab_size: int, n: int) -> int:
    """Bytes of ``n`` tokens, their log-probabilities and one number more."""
    return (id_type(vocab_size).itemsize + HALF) * n + HALF


def read_top_k(kept: Columns, n_drawn: int = 0) -> Targets:
    """The targets of the columns of `top_k_form`."""
    return Targets(kept["logprobs"].float(), kept["ids"].long(), kept["tail"].float(), n_drawn)


def sampled_form(ask: TargetFn, vocab_size: int, n_sampled: int) -> Form:
    """``n_sampled`` tokens, drawn from what ``ask`` gives whole, and what a draw is worth.

    Columns: ``ids`` and ``logprobs`` [N, n_sampled], ``worth`` [N].
    """
    few = sampled(ask, n_sampled)
    dtype = id_type(vocab_size)

    def columns(batch: Batch) -> Columns:
        drawn = few(batch)
        return {
            "ids": drawn.ids.to(dtype),
            "logprobs": drawn.logprobs.half(),
            "worth": drawn.worth.half(),
        }

    def read(kept: Columns) -> Targets:
        drawn = Drawn(kept["logprobs"].float(), kept["ids"].long(), kept["worth"].float())
        return drawn.targets()

    return Form(columns, read, top_k_bytes(vocab_size, n_sampled))


def hidden_form(
    teacher: Any, kept_ids: Sequence[int] | None, temperature: float, precision: str
) -> Form:
    """The teacher's last hidden states: one column ``hidden`` [N, H], and whole distributions.

    Of the teacher its head alone is read again, from a copy: the rest may leave memory.
    Raises InputError where the teacher's logits are more than its head's product of them.
    """
    if not head_is_plain(teacher):
        raise InputError(
            "the teacher's logits do not follow from its last hidden state alone",
            where="train.targets",
            remedy="use cached, sampled or live",
        )
    kept = as_ids(kept_ids)
    with torch.no_grad():
        weight, bias = (None if part is None else part.clone() for part in head_of(teacher, kept))
    assert weight is not None

    @torch.no_grad()
    def columns(batch: Batch) -> Columns:
        with low_precision(teacher, precision):
            hidden = read_batch(teacher, batch.renamed(kept)).hidden
        assert hidden is not None
        return {"hidden": hidden.half()}

    def read(columns: Columns) -> HeadTargets:
        return HeadTargets(columns["hidden"], weight, bias, temperature)

    return Form(columns, read, HALF * weight.shape[1])
