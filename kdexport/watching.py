"""What is seen of training while it runs: the line of progress, and the log."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdexport.console import Tracker
from kdexport.train.evaluate import Evaluation
from kdexport.train.trainer import Event, Position


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a training log: steps that were evaluated."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


class Watcher:
    """Shows every step; logs those that were evaluated."""

    def __init__(self, progress: Tracker, log: Path, *, fresh: bool) -> None:
        self._progress = progress
        self._log = log
        lines = [] if fresh or not log.exists() else log.read_text("utf-8").splitlines()
        self._rows = {json.loads(line)["step"]: line for line in lines}
        self._best = ""
        self._last: Event | None = None
        if fresh:
            log.unlink(missing_ok=True)

    def step(self, event: Event) -> None:
        """Show a step."""
        self._last = event
        speed = event.tokens / max(event.elapsed_s, 1e-6)
        note = f"step {event.step}, {speed:.0f} tokens/s, loss {event.loss:.3f}{self._best}"
        self._progress(100 * event.progress, note=note)

    def evaluated(self, at: Position, found: Evaluation) -> None:
        """Log an evaluation; what an interrupted run logged after its checkpoint is replaced."""
        if found.kl is not None:
            self._best = f", validation KL {found.kl:.3f}"
        told = asdict(self._last) if self._last else {"step": at.step}
        self._rows = {step: row for step, row in self._rows.items() if step < at.step}
        self._rows[at.step] = json.dumps({**told, "evaluation": asdict(found)})
        beside = self._log.with_suffix(".partial")
        beside.write_text("".join(f"{row}\n" for row in self._rows.values()), "utf-8")
        beside.replace(self._log)
