"""Every loss in float64, from probabilities: what `losses` is held against.

Shares nothing with it, which goes by log-probabilities, but the share that counts as a head.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kdexport.train.losses import HEAD_MASS

Formula = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
Reference = Callable[[torch.Tensor, torch.Tensor, float, float, Any], torch.Tensor]


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p.clamp(min=1e-300) / q.clamp(min=1e-300)).log()).sum(-1)


def _of(formula: Formula) -> Reference:
    """A formula of p and q; with ``order``, of the tokens that it names and the rest as one."""

    def reference(
        z_teacher: torch.Tensor, z_student: torch.Tensor, t: float, amount: float, order: Any
    ) -> torch.Tensor:
        p, q = torch.softmax(z_teacher / t, -1), torch.softmax(z_student / t, -1)
        if order is not None:
            p, q = (torch.cat([x.gather(-1, order), _rest(x, order)], -1) for x in (p, q))
        return formula(p, q, amount)

    return reference


def _rest(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return x.scatter(-1, order, 0.0).sum(-1, keepdim=True)


def _adaptive(p: torch.Tensor, q: torch.Tensor, _: float) -> torch.Tensor:
    shares = []
    for one, other in zip(p.detach(), q.detach(), strict=True):
        mass, order = one.sort(descending=True)
        size = int((mass.cumsum(0) < HEAD_MASS).sum()) + 1
        gap = (mass - other[order]).abs()
        shares.append(gap[:size].sum() / gap.sum().clamp(min=1e-300))
    share = torch.stack(shares)
    return share * _kl(p, q) + (1 - share) * _kl(q, p)


def _standardised(
    z_teacher: torch.Tensor, z_student: torch.Tensor, t: float, _: float, __: Any
) -> torch.Tensor:
    def standard(z: torch.Tensor) -> torch.Tensor:
        return (z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True, correction=0)

    return _kl(
        torch.softmax(standard(z_teacher) / t, -1), torch.softmax(standard(z_student) / t, -1)
    )


def _jsd(p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
    m = beta * p + (1 - beta) * q
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)


def _falling(p: torch.Tensor) -> torch.Tensor:
    return p.gather(-1, p.argsort(-1, descending=True))


REFERENCES: Mapping[str, Reference] = {
    "forward_kl": _of(lambda p, q, _: _kl(p, q)),
    "reverse_kl": _of(lambda p, q, _: _kl(q, p)),
    "jsd": _of(_jsd),
    "skew_kl": _of(lambda p, q, a: _kl(p, a * p + (1 - a) * q)),
    "skew_reverse_kl": _of(lambda p, q, a: _kl(q, a * q + (1 - a) * p)),
    "total_variation": _of(lambda p, q, _: (p - q).abs().sum(-1) / 2),
    "adaptive_kl": _of(_adaptive),
    "uld": _of(lambda p, q, _: (_falling(p) - _falling(q)).abs().sum(-1)),
    "standardised_kl": _standardised,
}
