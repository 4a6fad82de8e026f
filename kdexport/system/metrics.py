"""Logs that grow by a line of JSON at a time, and go on after a kill without gap or repetition.

A training's log has a line a step, and one for each evaluation, `{"step": …, "evaluation": …}`.
Knows no training.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kdexport.system.files import write_whole

Row = Mapping[str, Any]


class Log:
    """Rows of one file. Each is with the system when `add` returns: a kill loses none of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def go_on(self, is_kept: Callable[[Row], bool]) -> None:
        """Drop the rows of what is going to be done again, and write behind the others."""
        kept = [json.dumps(row) + "\n" for row in read_rows(self.path) if is_kept(row)]
        write_whole(self.path, kept)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def add(self, row: Row) -> None:
        """Write a row; `go_on` comes first."""
        assert self._file is not None
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a log; a line that a kill cut off is passed over, and no file has none."""
    lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


@dataclass(frozen=True)
class Curve:
    """Steps of a training log, ascending. ``row``: means over the steps since the one before.

    ``evaluation``: of this step, if it was evaluated.
    """

    step: int
    row: Row
    evaluation: Row | None


MEANS = ("loss", "task", "divergence", "norm")  # what is noisy; the rest is as it was at the step


def read_curve(path: Path, n_most: int = 400) -> list[Curve]:
    """A training log as at most about ``n_most`` points, and one more for each evaluated step."""
    steps: dict[int, Row] = {}
    evaluations: dict[int, Row] = {}
    for row in read_rows(path):
        if "evaluation" in row:
            evaluations[row["step"]] = row["evaluation"]
        else:
            steps[row["step"]] = row
    every = -(-len(steps) // n_most) if steps else 1
    points: list[Curve] = []
    since: list[Row] = []
    for number, (step, row) in enumerate(steps.items(), start=1):
        since.append(row)
        if number % every == 0 or number == len(steps) or step in evaluations:
            means = {name: _mean([one.get(name) for one in since]) for name in MEANS if name in row}
            points.append(Curve(step, {**row, **means}, evaluations.get(step)))
            since = []
    return points


def _mean(values: list[float | None]) -> float | None:
    """The mean of the numbers among values; a step that was skipped has none."""
    numbers = [value for value in values if value is not None and abs(value) < float("inf")]
    return sum(numbers) / len(numbers) if numbers else None
