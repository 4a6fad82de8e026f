"""What a teacher says of N target tokens, whole or in part; knows no batches and no models.

Targets are asked for in rows, a chunk at a time, so that a whole distribution need never exist for
all tokens at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.nn import functional as F  # noqa: N812

CHUNK_ELEMENTS = 2**21  # logits of a chunk: 8 MB in float32, small beside any model
LEAST_ROWS = 32
LOWEST = -100.0  # log of a probability that counts as none
NO_TOKEN = -65504.0  # the log-probability of an empty column, the least in half precision
TENSORS = ("logprobs", "ids", "tail", "hidden", "stands_for")  # of Targets, a row a token


@dataclass(frozen=True)
class Targets:
    """A teacher's distributions over the student's vocabulary for N target tokens.

    ``logprobs``: float [N, k]. ``ids``: int64 [N, k], the tokens these belong to, or None when
    k is the whole vocabulary in order. ``tail``: float [N], log of the mass outside of the most
    likely tokens, or None when nothing is outside. The last ``n_drawn`` columns are no top tokens
    but draws from that tail, with replacement. Columns of log-probability `NO_TOKEN` are empty.
    All at the temperature they were asked for.
    ``hidden``: float [N, H], what the teacher's head made them of, where it is known.
    ``stands_for``: float [N, k], of tokens that were drawn from the whole vocabulary: how many each
    counts for in a sum over all of it, one over the probability that it was drawn.
    """

    logprobs: torch.Tensor
    ids: torch.Tensor | None = None
    tail: torch.Tensor | None = None
    n_drawn: int = 0
    hidden: torch.Tensor | None = None
    stands_for: torch.Tensor | None = None

    def rows(self, rows: slice) -> "Targets":
        """The targets of some of the tokens."""
        return self._each(lambda values: values[rows])

    def to(self, device: torch.device) -> "Targets":
        """The same on another device."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Targets":
        tensors = {name: getattr(self, name) for name in TENSORS}
        changed: dict[str, Any] = {k: change(v) for k, v in tensors.items() if v is not None}
        return replace(self, **changed)

    def top1(self) -> torch.Tensor:
        """The teacher's most likely token, int64 [N]."""
        best = self.logprobs.argmax(-1)
        return best if self.ids is None else self.ids.gather(1, best[:, None])[:, 0]


@dataclass(frozen=True)
class HeadTargets:
    """The same, as the teacher's last hidden states and its head: a row is made when asked for.

    ``hidden``: float [N, H]. ``weight``: float [V, H], ``bias``: float [V] or None: the head, over
    the student's vocabulary.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    temperature: float

    def rows(self, rows: slice) -> Targets:
        """The whole distributions of some of the tokens."""
        hidden = self.hidden[rows].to(self.weight)
        with torch.no_grad():
            logits = F.linear(hidden, self.weight, self.bias).div_(self.temperature)
            return Targets(torch.log_softmax(logits, -1), hidden=hidden)

    def to(self, device: torch.device) -> "HeadTargets":
        """The same on another device."""
        return replace(
            self,
            hidden=self.hidden.to(device),
            weight=self.weight.to(device),
            bias=None if self.bias is None else self.bias.to(device),
        )


class TargetRows(Protocol):
    """What a teacher gives for a batch: distributions by rows, and what they were made of."""

    @property
    def hidden(self) -> torch.Tensor | None:
        """The last hidden states, float [N, H], where they are known."""
        ...

    def rows(self, rows: slice) -> Targets:
        """The distributions of some of the tokens."""
        ...

    def to(self, device: torch.device) -> "TargetRows":
        """The same on another device."""
        ...


def log_remainder(logprobs: torch.Tensor) -> torch.Tensor:
    """log(1 - sum(exp(logprobs))), float [N] from [N, k]: the mass that the k tokens leave."""
    covered = torch.logsumexp(logprobs, -1).clamp(max=-1e-7)
    return torch.log(-torch.expm1(covered))


def in_order(found: TargetRows, order: torch.Tensor) -> TargetRows:
    """Some rows of targets in an order of their own, int64 [N]."""
    if isinstance(found, HeadTargets):
        return replace(found, hidden=found.hidden[order.to(found.hidden.device)])
    whole = found.rows(slice(None))
    return whole._each(lambda values: values[order.to(values.device)])


def joined(parts: Sequence[Targets]) -> Targets:
    """Rows that were made apart as one; all of one kind."""
    held = [name for name in TENSORS if getattr(parts[0], name) is not None]
    joint: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in held
    }
    return replace(parts[0], **joint)


def runs(n_rows: int, vocab_size: int = 2**15, n_at_once: int | None = None) -> list[slice]:
    """Rows in runs of about `CHUNK_ELEMENTS` logits; one empty run where there is none.

    ``n_at_once``: so many rows in each, whatever that makes.
    """
    step = n_at_once or max(LEAST_ROWS, CHUNK_ELEMENTS // vocab_size)
    begins = range(0, max(n_rows, 1), step)
    return [slice(begin, min(begin + step, n_rows)) for begin in begins]
