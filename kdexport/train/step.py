"""One update: from the batches of a step to new weights, or to the reason why there are none.

Sums are divided by the completions' tokens of the whole step, over all batches and processes, so
that how the work is cut changes nothing: not in two where memory is short, not over machines.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from kdexport.train.data import Batch
from kdexport.train.heap import give_back
from kdexport.train.memory import Memory
from kdexport.train.objective import Objective, batch_loss
from kdexport.train.teacher import TargetFn
from kdexport.train.world import ALONE, World


@dataclass(frozen=True)
class Done:
    """What a step did. ``loss`` and its parts per completion token, ``norm`` of the gradient.

    ``skipped``: loss or gradient were not finite, and the weights are what they were.
    ``n_targets``: target tokens of all processes.
    """

    loss: float
    task: float
    divergence: float
    norm: float
    skipped: bool
    n_targets: int


def exact(student: Any) -> AbstractContextManager[None]:
    """The block in which a student computes with its own weights."""
    return nullcontext()


@dataclass
class Stepper:
    """How to step. ``memory``: how many examples of a batch at once.

    ``rounding``: the block in which the student computes loss and gradient; it has its own weights
    again when they are updated. ``is_frugal``: what a part of a step has freed is given back to the
    system before the next, which takes time.
    """

    student: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    clip_norm: float = 1.0
    precision: str = "float32"
    world: World = ALONE
    memory: Memory = field(default_factory=Memory)
    rounding: Callable[[Any], AbstractContextManager[None]] = exact
    is_frugal: bool = False

    def step(
        self, group: Sequence[Batch], targets: TargetFn | None, lr: float, progress: float
    ) -> Done:
        """Update the weights from this process's part of an accumulated group, alike in each.

        Where memory ends, the process begins anew in batches of half as many examples, which
        changes nothing but time, and the others wait. Raises KdexportError where a single example
        is too much.
        """
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        n_tokens, n_targets = self.world.summed(
            [sum(b.n_completion for b in group), sum(b.n_targets for b in group)]
        )
        sums = self.memory.anew(
            lambda: self._gradients(group, max(n_tokens, 1.0), targets, progress),
            max((len(batch.examples) for batch in group), default=1),
            forget=lambda: self.optimizer.zero_grad(set_to_none=True),
        )
        return self._update(sums, int(n_targets))

    def _gradients(
        self, group: Sequence[Batch], n_tokens: float, targets: TargetFn | None, progress: float
    ) -> list[float]:
        """Add up this process's gradients; its part of loss, task and divergence a token."""
        sums = [0.0, 0.0, 0.0]
        with self.rounding(self.student):
            for batch in self._micro_batches(group):
                asked = targets(batch) if targets else None
                found = batch_loss(
                    self.student, batch, asked, self.objective, progress, precision=self.precision
                )
                self._part_ends()
                (found.loss / n_tokens).backward()  # type: ignore[no-untyped-call]
                values = (float(found.loss.detach()), found.task, found.divergence)
                sums = [s + value / n_tokens for s, value in zip(sums, values, strict=True)]
        return sums

    def _update(self, sums: Sequence[float], n_targets: int) -> Done:
        """New weights from the gradients of all processes, where all have finite ones."""
        parameters = [p for of in self.optimizer.param_groups for p in of["params"]]
        self.world.sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm))
        strays = not math.isfinite(norm)
        loss, task, divergence, n_strays = self.world.summed([*sums, float(strays)])
        skipped = n_strays > 0 or not math.isfinite(loss)
        if not skipped:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._part_ends()
        return Done(loss, task, divergence, norm, skipped, n_targets)

    def _part_ends(self) -> None:
        if self.is_frugal:
            give_back()

    def _micro_batches(self, group: Sequence[Batch]) -> Iterator[Batch]:
        """The group's batches, in parts where they are larger than memory allows."""
        for batch in group:
            yield from map(batch.of, self.memory.parts(batch.examples))
