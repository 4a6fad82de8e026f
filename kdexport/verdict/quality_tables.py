"""The small tables: a matrix's students, times in detail and in other cases, quality by token, cost
of stages, copy, and sizes within a budget.

Each for the terminal and the page. Knows which numbers stand where; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdexport.verdict.bootstrap import COVERED, Interval
from kdexport.verdict.cases import CASE_COLUMNS, TIME_COLUMNS, case_rows, time_cells
from kdexport.verdict.choices import limits_text
from kdexport.verdict.pass_rates import LEAST_PASSED, Group
from kdexport.verdict.report import ARM_LABELS, REFERENCE_ARM, BenchReport
from kdexport.verdict.scores import CopyScores, Evaluation, StageLoss, TokenQuality
from kdexport.verdict.table import MISSING, WIDE, Row, compact, fixed, laid_out

if TYPE_CHECKING:
    from rich.table import Table

NOISE = "within noise"
LEAST_TOLD = 8  # briefs: of fewer no difference is told
ROUNDING = "within rounding"  # smaller than what is shown, if not nothing
STEPS = {  # by the arm that a stage leaves
    "teacher-int8": "teacher quantized",
    "student-torch-fp32": "distilled",
    "student-fp32": "exported",
    "student-int8": "quantized",
}


@dataclass(frozen=True)
class Grid:
    """A table with its title and the notes below it."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def grids(report: BenchReport) -> list[Grid]:
    """The tables that the report has numbers for."""
    found = [_students(report), _times(report), *_cases(report), _tokens(report)]
    found += [_losses(report), _copies(report), _passing(report), _sizes(report)]
    return [grid for grid in found if grid is not None]


def evaluation_grids(found: Evaluation) -> list[Grid]:
    """The tables of a bundle on someone's own texts, and of its teacher."""
    first = found.judged[0].quality
    left_out = f"; {found.n_too_long:,} too long, left out" if found.n_too_long else ""
    notes = [
        f"{first.n_quality_tokens:,} tokens of {found.n_texts:,} texts of {found.data}{left_out}. "
        "Perplexity ± its standard error over tokens. ECE: expected calibration error, 15 bins."
    ]
    columns: list[tuple[str, Callable[[TokenQuality], str]]] = [
        ("perplexity", _perplexity),
        *((name, read) for name, read in TOKEN_COLUMNS if name == "ECE %"),
    ]
    if first.kl_mean is not None:
        columns += [column for column in TOKEN_COLUMNS if column[0] != "ECE %"]
        notes.append("KL(teacher || model) in nats per token; the rest as in a bench.")
    rows = tuple(
        Row(one.model, one.model, tuple(read(one.quality) for _, read in columns))
        for one in found.judged
    )
    grids = [Grid("Quality by token", tuple(name for name, _ in columns), rows, tuple(notes))]
    copies = [(one.model, one.model, one.copies) for one in found.judged if one.copies is not None]
    if copies:
        grids.append(_copy_grid(copies, "completions"))
    return grids


def render_grid(grid: Grid, hero: str | None, width: int = WIDE) -> Table:
    """A table for a terminal ``width`` columns wide; the row of the arm ``hero`` stands out."""
    table = laid_out(grid.headers, grid.rows, grid.notes, hero, wide=_fits(grid, width))
    table.title = grid.title
    table.title_justify = "left"
    return table


def _fits(grid: Grid, width: int) -> bool:
    """Whether an arm a row has room; heads are broken at their spaces."""
    heads = ("", *(max(header.split(), key=len) for header in grid.headers))
    rows = [(row.label, *map(compact, row.cells)) for row in grid.rows]
    columns = zip(heads, *rows, strict=True)
    return sum(1 + max(map(len, column)) for column in columns) <= width


def loss_label(loss: StageLoss) -> str:
    """A stage's name: what is done in it, or from which arm to which."""
    label = ARM_LABELS.get(loss.arm, loss.arm)
    if loss.arm not in STEPS or (loss.made_from == REFERENCE_ARM) is (loss.arm in _LATER):
        return f"{ARM_LABELS.get(loss.made_from, loss.made_from)} → {label}"
    return STEPS[loss.arm]


_LATER = ("student-fp32", "student-int8")  # which no stage makes of the teacher


def _students(report: BenchReport) -> Grid | None:
    """The students of a matrix by their values."""
    if report.matrix is None:
        return None
    rows = []
    for student in report.matrix.students:
        arm = report.arm(student.arm)
        if arm is None:
            continue
        counts = tuple(f"{student.pairs.get(split, 0):,}" for split in ("train", "test"))
        quality = (
            (arm.kl_mean, 1, 3),
            (arm.top1, 100, 1),
            (arm.perplexity, 1, 2),
            (arm.size_mb, 1, 1),
            (arm.decode_mean_tok_s, 1, 1),
        )
        cells = (MISSING if x is None else fixed(scale * x, n) for x, scale, n in quality)
        rows.append(Row(arm.arm, student.value, (*counts, *cells)))
    headers = (
        *("train pairs", "test pairs", "KL nats", "top-1 %", "perplexity", "MB", "decode tok/s"),
    )
    notes = (
        "Each student learnt from the rows of its value and from those that name none, and is "
        "measured on test rows of the same kind: other texts for each.",
    )
    return Grid(f"A student for each {report.matrix.column}", headers, tuple(rows), notes)


def _times(report: BenchReport) -> Grid | None:
    rows = tuple(
        Row(arm.arm, arm.label, tuple(cell or MISSING for cell in time_cells(report, arm)))
        for arm in report.ordered_arms
    )
    notes = (
        "Prefill: tokens of the prompt over the time to first token. Steady RSS: after the runs.",
    )
    return Grid("Time and memory in detail", TIME_COLUMNS, rows, notes) if rows else None


def _sizes(report: BenchReport) -> Grid | None:
    """The candidates within a budget; the chosen one is the report's own arm."""
    budget = report.budget
    if budget is None:
        return None
    rows = []
    for one in budget.candidates:
        numbers = ((one.n_parameters / 1e6, 1), (one.tpot_ms, 2), (one.size_mb, 1))
        cells = [MISSING if x is None else fixed(x, decimals) for x, decimals in numbers]
        verdict = {None: "", True: "fits", False: "too much"}[one.fits]
        own = report.hero.arm if one.chosen and report.hero else ""
        row = Row(own, one.shape, (*cells, "chosen" if one.chosen else verdict))
        rows.append(row)
    notes = (
        "Sizes that the student could have had, exported with random weights and timed before it "
        "was made; as few as tell what fits. Chosen: most parameters besides embeddings and head.",
    )
    title = f"Sizes within {limits_text(budget.tpot_ms, budget.size_mb)}"
    return Grid(title, ("M parameters", "ms a token", "MB", ""), tuple(rows), notes)


def _cases(report: BenchReport) -> list[Grid]:
    rows: dict[str, list[Row]] = {}
    for row in case_rows(report):
        rows.setdefault(row.case, []).append(Row(row.arm, row.label, row.cells))
    return [Grid(f"With {case}", CASE_COLUMNS, tuple(found), ()) for case, found in rows.items()]


def _tokens(report: BenchReport) -> Grid | None:
    scored = [
        arm for arm in report.ordered_arms if arm.texts is not None and arm.kl_mean is not None
    ]
    if not scored:
        return None
    rows = tuple(
        Row(arm.arm, arm.label, tuple(read(arm) for _, read in TOKEN_COLUMNS)) for arm in scored
    )
    notes = (
        "KL(teacher || arm) in nats per token. Top-5: the arm's likeliest token is one of the "
        "teacher's five. PPL ratio: perplexity over the teacher's, ± its standard error, paired by "
        "token. ECE: expected calibration error, 15 bins.",
    )
    return Grid("Quality by token", tuple(name for name, _ in TOKEN_COLUMNS), rows, notes)


def _losses(report: BenchReport) -> Grid | None:
    if not report.losses:
        return None
    rows = tuple(
        Row(
            loss.arm,
            loss_label(loss),
            (
                spanned(loss.kl, 3),
                MISSING if loss.ppl_ratio is None else spanned(loss.ppl_ratio, 3, same=1.0),
                spanned(loss.top1, 1, scale=100),
            ),
        )
        for loss in report.losses
    )
    texts = next((arm.texts for arm in report.arms if arm.texts is not None), None)
    n_texts = len(texts.tokens) if texts else 0
    notes = (
        f"Each stage beside the one before. In brackets {COVERED} % of the bootstrap over "
        f"{n_texts:,} texts, the same for both sides; where that holds no loss, it says so.",
    )
    headers = ("KL added, nats", "PPL ratio", "top-1 lost, %")
    return Grid("What each stage cost", headers, rows, notes)


def _copies(report: BenchReport) -> Grid | None:
    scored = [
        (arm.arm, arm.label, arm.copies) for arm in report.ordered_arms if arm.copies is not None
    ]
    return _copy_grid(scored, "teacher's copy") if scored else None


def _copy_grid(scored: Sequence[tuple[str, str, CopyScores]], references: str) -> Grid:
    """``scored``: name, label and scores; ``references``: what the copy is beside."""
    columns = [
        (name, read)
        for name, read in COPY_COLUMNS
        if any(read(copies) != MISSING for _, _, copies in scored)
    ]
    rows = tuple(
        Row(name, label, tuple(read(copies) for _, read in columns))
        for name, label, copies in scored
    )
    n_requests = max(len(copies.requests) for _, _, copies in scored)
    note = f"Greedy copy for {n_requests} prompts."
    if any("chrf" in copies.intervals for _, _, copies in scored):
        note += (
            f" chrF and similarity: to the {references}. Same tokens: before the first that "
            "differs, median. "
        )
        note += (
            f"* differs from the {references} ({COVERED} % of the paired bootstrap over prompts); "
            "without it, within noise."
            if any(copies.against for _, _, copies in scored)
            else f"These are too few to tell what differs from the {references} beyond noise."
        )
    return Grid("Copy", tuple(name for name, _ in columns), rows, (note,))


def _passing(report: BenchReport) -> Grid | None:
    """How often copy passes all checks: an arm a row, a channel or language a column."""
    rated = [(arm, arm.copies.pass_rates) for arm in report.ordered_arms if arm.copies]
    rated = [(arm, found) for arm, found in rated if found]
    if not rated:
        return None
    rows = tuple(
        Row(arm.arm, arm.label, (*map(_rate, found), _beside_teacher(found[0])))
        for arm, found in rated
    )
    headers = (f"{group.name.replace('_', ' ')} ({group.n_briefs})" for group in rated[0][1])
    notes = (
        "Of the same copy, how many in 100 have no fault by any check of brief, channel and brand; "
        f"in brackets how many briefs. * differs from the teacher's ({COVERED} % of the paired "
        f"bootstrap over briefs, {LEAST_TOLD} or more). Ratio: of all, over the teacher's, where "
        f"{LEAST_PASSED} of its texts pass.",
    )
    return Grid("Passing all checks, %", (*headers, "ratio"), rows, notes)


def _rate(group: Group) -> str:
    differs = group.difference is not None and not group.difference.covers()
    return fixed(100 * group.rate.best, 0) + "*" * (differs and group.n_briefs >= LEAST_TOLD)


def _beside_teacher(group: Group) -> str:
    return MISSING if group.ratio is None else spanned(group.ratio, 2, same=1.0)


def spanned(interval: Interval, decimals: int, *, same: float = 0.0, scale: float = 1.0) -> str:
    """A difference with its interval: ``0.353 [0.310, 0.398]``; or that it is none to speak of."""
    value, low, high = (
        fixed(scale * each, decimals) for each in (interval.value, interval.low, interval.high)
    )
    if interval.covers(same):
        return f"{value} {NOISE}"
    if low == high == fixed(scale * same, decimals):
        return f"{value} {ROUNDING}"
    return f"{value} [{low}, {high}]"


def _number(name: str, decimals: int, scale: float = 1.0) -> Callable[[TokenQuality], str]:
    def read(arm: TokenQuality) -> str:
        value: float | None = getattr(arm, name)
        return MISSING if value is None else fixed(scale * value, decimals)

    return read


def _ratio(arm: TokenQuality) -> str:
    if arm.ppl_ratio is None:
        return MISSING
    error = "" if arm.ppl_ratio_se is None else f" ± {fixed(arm.ppl_ratio_se, 3)}"
    return f"{fixed(arm.ppl_ratio, 3)}{error}"


def _perplexity(arm: TokenQuality) -> str:
    if arm.perplexity is None:
        return MISSING
    error = "" if arm.perplexity_se is None else f" ± {fixed(arm.perplexity_se, 2)}"
    return f"{fixed(arm.perplexity, 2)}{error}"


def _mean(name: str, decimals: int, scale: float = 1.0) -> Callable[[CopyScores], str]:
    def read(copies: CopyScores) -> str:
        found = copies.intervals.get(name)
        if found is None:
            return MISSING
        against = copies.against.get(name)
        mark = "" if against is None or against.covers() else "*"
        return fixed(scale * found.value, decimals) + mark

    return read


def _same_tokens(copies: CopyScores) -> str:
    return MISSING if copies.n_as_reference is None else fixed(copies.n_as_reference, 0)


TOKEN_COLUMNS: Sequence[tuple[str, Callable[[TokenQuality], str]]] = (
    ("KL mean", _number("kl_mean", 3)),
    ("median", _number("kl_p50", 3)),
    ("p90", _number("kl_p90", 3)),
    ("p99", _number("kl_p99", 2)),
    ("max", _number("kl_max", 1)),
    ("top-1 %", _number("top1", 1, 100)),
    ("top-5 %", _number("top5", 1, 100)),
    ("PPL ratio", _ratio),
    ("ECE %", _number("ece", 1, 100)),
)
COPY_COLUMNS: Sequence[tuple[str, Callable[[CopyScores], str]]] = (
    ("chrF", _mean("chrf", 1)),
    ("similarity", _mean("similarity", 2)),
    ("same tokens", _same_tokens),
    ("words", _mean("n_words", 1)),
    ("distinct-1/2", lambda copies: f"{copies.distinct_1:.2f} / {copies.distinct_2:.2f}"),
    ("self-BLEU", _mean("self_bleu", 1)),
    ("repeated %", _mean("repeated", 1, 100)),
    ("same language %", _mean("same_language", 0, 100)),
    ("checks passed %", _mean("passed", 0, 100)),
)
