"""What training with kept targets differs in from training with a live teacher's.

Knows a student and two ways to ask; not how targets are kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from kdexport.train.data import Encoded, ordered_batches
from kdexport.train.memory import Memory
from kdexport.train.objective import Objective, batch_loss
from kdexport.train.schedule import ONE, Schedule
from kdexport.train.teacher import TargetFn

ZERO = Schedule(0.0, 0.0)
HALF_WAY = 0.5  # of training: schedules have a value there that is not their end's


@dataclass(frozen=True)
class Fidelity:
    """``live``, ``kept``: the divergence in nats per token. ``cosine`` of the two gradients of all
    the student's parameters, ``length``: the kept one's over the live one's.
    """

    live: float
    kept: float
    cosine: float
    length: float

    @property
    def bias(self) -> float:
        """How much larger the kept loss is, as a share of the live one."""
        return self.kept / self.live - 1 if self.live else 0.0


def compare_targets(
    student: Any,
    examples: Sequence[Encoded],
    kept: TargetFn,
    live: TargetFn,
    objective: Objective,
    *,
    batch_size: int,
) -> Fidelity:
    """Divergence and gradient of the same texts, asked in both ways.

    Of the objective the divergences alone; its schedules half-way. The student's gradients are
    cleared.
    """
    alone = replace(objective, kd_weight=ONE, task_weight=ZERO, hidden_weight=0.0)
    n_tokens = max(1, sum(example.n_targets for example in examples))
    memory = Memory()

    def summed(ask: TargetFn) -> float:
        total = 0.0
        for batch in ordered_batches(examples, batch_size):
            for part in map(batch.of, memory.parts(batch.examples)):
                found = batch_loss(student, part, ask(part), alone, HALF_WAY)
                found.loss.backward()  # type: ignore[no-untyped-call]
                total += found.divergence
        return total

    def forget() -> None:
        student.zero_grad(set_to_none=True)

    sums, gradients = [], []
    for ask in (live, kept):
        forget()
        sums.append(memory.anew(partial(summed, ask), batch_size, forget) / n_tokens)
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    forget()
    dot, of_live, of_kept = (
        sum(float(torch.dot(a.double().flatten(), b.double().flatten())) for a, b in pairs)
        for pairs in (
            zip(*gradients, strict=True),
            zip(gradients[0], gradients[0], strict=True),
            zip(gradients[1], gradients[1], strict=True),
        )
    )
    lengths = math.sqrt(of_live), math.sqrt(of_kept)
    product = lengths[0] * lengths[1]
    return Fidelity(
        live=sums[0],
        kept=sums[1],
        cosine=dot / product if product else 1.0,
        length=lengths[1] / lengths[0] if lengths[0] else 1.0,
    )
