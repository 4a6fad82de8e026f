"""One table of a bench report, shared by the terminal, the README and the page.

Knows the columns and how many decimals each deserves; knows no colours and no HTML. As CSV it has
all measures, and every decimal.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kdexport.verdict.cases import timing_notes
from kdexport.verdict.measures import MEASURES, TIMED, read_measure
from kdexport.verdict.report import REFERENCE_ARM, ArmResult, BenchReport, quality_texts

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "–"  # noqa: RUF001  (an en dash is meant)
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Column:
    """One column: `read` gives the numbers of a cell, which are joined by `joint`.

    All cells of a column share their decimals, so that they line up: as many as the smallest
    leading number needs for `digits` significant ones, at most `most`.
    """

    title: str
    unit: str
    read: Callable[[BenchReport, ArmResult], Values]
    digits: int
    most: int
    joint: str = " / "
    suffix: str = ""

    @property
    def header(self) -> str:
        """Title and unit on one line."""
        return f"{self.title} {self.unit}".strip()

    def cells(self, report: BenchReport, arms: Sequence[ArmResult]) -> list[str]:
        """The column's text for each arm."""
        rows = [self.read(report, arm) for arm in arms]
        decimals = shared_decimals([row[0] for row in rows], self.digits, self.most)
        return [self._cell(row, decimals) for row in rows]

    def _cell(self, row: Values, decimals: int) -> str:
        known = [fixed(value, decimals) for value in row if value is not None]
        return self.joint.join(known) + self.suffix if known else MISSING


@dataclass(frozen=True)
class Row:
    """One arm's line: its name and its cells in the order of `COLUMNS`."""

    arm: str
    label: str
    cells: tuple[str, ...]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


COLUMNS: tuple[Column, ...] = (
    Column("size", "MB", lambda _, a: (a.size_mb,), 2, 1),
    Column("peak RSS", "MB", lambda _, a: (a.peak_rss_mb,), 2, 1),
    Column("load", "s", lambda _, a: (a.load_s,), 2, 2),
    Column("TTFT p50/p99", "ms", lambda _, a: (a.ttft_p50_ms, a.ttft_p99_ms), 2, 1),
    Column("TPOT p50/p99", "ms", lambda _, a: (a.tpot_p50_ms, a.tpot_p99_ms), 2, 1),
    Column("decode", "tok/s", lambda _, a: (a.decode_mean_tok_s, a.decode_sd_tok_s), 3, 1, " ± "),
    Column("speed-up", "", lambda r, a: (r.speed_up(a),), 3, 1, suffix="×"),  # noqa: RUF001
    Column("perplexity", "", lambda _, a: (a.perplexity,), 4, 1),
    Column("KL to teacher", "nats", lambda r, a: (r.kl(a),), 9, 3),
    Column("same top-1", "%", lambda r, a: (_percent(r.top1(a)),), 9, 1),
)


def table_rows(report: BenchReport) -> list[Row]:
    """One row per measured arm, cells in the order of `COLUMNS`."""
    arms = report.ordered_arms
    columns = [column.cells(report, arms) for column in COLUMNS]
    return [
        Row(arm.arm, arm.label, tuple(cells[at] for cells in columns))
        for at, arm in enumerate(arms)
    ]


def footnotes(report: BenchReport) -> list[str]:
    """What the columns mean, one short sentence each, with the sizes of the samples."""
    s, arms = report.settings, report.arms
    n_quality = max((arm.n_quality_tokens for arm in arms), default=0)
    n_gaps = max((len(arm.itl_ms) for arm in arms), default=0)
    notes = [
        f"Each arm in its own process: {s.n_threads} {_plural('thread', s.n_threads)}, "
        f"batch {s.batch_size}, {s.prompt_tokens} prompt and {s.new_tokens} new tokens, "
        f"{s.n_runs} {_plural('run', s.n_runs)}. Size is on disk; peak RSS is the whole process.",
        "TTFT: from prompt text to first token; with few runs its p99 is near the slowest. "
        f"TPOT: gaps between tokens, all runs pooled (n = {n_gaps:,}).",
        "decode: mean ± standard deviation over runs. Speed-up: decode against "
        f"{_label(report, report.baseline)}.",
        *timing_notes(report),
    ]
    if n_quality:
        notes.append(
            f"Perplexity, KL(teacher || arm) and top-1 on {n_quality:,} tokens of "
            f"{quality_texts(report)}. The "
            "teacher's distribution is renormalised over the student's vocabulary; outside its top "
            "tokens the KL is estimated from draws, without bias."
        )
    if any(arm.arm == REFERENCE_ARM and arm.kl_mean is None for arm in arms) and n_quality:
        notes.append("The teacher in PyTorch is the reference: KL 0 and top-1 100 % by definition.")
    return notes


N_SAMPLES = 3  # in a terminal; the page has all
WIDE = 100  # columns of a terminal from which on the arms are rows


def render_table(report: BenchReport, width: int = WIDE) -> Table:
    """The table for a terminal ``width`` columns wide; reads well without colour.

    Arms are rows where there is room for all columns; on a narrower terminal they are columns.
    """
    hero = None if report.hero is None else report.hero.arm
    headers = [column.header for column in COLUMNS]
    return laid_out(headers, table_rows(report), footnotes(report), hero, wide=width >= WIDE)


def laid_out(
    headers: Sequence[str],
    rows: Sequence[Row],
    notes: Sequence[str],
    hero: str | None,
    *,
    wide: bool,
) -> Table:
    """Rows with their notes below; not ``wide``, they are columns. The arm ``hero`` is bold."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=Text("\n".join(notes), style="dim") if notes else None,
        caption_justify="left",
    )
    grid = [[Text(""), *(Text(_broken(header) if wide else header) for header in headers)]]
    for row in rows:
        style = "bold" if row.arm == hero else ""
        label = row.label if wide else _broken(row.label)
        cells = (compact(cell) for cell in row.cells)
        grid.append([Text(text, style=style) for text in (label, *cells)])
    if not wide:
        grid = [list(line) for line in zip(*grid, strict=True)]
    heads, *lines = grid
    for number, head in enumerate(heads):
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(head, justify=justify, no_wrap=True, vertical="bottom")
    for line in lines:
        table.add_row(*line)
    return table


def render_samples(report: BenchReport) -> Table:
    """What teacher and student wrote for the sample briefs, one under the other.

    Of several students, those who wrote.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    shown = [arm for arm in (report.baseline_arm, report.hero) if arm is not None]
    if report.hero is None:
        shown = report.ordered_arms
    for sample in report.samples[:N_SAMPLES]:
        table.add_row(Text("brief", style="dim"), Text(sample.prompt, style="dim"))
        for arm in shown:
            style = "bold" if arm is report.hero else ""
            if report.hero is not None or arm.arm in sample.copies:
                table.add_row(arm.label, Text(sample.copies.get(arm.arm, MISSING), style=style))
        table.add_row("", "")
    return table


def compact(cell: str) -> str:
    """A cell without the space around what joins its numbers."""
    return cell.replace(" / ", "/").replace(" ± ", "±")


def _broken(text: str) -> str:
    """One word a line, for the head of a narrow column."""
    return "\n".join(text.split())


def markdown_table(report: BenchReport, *, notes: bool = True, of: ArmResult | None = None) -> str:
    """The table in GitHub's Markdown, ``of`` or the report's own arm in bold, footnotes below."""
    hero = of or report.hero
    headers = [column.header for column in COLUMNS]
    lines = [
        "| | " + " | ".join(headers) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for row in table_rows(report):
        cells = [_in_cell(cell) for cell in (row.label, *row.cells)]
        if hero is not None and row.arm == hero.arm:
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    if notes:
        lines += ["", *(f"- {note}" for note in footnotes(report))]
    return "\n".join(lines) + "\n"


def csv_table(report: BenchReport) -> Iterator[str]:
    """All numbers as lines of CSV: a row an arm, whole floats, nothing where none was measured.

    Behind them a row for each further case and arm, with what depends on the case.
    """
    facts = ("arm", "engine", "n_parameters", "n_quality_tokens", "quality_split")
    yield _csv_line([*facts, *MEASURES, *_settings(report), "cpu", "created"])
    further = [(report.in_case(case), TIMED) for case in report.settings.others]
    for of_case, names in [(report, tuple(MEASURES)), *further]:
        for arm in of_case.ordered_arms:
            numbers = [read_measure(of_case, arm, n) if n in names else None for n in MEASURES]
            about = [*_settings(of_case).values(), report.machine.cpu, report.created]
            yield _csv_line([*(getattr(arm, name) for name in facts), *numbers, *about])


def _settings(report: BenchReport) -> dict[str, object]:
    return report.settings.model_dump(exclude={"others"})


def _csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def shared_decimals(values: Sequence[float | None], digits: int, most: int) -> int:
    """Decimals that give the smallest non-zero value `digits` significant digits, 0 to `most`."""
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return 0 if digits <= 4 else most
    return max(0, min(most, digits - 1 - math.floor(math.log10(min(sizes)))))


def fixed(value: float, decimals: int) -> str:
    """`value` with that many decimals and thousands set off; above a million as 4.1e+07."""
    return f"{value:.1e}" if abs(value) >= 1e6 else f"{value:,.{decimals}f}"


def _in_cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def _label(report: BenchReport, name: str) -> str:
    arm = report.arm(name)
    return arm.label if arm else f"{name} (not measured)"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
