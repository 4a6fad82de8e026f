"""Fidelity on held-out pairs: how near a student's distributions are to its teacher's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from kdexport.train.data import Batch, Encoded, ordered_batches
from kdexport.train.losses import distance
from kdexport.train.memory import Memory
from kdexport.train.model import read_batch
from kdexport.train.objective import summed_over_rows
from kdexport.train.teacher import TargetFn
from kdexport.train.world import ALONE, World


@dataclass(frozen=True)
class Evaluation:
    """``kl``: nats per token. ``top1``: share of equal top tokens; ``perplexity`` on the texts.

    The first two are None where no teacher was asked.
    """

    kl: float | None
    top1: float | None
    perplexity: float

    @property
    def score(self) -> float:
        """What the best student has least of: KL, or cross-entropy where there is none."""
        return math.log(self.perplexity) if self.kl is None else self.kl


@torch.no_grad()
def evaluate(
    student: Any,
    held_out: Sequence[Encoded],
    targets: TargetFn | None,
    batch_size: int,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    world: World = ALONE,
    memory: Memory | None = None,
) -> Evaluation | None:
    """KL to the teacher, top-1 agreement and perplexity, each over all target tokens at once.

    Each process reads its share. None where ``interrupted`` said so between two batches of any.
    ``memory``: how many texts of a batch at once.
    """
    memory = memory or Memory()
    was_training = student.training
    student.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    n_tokens = 0
    stops = False
    try:
        for batch in ordered_batches(world.share(held_out), batch_size):
            stops = interrupted()
            if stops:
                break
            for found in batch.in_parts(memory, partial(_sums, student, targets)):
                sums += found
            n_tokens += batch.n_targets
    finally:
        student.train(was_training)
    *totals, n_read, n_stops = world.summed([*sums.tolist(), n_tokens, stops])
    if n_stops:
        return None
    kl, agree, nats = (total / max(n_read, 1) for total in totals)
    perplexity = math.exp(nats) if nats < 700 else math.inf
    return Evaluation(kl, agree, perplexity) if targets else Evaluation(None, None, perplexity)


def _sums(student: Any, targets: TargetFn | None, batch: Batch) -> torch.Tensor:
    """KL, equal top tokens and cross-entropy over a batch's targets, float64 [3]."""
    asked = targets(batch).to(student.device) if targets else None
    labels = batch.labels.to(student.device)

    def of_rows(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        nats = F.cross_entropy(logits, labels[rows], reduction="sum")
        if asked is None:
            return nats, torch.stack([nats, nats, nats])
        found = asked.rows(rows)
        kl = distance("forward_kl", logits, found, 1.0).sum()
        agree = (logits.argmax(-1) == found.top1()).sum()
        return nats, torch.stack([kl, agree.to(kl), nats])

    reading = read_batch(student, batch)
    return summed_over_rows(student, reading, of_rows)[1].double().cpu()
