"""Losses between a teacher's targets and a student's logits, one value per target token.

A loss knows neither batches nor models: it sees N tokens. Summing, and dividing by the number of
target tokens of the whole accumulated batch, is the trainer's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812 (the field's name for it)


@dataclass(frozen=True)
class Targets:
    """A teacher's distributions over the student's vocabulary for N target tokens.

    ``logprobs``: float [N, k]. ``ids``: int64 [N, k], the tokens these belong to, or None when
    k is the whole vocabulary in order. ``tail``: float [N], log of the mass outside of the most
    likely tokens, or None when nothing is outside. The last ``n_drawn`` columns are no top tokens
    but draws from that tail, with replacement. All at the temperature they were asked for.
    ``hidden``: float [N, H], what the teacher's head made them of, where it is known.
    """

    logprobs: torch.Tensor
    ids: torch.Tensor | None = None
    tail: torch.Tensor | None = None
    n_drawn: int = 0
    hidden: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Targets":
        """The same on another device."""

        def moved(part: torch.Tensor | None) -> torch.Tensor | None:
            return None if part is None else part.to(device)

        return Targets(
            self.logprobs.to(device),
            moved(self.ids),
            moved(self.tail),
            self.n_drawn,
            moved(self.hidden),
        )

    def top1(self) -> torch.Tensor:
        """The teacher's most likely token, int64 [N]."""
        best = self.logprobs.argmax(-1)
        return best if self.ids is None else self.ids.gather(1, best[:, None])[:, 0]


def log_remainder(logprobs: torch.Tensor) -> torch.Tensor:
    """log(1 - sum(exp(logprobs))), float [N] from [N, k]: the mass that the k tokens leave."""
    covered = torch.logsumexp(logprobs, -1).clamp(max=-1e-7)
    return torch.log(-torch.expm1(covered))


def forward_kl(logits: torch.Tensor, targets: Targets, temperature: float) -> torch.Tensor:
    """KL(teacher || student) in nats per token: float [N] from student logits [N, V].

    Hinton et al. 2015, section 2 (soft targets at a temperature; the caller multiplies by T²).
    With top-k targets alone the tail counts as one event, which makes the value a lower bound of
    the exact one. With draws from the tail the value is unbiased: the tail's mass times the mean
    of log p - log q over the draws.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    if targets.ids is None:
        return F.kl_div(student, targets.logprobs, log_target=True, reduction="none").sum(-1)
    n_top = targets.ids.shape[-1] - targets.n_drawn
    student = student.gather(1, targets.ids)
    distance = targets.logprobs - student
    value = (targets.logprobs[:, :n_top].exp() * distance[:, :n_top]).sum(-1)
    if targets.tail is None:
        return value
    if targets.n_drawn:
        return value + targets.tail.exp() * distance[:, n_top:].mean(-1)
    return value + targets.tail.exp() * (targets.tail - log_remainder(student))


def hidden_distance(hidden: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|h - t|² / |t|² per token: float [N] from hidden states [N, H] of student and teacher.

    Sun et al. 2019 (patient knowledge distillation, section 3.2) compare normalised states; a head
    reads a state's length as well as its direction, so here the student's length counts too.
    """
    difference = (hidden.float() - teacher).square().sum(-1)
    return difference / teacher.square().sum(-1).clamp(min=1e-12)


Loss = Callable[[torch.Tensor, Targets, float], torch.Tensor]
LOSSES: Mapping[str, Loss] = {
    "forward_kl": forward_kl,
}
