"""What a report tells beside its numbers: when, on what, by which command, of which run."""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdexport.data.card import in_words, read_card
from kdexport.pipeline.run import Run
from kdexport.system.machine import machine_facts
from kdexport.verdict.choices import BUDGET, SizeBudget, read_budget
from kdexport.verdict.report import training_points


def of_bench() -> dict[str, Any]:
    """The fields of a `BenchReport` that tell of the bench itself."""
    program = Path(sys.argv[0]).name
    return {
        "created": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "command": ["kdexport" if program == "__main__.py" else program, *sys.argv[1:]],
    }


def of_run(run: Run) -> dict[str, Any]:
    """The fields of a `BenchReport` that tell how a run's student was made."""
    return {
        "training": training_points(run.metrics),
        "data": in_words(read_card(run.folder)),
        "recipe": run.recipe.model_dump(mode="json", by_alias=True),
        "stages": stage_seconds(run.folder),
        "budget": budget_of(run),
    }


def stage_seconds(folder: Path) -> dict[str, float]:
    """How long each stage of a run's folder took."""
    journal = json.loads((folder / "journal.json").read_text("utf-8"))
    return {name: entry["seconds"] for name, entry in journal["stages"].items()}


def budget_of(run: Run) -> SizeBudget | None:
    """The candidates among which a student's sizes were chosen; None where they were named."""
    if run.recipe.student.budget is None:
        return None
    return read_budget(run.student_init.parent / BUDGET)
