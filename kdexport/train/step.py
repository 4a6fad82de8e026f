"""One update: from the batches of a step to new weights, or to the reason why there are none.

Sums are divided by the completions' tokens of the whole step, over all batches and processes, so
that how the work is cut changes nothing: not in two where memory is short, not over machines.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from kdexport.errors import KdexportError
from kdexport.system.console import say
from kdexport.train.data import Batch
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


@dataclass
class Stepper:
    """How to step. ``max_examples``: of a batch at once; halved where memory ends.

    ``rounding``: the block in which the student computes loss and gradient; it has its own weights
    again when they are updated.
    """

    student: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    clip_norm: float = 1.0
    precision: str = "float32"
    world: World = ALONE
    max_examples: int | None = None
    rounding: Callable[[Any], AbstractContextManager[None]] = lambda student: nullcontext()

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
        sums: list[float] | None = None
        while sums is None:
            try:
                sums = self._gradients(group, max(n_tokens, 1.0), targets, progress)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._take_less(group)
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
        return Done(loss, task, divergence, norm, skipped, n_targets)

    def _micro_batches(self, group: Sequence[Batch]) -> Iterator[Batch]:
        """The group's batches, in halves of halves where they are larger than memory allows."""
        waiting = list(reversed(group))
        while waiting:
            batch = waiting.pop()
            if self.max_examples and len(batch.examples) > self.max_examples:
                waiting += reversed(batch.halves())
            else:
                yield batch

    def _take_less(self, group: Sequence[Batch]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        largest = max(len(batch.examples) for batch in group)
        largest = min(largest, self.max_examples or largest)
        if largest == 1:
            raise KdexportError(
                f"there is not memory enough for {largest} examples at once",
                where="distill",
                remedy="lower train.max_length or train.batch_size, or choose a smaller student",
            )
        self.max_examples = largest // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(
            f"    out of memory: batches of {self.max_examples} from here on, as many of them as "
            "make the same step"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error tells that memory ended, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
