"""`kdexport run --dry-run`: what would be done, how large and how long, before anything is done.

Times are estimates: the work in floating-point operations over the speed of this machine, which a
matrix product of a fifth of a second tells.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kdexport.errors import NotAtHandError
from kdexport.model_folder import (
    FP32_BYTES,
    WEIGHT_FILES,
    check_safetensors,
    has_weights,
    read_config,
)
from kdexport.pipeline.preflight import limits_of, load_asked_briefs, own_pairs, pairs_beside
from kdexport.pipeline.run import Run, open_run, plan
from kdexport.pipeline.stages import STAGES
from kdexport.recipe import Recipe

TOKENS_PER_PROMPT = 66  # of a brief
TOKENS_PER_COPY = 25
CHARACTERS_PER_TOKEN = 4  # of a user's own texts
INT8_BYTES = 1.1  # a parameter, with its scales and norms
CHECKPOINT_BYTES = 3 * FP32_BYTES  # weights and the optimizer's two moments
SMALL_FILES = 100e6  # tokenizers, texts, references, reports
INT8_READS = 2.0  # times as fast as float32
N_CANDIDATES = 9  # measured at most, of a grid of six depths and four widths
FIXED_SECONDS = {"teacher": 45.0, "student": 15.0, "export": 20.0, "quantize": 10.0, "bench": 120.0}
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What estimates follow from: parameters of both models, and the data within its limits.

    ``n_written``: of the examples those that the teacher writes.
    """

    n_teacher: int
    n_student: int
    n_examples: int
    prompt_tokens: int
    copy_tokens: int
    n_written: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of all examples."""
        return self.prompt_tokens + self.copy_tokens


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
    speed, sizes = flops_per_second(), sizes_of(run)
    return [
        _row(
            stage.name,
            stage.title,
            done=done,
            outputs=[str(path) for path in stage.outputs(run)],
            size_mb=round(_size_mb(stage.name, run, sizes), 1),
            seconds=0 if done else round(_seconds(stage.name, run, sizes, speed)),
        )
        for stage, done in plan(run)
    ]


def render_plan(rows: list[Row]) -> Any:
    """The plan as a rich table."""
    from rich.table import Table
    from rich.text import Text

    known = sum(row["seconds"] or 0 for row in rows)
    least = "at least" if any(row["seconds"] is None for row in rows) else "about"
    table = Table(
        title=f"{least} {known / 60:.0f} minutes", title_justify="left", title_style="bold"
    )
    for name in ("stage", "what", "state", "output", "MB", "time"):
        table.add_column(name, justify="right" if name in ("MB", "time") else "left")
    for row in rows:
        cells = (
            row["stage"],
            row["title"],
            "done" if row["done"] else "to do",
            *(row["outputs"][:1] or [""]),
            _size(row["size_mb"]),
            "" if row["done"] else _clock(row["seconds"]),
        )
        table.add_row(*map(Text, cells))  # names may look like rich's markup
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


def sizes_of(run: Run) -> Sizes:
    """The sizes of a run. Reads its data, and refuses what is wrong there."""
    n_teacher = _n_teacher(run)
    n_student = _n_student(run, n_teacher)
    data = run.recipe.data
    n_of, limits = dict.fromkeys(limits_of(data), 0), limits_of(data)
    asked = given = n_alone = 0
    for pair in pairs_beside(run) if data.pairs is None else own_pairs(run):
        if n_of[pair.split] != limits[pair.split]:
            n_of[pair.split] += 1
            asked += sum(len(message["content"]) for message in pair.messages)
            given += len(pair.completion) or TOKENS_PER_COPY * CHARACTERS_PER_TOKEN
            n_alone += not pair.completion
    n_prompt, n_copy = asked // CHARACTERS_PER_TOKEN, given // CHARACTERS_PER_TOKEN
    n_given = sum(n_of.values())
    if data.pairs is not None:
        return Sizes(n_teacher, n_student, n_given, n_prompt, n_copy, n_alone)
    briefs = load_asked_briefs(run)
    n = 0
    for split, limit in limits.items():
        n_copies = data.generate.variants * sum(brief.split == split for brief in briefs)
        n += n_copies if limit is None else min(n_copies, limit - n_of[split])
    n_prompt, n_copy = n_prompt + n * TOKENS_PER_PROMPT, n_copy + n * TOKENS_PER_COPY
    return Sizes(n_teacher, n_student, n_given + n, n_prompt, n_copy, n)


def _n_teacher(run: Run) -> int:
    """The teacher's parameters, by its files, or by its configuration where it has no weights."""
    if has_weights(run.teacher.path):
        return sum(check_safetensors(file) for file in run.teacher.path.glob(WEIGHT_FILES))
    from kdexport.train.model import load_shape

    return int(load_shape(run.teacher.path).num_parameters())


def _n_student(run: Run, n_teacher: int) -> int:
    """The student's parameters: layers by their number and width, tables by vocabulary and width.

    Narrower feed-forward blocks are left out of account, so it is rather too many.
    """
    config, wish = read_config(run.teacher.path / "config.json"), run.recipe.student
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    hidden = config.get("hidden_size") or config.get("n_embd")
    vocabulary = config.get("vocab_size")
    depth = wish.final_layers / layers if wish.final_layers and layers else 1.0
    width = wish.hidden_size / hidden if wish.hidden_size and hidden else 1.0
    kept = min(1.0, wish.vocab_size / vocabulary) if wish.vocab_size and vocabulary else 1.0
    n_tables = 1 if config.get("tie_word_embeddings", True) else 2
    tables = min(n_tables * (vocabulary or 0) * (hidden or 0), n_teacher)
    return round((n_teacher - tables) * depth * width**2 + tables * kept * width)


def room_needed(run: Run, stages: Collection[str]) -> tuple[int, int]:
    """Bytes that stages want free, in the run's folder and in that of the bundles.

    Models are counted as float32, whatever they are kept in elsewhere. The teacher's float32 graph
    is removed before the student comes. A student that is trained is written as the best one, twice
    while it is swapped, as two checkpoints and a third under way, and once more at the end.
    """
    sizes = sizes_of(run)
    student = FP32_BYTES * sizes.n_student
    training = 3 * student + 3 * CHECKPOINT_BYTES * sizes.n_student + _target_bytes(run, sizes)
    teacher_too = (3 * FP32_BYTES + 3 * CHECKPOINT_BYTES) * sizes.n_teacher
    steps = len(run.recipe.student.steps or [0]) - 1
    cutting = student + steps * 2 * student + (training if steps else 0.0)
    if run.recipe.student.budget is not None:
        cutting += 3 * student  # a candidate and its bundles
    in_run = {"student": float(cutting), "distill": training, "finetune": float(teacher_too)}
    n_exported = sizes.n_teacher if run.recipe.opens_teacher else 0
    teacher = FP32_BYTES * n_exported if "teacher" in stages else 0
    in_exported = {"teacher": INT8_BYTES * n_exported, "export": float(student)}
    if run.quantized_bundle != run.student_bundle:
        in_exported["quantize"] = INT8_BYTES * sizes.n_student
    room = max(teacher, sum(in_run.get(stage, 0.0) for stage in stages))
    bundles = sum(in_exported.get(stage, 0.0) for stage in stages)
    return round(room + SMALL_FILES), round(bundles + SMALL_FILES)


def _target_bytes(run: Run, sizes: Sizes) -> float:
    """What is kept of the teacher's targets: ids and half-precision numbers for each token."""
    train = run.recipe.train
    if train.texts_alone:
        return 0.0
    n_tokens = sizes.n_tokens if train.prompt_weight else sizes.copy_tokens
    config = read_config(run.teacher.path / "config.json")
    hidden = config.get("hidden_size") or config.get("n_embd") or 0
    vocabulary = run.recipe.student.vocab_size or config.get("vocab_size") or 0
    one = 4 if vocabulary <= 2**16 else 6
    a_token = {
        "cached": one * train.top_k + 2,
        "sampled": one * train.n_sampled + 2,
        "hidden": 2 * hidden,
        "live": 0,
        "imported": 0,
    }
    return float(n_tokens * a_token[train.targets])


def _size_mb(stage: str, run: Run, sizes: Sizes) -> float:
    student = FP32_BYTES * sizes.n_student
    quantizes = run.quantized_bundle != run.student_bundle
    n_bytes: dict[str, float] = {
        "teacher": INT8_BYTES * sizes.n_teacher if run.recipe.opens_teacher else 0,
        "pairs": 300 * sizes.n_examples + CHARACTERS_PER_TOKEN * sizes.n_tokens,
        "student": student,
        "distill": student,
        "export": student,
        "quantize": INT8_BYTES * sizes.n_student if quantizes else 0,
        "bench": 0.3e6,
    }
    return n_bytes[stage] / 1e6


def _seconds(stage: str, run: Run, sizes: Sizes, speed: float) -> float:
    a_token = 2 * sizes.n_teacher / speed  # that the teacher reads
    if stage == "pairs":
        written = sizes.prompt_tokens / INT8_READS + sizes.copy_tokens
        share = sizes.n_written / max(sizes.n_examples, 1)
        return run.recipe.data.generate.best_of * a_token * written * share
    if stage == "distill":
        asks = run.recipe.opens_teacher and not run.recipe.train.texts_alone
        asking = a_token * sizes.n_tokens if asks else 0.0
        return _distilling_seconds(run, sizes, speed, asking=asking)
    if stage == "teacher" and not run.recipe.opens_teacher:
        return 0.0
    largest = sizes.n_teacher if run.recipe.opens_teacher else sizes.n_student
    seconds = FIXED_SECONDS[stage] * max(0.2, FP32_BYTES * largest / 538e6)
    if stage == "student":
        seconds += _choosing_seconds(run, sizes) + _seconds_between(run, sizes, speed)
    return seconds


def _choosing_seconds(run: Run, sizes: Sizes) -> float:
    """Exporting and timing candidates, where a budget asks for that."""
    if run.recipe.student.budget is None:
        return 0.0
    one = FIXED_SECONDS["export"] + FIXED_SECONDS["quantize"]
    return N_CANDIDATES * one * max(0.2, FP32_BYTES * sizes.n_teacher / 538e6)


def _seconds_between(run: Run, sizes: Sizes, speed: float) -> float:
    """Training between cuts; each layer takes its share of the student's parameters."""
    wish = run.recipe.student
    if wish.between is None or wish.steps is None:
        return 0.0
    of_data = 6 * sizes.n_student * sizes.n_tokens / speed
    n_epochs = [wish.between.epochs] if wish.between.epochs else []
    if wish.between.max_steps:
        n_seen = wish.between.max_steps * run.recipe.train.batch_size * run.recipe.train.accumulate
        n_epochs.append(n_seen / max(sizes.n_examples, 1))
    return sum(min(n_epochs) * of_data * n / wish.steps[-1] for n in wish.steps[:-1])


def _distilling_seconds(run: Run, sizes: Sizes, speed: float, *, asking: float) -> float:
    """Asking the teacher, then training until the clock or the epochs end.

    The clock counts from the asking on; backward is twice the work of forward.
    """
    train = run.recipe.train
    ends = (
        [max(60 * train.max_minutes, asking + 20 * train.max_minutes)] if train.max_minutes else []
    )
    epochs = [train.epochs] if train.epochs else []
    if train.max_steps:
        n_seen = train.max_steps * train.batch_size * train.accumulate
        epochs.append(n_seen / max(sizes.n_examples, 1))
    if epochs:
        ends.append(asking + min(epochs) * 6 * sizes.n_student * sizes.n_tokens / speed)
    return min(ends)
