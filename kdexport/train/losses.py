"""Losses between a teacher's targets and a student's logits, one value per target token.

A loss knows neither batches nor models: it sees N tokens. Summing, and dividing by the number of
target tokens of the whole accumulated batch, is the objective's business.

Every divergence here but one is a sum over the vocabulary of terms in log p (teacher) and log q
(student). So each row of `LOSSES` gives the terms, and one function, `distance`, knows what to sum
over: the whole vocabulary, or the top k tokens with the tail as one event, or with draws from it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from kdexport.train.targets import NO_TOKEN, Targets, log_remainder

HEAD_MASS = 0.5  # of the adaptive mix: the share of the teacher's mass that counts as its head

Terms = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """A divergence: terms [N, K] from log p and log q [N, K] and a parameter.

    ``parameter``: its default; None where there is none. ``whole``: only whole distributions will
    do. ``standardised``: logits are brought to mean 0 and deviation 1 first. ``order``: where T is
    high, the gradient falls off as T to this power, by which it is to be multiplied. ``ranked``:
    probabilities are compared by rank, whatever tokens they belong to.
    """

    terms: Terms
    parameter: float | None = None
    whole: bool = False
    standardised: bool = False
    order: int = 2
    ranked: bool = False


def distance(
    name: str,
    logits: torch.Tensor,
    targets: Targets,
    temperature: float,
    parameter: float | None = None,
) -> torch.Tensor:
    """A divergence of `LOSSES` in nats per token: float [N] from student logits [N, V].

    Soft targets at a temperature after Hinton et al. 2015, section 2; the caller multiplies by T².
    With top-k targets alone the tail counts as one event, which makes the value a lower bound of
    the exact one. With draws from the tail the value is unbiased: the tail's mass times the mean
    of term / p over the draws. So it is with tokens drawn from the whole vocabulary, each term
    counting for as many as its token stands for.
    """
    loss = LOSSES[name]
    amount = loss.parameter if parameter is None else parameter
    terms = loss.terms
    student = logits.float()
    if loss.standardised:
        student, targets = _standardised(student, targets, temperature)
    if temperature != 1.0:
        student = student / temperature
    student = F.log_softmax(student, dim=-1)
    if loss.ranked:
        p, q = _by_rank(targets.logprobs), _by_rank(student)
        size = max(p.shape[-1], q.shape[-1])
        p, q = (F.pad(x, (0, size - x.shape[-1]), value=-torch.inf) for x in (p, q))
        says_something = targets.logprobs.isfinite().any(-1)
        return terms(p, q, amount or 0.0).sum(-1) * says_something
    if targets.ids is None:
        return terms(targets.logprobs, student, amount or 0.0).sum(-1)
    n_top = targets.ids.shape[-1] - targets.n_drawn
    student = student.gather(1, targets.ids)
    teacher = targets.logprobs
    student = student.masked_fill(teacher <= NO_TOKEN, NO_TOKEN)  # nothing, on either side
    if targets.stands_for is not None:
        return (terms(teacher, student, amount or 0.0) * targets.stands_for).sum(-1)
    value = terms(teacher[:, :n_top], student[:, :n_top], amount or 0.0).sum(-1)
    if targets.tail is None:
        return value
    if targets.n_drawn:
        drawn = terms(teacher[:, n_top:], student[:, n_top:], amount or 0.0)
        return value + targets.tail.exp() * (drawn * (-teacher[:, n_top:]).exp()).mean(-1)
    rest = terms(targets.tail[:, None], log_remainder(student)[:, None], amount or 0.0)
    return value + rest[:, 0]


def _forward_kl(p: torch.Tensor, q: torch.Tensor, _: float) -> torch.Tensor:
    """KL(p || q), the mean-seeking one."""
    return p.exp() * (p - q)


def _reverse_kl(p: torch.Tensor, q: torch.Tensor, _: float) -> torch.Tensor:
    """KL(q || p), the mode-seeking one (Gu et al. 2024, MiniLLM, section 2.1)."""
    return q.exp() * (q - p)


def _jsd(p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
    """β KL(p || m) + (1 - β) KL(q || m), m = β p + (1 - β) q (Agarwal et al. 2024, GKD, eq. 1)."""
    m = _mix(p, q, beta)
    return beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)


def _skew_kl(p: torch.Tensor, q: torch.Tensor, alpha: float) -> torch.Tensor:
    """KL(p || α p + (1 - α) q) (Ko et al. 2024, DistiLLM, section 3.1)."""
    return p.exp() * (p - _mix(p, q, alpha))


def _skew_reverse_kl(p: torch.Tensor, q: torch.Tensor, alpha: float) -> torch.Tensor:
    """KL(q || α q + (1 - α) p) (Ko et al. 2024, DistiLLM, section 3.1)."""
    return q.exp() * (q - _mix(q, p, alpha))


def _total_variation(p: torch.Tensor, q: torch.Tensor, _: float) -> torch.Tensor:
    """|p - q| / 2 (Wen et al. 2023, f-distill, section 3)."""
    return (p.exp() - q.exp()).abs() / 2


def _rank_gap(p: torch.Tensor, q: torch.Tensor, _: float) -> torch.Tensor:
    """|p_(i) - q_(i)| of the i-th likeliest (Boizard et al. 2024, ULD, equations 4 to 6).

    Summed, it is the Wasserstein distance where all tokens are equally far from one another. The
    shorter distribution goes on with zeros; where the teacher says nothing, nothing is lost.
    """
    return (p.exp() - q.exp()).abs()


def _by_rank(logprobs: torch.Tensor) -> torch.Tensor:
    return logprobs.sort(dim=-1, descending=True).values


def _adaptive_kl(p: torch.Tensor, q: torch.Tensor, _: float) -> torch.Tensor:
    """Forward and reverse KL, weighted by how far apart head and tail are (Wu et al. 2024, AKL).

    The head is the teacher's likeliest tokens up to half of its mass. The weights count as
    constants.
    """
    with torch.no_grad():
        mass, order = p.exp().sort(dim=-1, descending=True)
        gap = (mass - q.exp().gather(-1, order)).abs()
        in_head = mass.cumsum(-1) - mass < HEAD_MASS
        head = (gap * in_head).sum(-1, keepdim=True)
        share = head / gap.sum(-1, keepdim=True).clamp(min=1e-12)
    return share * _forward_kl(p, q, 0.0) + (1 - share) * _reverse_kl(p, q, 0.0)


def _mix(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """log(share · exp(first) + (1 - share) · exp(second))."""
    if share in (0.0, 1.0):
        return first if share else second
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def _standardised(
    student: torch.Tensor, targets: Targets, temperature: float
) -> tuple[torch.Tensor, Targets]:
    """Both sides' logits with mean 0 and deviation 1, before the temperature (Sun et al. 2024).

    Log-probabilities are logits but for a constant, which the mean takes away, and a factor 1/T,
    which the deviation does.
    """

    def standard(z: torch.Tensor) -> torch.Tensor:
        centred = z - z.mean(-1, keepdim=True)
        return centred / z.std(-1, keepdim=True, correction=0).clamp(min=1e-6)

    teacher = F.log_softmax(standard(targets.logprobs) / temperature, dim=-1)
    return standard(student), Targets(teacher)


def hidden_distance(hidden: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|h - t|² / |t|² per token: float [N] from hidden states [N, H] of student and teacher.

    Sun et al. 2019 (patient knowledge distillation, section 3.2) compare normalised states; a head
    reads a state's length as well as its direction, so here the student's length counts too.
    """
    teacher = teacher.float()  # in half precision squares reach their end at 256
    difference = (hidden.float() - teacher).square().sum(-1)
    return difference / teacher.square().sum(-1).clamp(min=1e-12)


LOSSES: Mapping[str, Loss] = {
    "forward_kl": Loss(_forward_kl),
    "reverse_kl": Loss(_reverse_kl),
    "jsd": Loss(_jsd, parameter=0.5),
    "skew_kl": Loss(_skew_kl, parameter=0.1),
    "skew_reverse_kl": Loss(_skew_reverse_kl, parameter=0.1),
    "total_variation": Loss(_total_variation, order=1),
    "adaptive_kl": Loss(_adaptive_kl, whole=True),
    "uld": Loss(_rank_gap, whole=True, order=1, ranked=True),
    "standardised_kl": Loss(_forward_kl, whole=True, standardised=True),
}
