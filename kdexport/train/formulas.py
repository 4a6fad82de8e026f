"""Every loss in float64: what `losses` and `inside` are held against.

From probabilities, where `losses` goes by their logs; it shares nothing with it but the mass that
counts as a head.
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


def _by_rank(p: torch.Tensor, q: torch.Tensor, _: float) -> torch.Tensor:
    size = max(p.shape[-1], q.shape[-1])
    falling = (x.gather(-1, x.argsort(-1, descending=True)) for x in (p, q))
    one, other = (torch.nn.functional.pad(x, (0, size - x.shape[-1])) for x in falling)
    return (one - other).abs().sum(-1)


def _far(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    apart: torch.Tensor = ((h - t) ** 2).sum(-1) / (t**2).sum(-1)
    return apart


def _turned(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    lengths = [x.square().sum(-1).sqrt() for x in (h, t)]
    return 1 - (h * t).sum(-1) / (lengths[0] * lengths[1])


def relation_kl(own: torch.Tensor, other: torch.Tensor, n_heads: int) -> torch.Tensor:
    """KL of a teacher's relations and a student's, [n] from states of one text, [n, width] each."""
    n = len(own)
    cut, theirs = (x.reshape(n, n_heads, -1) for x in (own, other))
    values = []
    for t in range(n):
        q, p = (
            torch.softmax(torch.einsum("hd,shd->hs", x[t], x[: t + 1]) / x.shape[-1] ** 0.5, -1)
            for x in (cut, theirs)
        )
        values.append(_kl(p, q).mean())
    return torch.stack(values)


STATE_REFERENCES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "hidden": _far,
    "hidden_cosine": _turned,
    "blocks": _far,  # of differences
}
REFERENCES: Mapping[str, Reference] = {
    "forward_kl": _of(lambda p, q, _: _kl(p, q)),
    "reverse_kl": _of(lambda p, q, _: _kl(q, p)),
    "jsd": _of(_jsd),
    "skew_kl": _of(lambda p, q, a: _kl(p, a * p + (1 - a) * q)),
    "skew_reverse_kl": _of(lambda p, q, a: _kl(q, a * q + (1 - a) * p)),
    "total_variation": _of(lambda p, q, _: (p - q).abs().sum(-1) / 2),
    "adaptive_kl": _of(_adaptive),
    "uld": _of(_by_rank),
    "standardised_kl": _standardised,
}
