"""How the passing of copy is shown in a terminal. Knows numbers; nothing of how they came."""

from typing import Any

from kdexport.copywriting.passing import ContentEvaluation
from kdexport.verdict.bootstrap import Interval
from kdexport.verdict.pass_rates import ALL, Group, Rate


def describe_passing(found: ContentEvaluation) -> Any:
    """A table with a row a group."""
    from rich.table import Table

    n = found.asked.candidates
    table = Table(title=f"briefs with a text that passes, of {n} texts each (share of all texts)")
    table.add_column("")
    has_teacher = len(found.models) > 1
    for name in ("briefs", "passing", *(("teacher", "difference", "ratio") * has_teacher)):
        table.add_column(name, justify="right")
    for group in found.groups:
        table.add_row(*_cells(group, has_teacher), style="bold" if group.by == ALL else None)
    return table


def _cells(group: Group, has_teacher: bool) -> list[str]:
    cells = [group.title, f"{group.n_briefs:,}", _rate(group.rate)]
    if has_teacher and group.teacher:
        cells += [_rate(group.teacher), _points(group.difference), _percent(group.ratio)]
    return cells


def _rate(rate: Rate) -> str:
    return f"{rate.best:.1%} ({rate.candidates:.0%})"


def _points(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}) points"


def _percent(found: Interval | None) -> str:
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})" if found else "too few"
