"""The processes that train together: one, unless something started several.

Gradients are summed over all of them and divided by the target tokens of all of them, so that how
the work is divided changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class World:
    """This process's number among ``size``."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def summed(self, values: Iterable[float]) -> list[float]:
        """Sums of numbers over all processes."""
        numbers = list(values)
        if self.size == 1:
            return numbers
        from torch import distributed

        together = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(together)
        return [float(value) for value in together]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes."""
        if self.size == 1:
            return
        from torch import distributed

        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)


ALONE = World()
