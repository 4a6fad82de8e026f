"""`kdexport run --dry-run`: what would be done, how large and how long, before anything is done.

Times are estimates: the work in floating-point operations over the speed of this machine, which a
matrix product of a fifth of a second tells.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdexport.errors import NotAtHandError
from kdexport.jsonl import read_jsonl
from kdexport.pipeline import Run, open_run, plan
from kdexport.recipe import Recipe
from kdexport.stages import STAGES

TOKENS_PER_PROMPT = 66
TOKENS_PER_COPY = 25
INT8_READS = 2.0  # times as fast as float32
FIXED_SECONDS = {"teacher": 45.0, "student": 15.0, "export": 20.0, "quantize": 10.0, "bench": 120.0}
Row = dict[str, Any]


def plan_recipe(recipe: Recipe) -> list[Row]:
    """The plan of a recipe; nothing is fetched or written for it.

    What depends on a teacher that is not at hand yet is unknown: None.
    """
    try:
        return plan_rows(open_run(recipe, fetch=False))
    except NotAtHandError:
        minutes = recipe.train.max_minutes
        known = {"distill": round(60 * minutes)} if minutes else {}
        fetch = _row("fetch", f"Teacher is fetched: {recipe.teacher.source.partition('#')[0]}")
        stages = [_row(s.name, s.title, seconds=known.get(s.name)) for s in STAGES]
        return [fetch, *stages]


def _row(stage: str, title: str, **known: Any) -> Row:
    row = {"stage": stage, "title": title, "done": False, "outputs": [], "size_mb": None}
    return {**row, "seconds": None, **known}


def plan_rows(run: Run) -> list[Row]:
    """One row a stage: name, title, whether it is done, outputs, estimated MB and seconds."""
    speed = flops_per_second()
    return [
        _row(
            stage.name,
            stage.title,
            done=done,
            outputs=[str(path) for path in stage.outputs(run)],
            size_mb=round(_size_mb(stage.name, run), 1),
            seconds=0 if done else round(_seconds(stage.name, run, speed)),
        )
        for stage, done in plan(run)
    ]


def render_plan(rows: list[Row]) -> Any:
    """The plan as a rich table."""
    from rich.table import Table

    known = sum(row["seconds"] or 0 for row in rows)
    least = "at least" if any(row["seconds"] is None for row in rows) else "about"
    table = Table(
        title=f"{least} {known / 60:.0f} minutes", title_justify="left", title_style="bold"
    )
    for name in ("stage", "what", "state", "output", "MB", "time"):
        table.add_column(name, justify="right" if name in ("MB", "time") else "left")
    for row in rows:
        table.add_row(
            row["stage"],
            row["title"],
            "done" if row["done"] else "to do",
            *row["outputs"][:1] or [""],
            _size(row["size_mb"]),
            "" if row["done"] else _clock(row["seconds"]),
        )
    return table


def _size(megabytes: float | None) -> str:
    if megabytes is None:
        return "?"
    return f"{megabytes:.0f}" if megabytes >= 1 else "< 1"


def _clock(seconds: int | None) -> str:
    return "?" if seconds is None else f"{seconds // 60}:{seconds % 60:02d}"


def flops_per_second() -> float:
    """float32 operations a second of this machine's matrix product."""
    import numpy as np

    a = np.ones((768, 768), dtype=np.float32)
    a @ a
    started, n = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        a @ a
        n += 1
    return n * 2 * 768**3 / (time.perf_counter() - started)


def _n_examples(run: Run) -> int:
    data = run.recipe.data
    path = data.pairs or data.briefs
    rows = read_jsonl(Path(path)) if path else ()
    splits = Counter(str(row.get("split", "train")) for _, row in rows)
    limits = {"train": data.max_train, "validation": data.max_validation, "test": data.max_test}
    n_rows = sum(min(n, limits.get(split) or n) for split, n in splits.items())
    return n_rows * (data.generate.variants if data.briefs else 1)


def _teacher_mb(run: Run) -> float:
    return sum(f.stat().st_size for f in run.teacher.path.glob("*.safetensors")) / 1e6


def _student_share(run: Run) -> float:
    """The student's size over the teacher's, by layers: rough, and enough for a plan."""
    import json

    config = json.loads((run.teacher.path / "config.json").read_text("utf-8"))
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 1
    return min(1.0, (run.recipe.student.n_layers or layers) / layers)


def _size_mb(stage: str, run: Run) -> float:
    teacher, share = _teacher_mb(run), _student_share(run)
    sizes: dict[str, Callable[[], float]] = {
        "teacher": lambda: teacher / 4,
        "pairs": lambda: _n_examples(run) * 600 / 1e6,
        "student": lambda: teacher * share,
        "distill": lambda: teacher * share,
        "export": lambda: teacher * share,
        "quantize": lambda: teacher * share / 4,
        "bench": lambda: 0.3,
    }
    return sizes[stage]()


def _seconds(stage: str, run: Run, speed: float) -> float:
    n_parameters = _teacher_mb(run) * 1e6 / 4
    forward = 2 * n_parameters * _n_examples(run) / speed  # seconds a token of every example
    train = run.recipe.train
    if stage == "pairs":
        tokens = TOKENS_PER_PROMPT / INT8_READS + TOKENS_PER_COPY
        return 0.0 if run.recipe.data.pairs else forward * tokens
    if stage == "distill":
        per_example = forward * (TOKENS_PER_PROMPT + TOKENS_PER_COPY)
        epochs = train.epochs
        if epochs is None and train.max_steps:
            epochs = (
                train.max_steps * train.batch_size * train.accumulate / max(_n_examples(run), 1)
            )
        by_epochs = 3 * _student_share(run) * per_example * epochs if epochs else float("inf")
        by_clock = 60 * train.max_minutes if train.max_minutes else float("inf")
        return per_example + min(by_epochs, by_clock)
    return FIXED_SECONDS[stage] * max(0.2, _teacher_mb(run) / 538)
