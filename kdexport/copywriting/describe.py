"""What was measured of copy, as a terminal shows it. Knows numbers; nothing of how they came."""

from typing import Any

from kdexport.copywriting.clicks import CANDIDATES, HeldOut
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


def describe_held_out(found: HeldOut) -> Any:
    """A table of what a ranker is worth, beside the base rate and chance."""
    from rich.table import Table

    rate = found.n_clicks / found.n_impressions
    title = f"{found.n_texts:,} texts in {found.n_groups:,} groups, {rate:.2%} of "
    table = Table(title=f"{title}{found.n_impressions:,} impressions clicked; held out in turns")
    for name in ("", "ranker", "base rate, chance"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("log loss, nats", f"{found.log_loss:.5f}", f"{found.log_loss_base:.5f}")
    for name, auc in (("", found.auc), (" in a channel, segment and group", found.auc_within)):
        table.add_row(f"AUC{name}", "-" if auc is None else f"{auc:.3f}", "0.500")
    picked = f"clicked, of the best of {CANDIDATES}"
    table.add_row(picked, f"{found.picked:.2%}", f"{found.chance:.2%}")
    lift = found.lift
    told = f"{lift.value:.3f} ({lift.low:.3f} to {lift.high:.3f})"
    table.add_row("lift", told, "1", style="bold")
    if lift.covers(1.0):
        table.caption = "no better than chance, as far as these clicks tell"
    return table
