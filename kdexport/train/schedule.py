"""How far a run is, and what follows from it: the learning rate, the weights of the losses."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """When to stop: whichever of steps and minutes ends first; at least one is set."""

    max_steps: int | None = None
    max_minutes: float | None = None

    def progress(self, step: int, elapsed_s: float) -> float:
        """How much of the budget is used, 0 to 1; by ``step`` alone without ``max_minutes``."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_time = elapsed_s / (60 * self.max_minutes) if self.max_minutes else 0.0
        return min(1.0, max(by_steps, by_time))


@dataclass(frozen=True)
class Schedule:
    """A value that goes in a straight line from the begin of a run to its end."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        """The value at a progress of 0 to 1."""
        return self.start + (self.end - self.start) * progress


ONE = Schedule(1.0, 1.0)


def learning_rate(progress: float, peak: float, warmup: float, floor: float = 0.02) -> float:
    """Linear warm-up over ``warmup`` of the run, then a cosine to ``floor`` of the peak."""
    if progress < warmup:
        return peak * max(progress / warmup, 0.02)
    position = (progress - warmup) / max(1.0 - warmup, 1e-9)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * position)))
