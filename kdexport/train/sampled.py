"""A few tokens of a distribution, drawn so that sums over them are those over all, on average.

Random-sampling distillation (Anshumann et al. 2025, arXiv 2503.16870): the likeliest tokens alone
make biased targets; draws weighted by one over their chance to be drawn do not, and give the whole
distribution's gradient in expectation. The paper draws with replacement; here no token is drawn
twice, and those that are likelier than a draw is worth are always among them, which leaves less to
chance.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kdexport.train.data import Batch
from kdexport.train.targets import LOWEST, Targets, runs
from kdexport.train.teacher import TargetFn

HIGHEST = 80.0  # log of how many tokens one stands for, within float32


@dataclass(frozen=True)
class Drawn:
    """``logprobs``: float [N, n], ``ids``: int64 [N, n], ``worth``: float [N], log of a draw's.

    A token of probability p is among them with probability min(1, p / worth).
    """

    logprobs: torch.Tensor
    ids: torch.Tensor
    worth: torch.Tensor

    def targets(self) -> Targets:
        """The same as targets."""
        logprobs = self.logprobs.clamp(min=LOWEST)
        stands_for = (self.worth[:, None] - logprobs).clamp(min=0.0, max=HIGHEST).exp()
        return Targets(logprobs, self.ids, stands_for=stands_for)


def sampled(ask: TargetFn, n: int) -> Callable[[Batch], Drawn]:
    """``n`` different tokens of what ``ask`` gives whole; the same batch gives the same ones."""

    @torch.no_grad()
    def few(batch: Batch) -> Drawn:
        asked = ask(batch)
        generator = torch.Generator().manual_seed(zlib.crc32(batch.ids.numpy().tobytes()))
        parts = [draw(asked.rows(rows).logprobs, n, generator) for rows in runs(batch.n_targets)]
        columns = zip(*((part.logprobs, part.ids, part.worth) for part in parts), strict=True)
        return Drawn(*map(torch.cat, columns))

    return few


def draw(logprobs: torch.Tensor, n: int, generator: torch.Generator) -> Drawn:
    """Different tokens of log-probabilities [N, V].

    Systematic sampling with probability proportional to size (Madow 1949): the tokens lie side by
    side, each as wide as its probability, and points at equal distances, ``worth``, from a random
    first one pick those that they hit. Tokens wider than that are taken for certain and laid aside.
    """
    p = torch.softmax(logprobs.double(), dim=-1)
    best = p.topk(n, dim=-1)
    rest = p.scatter(1, best.indices, 0.0)
    # What is left of the mass once the m likeliest are laid aside, m = 0 … n - 1.
    left = best.values.flip(-1).cumsum(-1).flip(-1) + rest.sum(-1, keepdim=True)
    still = n - torch.arange(n, device=p.device)
    n_certain = (still * best.values >= left).cumprod(-1).sum(-1, keepdim=True)
    is_certain = torch.arange(n, device=p.device) < n_certain
    laid = rest.scatter(1, best.indices, best.values.masked_fill(is_certain, 0.0)).cumsum(-1)
    worth = laid[:, -1:] / (n - n_certain).clamp(min=1)
    first = torch.rand(len(p), 1, generator=generator, dtype=torch.double).to(p.device)
    points = (first + torch.arange(n, device=p.device)) * worth
    hit = torch.searchsorted(laid, points, right=True).clamp(max=p.shape[-1] - 1)
    # The draws follow the tokens that are certain; what is over is left out.
    numbers = (torch.arange(n, device=p.device) - n_certain).clamp(min=0)
    ids = torch.where(is_certain, best.indices, hit.gather(1, numbers))
    log_worth = worth[:, 0].log().clamp(min=LOWEST).to(logprobs.dtype)
    return Drawn(logprobs.gather(1, ids), ids, log_worth)
