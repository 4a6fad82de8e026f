"""How far a run is, and the learning rate that follows from it."""

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


def learning_rate(progress: float, peak: float, warmup: float, floor: float = 0.02) -> float:
    """Linear warm-up over ``warmup`` of the run, then a cosine to ``floor`` of the peak."""
    if progress < warmup:
        return peak * max(progress / warmup, 0.02)
    position = (progress - warmup) / max(1.0 - warmup, 1e-9)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * position)))
