"""What was chosen before a bench: sizes within a budget, and which students stand side by side.

Knows the numbers and their names; how sizes are measured and students are made is the pipeline's.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, NonNegativeInt, ValidationError

from kdexport.verdict.scores import Measured, Record

BUDGET = "budget.json"  # in a run's folder: what candidates cost, and which one was chosen


class SizeCandidate(Record):
    """A shape that the student could have had; without ``fits`` it needed no measuring."""

    shape: str
    n_parameters: NonNegativeInt = Field(description="besides embeddings and head")
    tpot_ms: Measured = None
    size_mb: Measured = None
    fits: bool | None = None
    chosen: bool = False


class SizeBudget(Record):
    """What a student's bundle might cost, and the candidates; costs are of random weights."""

    tpot_ms: Measured = None
    size_mb: Measured = None
    candidates: list[SizeCandidate]

    @property
    def chosen(self) -> SizeCandidate | None:
        """The most capable candidate within the budget."""
        return next((one for one in self.candidates if one.chosen), None)


class MatrixStudent(Record):
    """One student of a matrix. ``pairs``: how many it has of each split."""

    value: str
    arm: str
    pairs: dict[str, NonNegativeInt]


class Matrix(Record):
    """A student for each value of a column of the data."""

    column: str
    students: list[MatrixStudent]


def limits_text(tpot_ms: float | None, size_mb: float | None) -> str:
    """A budget's limits: ``4 ms a token and 40 MB``."""
    limits = ((tpot_ms, "ms a token"), (size_mb, "MB"))
    return " and ".join(f"{limit:g} {unit}" for limit, unit in limits if limit is not None)


def read_budget(path: Path) -> SizeBudget | None:
    """The `BUDGET` of a run; None where there is none, or where nothing was chosen yet."""
    try:
        content = json.loads(path.read_text("utf-8"))
        known = {name: content["budget"][name] for name in ("tpot_ms", "size_mb")}
        rows = [
            {name: row[name] for name in SizeCandidate.model_fields if name in row}
            for row in content["candidates"]
        ]
        return SizeBudget.model_validate({**known, "candidates": rows})
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
