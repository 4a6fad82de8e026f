"""Which of several bundles to take: those that no other beats, and the pick for a stated need.

Knows numbers of a report; measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kdexport.verdict.conditions import Condition
from kdexport.verdict.measures import MEASURES, read_measure, told
from kdexport.verdict.report import BenchReport

if TYPE_CHECKING:
    from rich.table import Table

AXES = ("size_mb", "decode_tok_s", "kl_mean")
TOLERANCE = 0.03  # a difference up to this much is none
NOTHING = 1e-9  # what 0 counts as on a logarithm: the KL of the teacher itself


@dataclass(frozen=True)
class Candidate:
    """An arm with its numbers (those of AXES and of what is asked) and what is to say of it.

    ``beaten_by``: an arm of the front that is no larger, no slower and no farther from the teacher.
    ``fails``: needs that it does not meet. ``on_front`` is False too where an axis is missing.
    """

    arm: str
    numbers: dict[str, float | None]
    on_front: bool
    beaten_by: str | None
    fails: list[str]


@dataclass(frozen=True)
class Choice:
    """All arms, the one to take (None: no need was stated, or none meets it), and why."""

    candidates: list[Candidate]
    pick: str | None
    why: str

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def choose(report: BenchReport, needs: Sequence[Condition], best: str | None = None) -> Choice:
    """The Pareto front of size, speed and quality; of the arms that meet the needs the best.

    ``best``: the measure that decides among those; None: `kl_mean`, where needs are stated.
    """
    asked = dict.fromkeys([*AXES, *(need.measure for need in needs), *([best] if best else [])])
    numbers = {
        arm.arm: {name: read_measure(report, arm, name) for name in asked}
        for arm in report.ordered_arms
    }
    front, beaten = _front({arm: [row[name] for name in AXES] for arm, row in numbers.items()})
    candidates = [
        Candidate(
            arm,
            row,
            arm in front,
            beaten.get(arm),
            [str(need) for need in needs if not _meets(need, arm, row, list(numbers))],
        )
        for arm, row in numbers.items()
    ]
    if not needs and best is None:
        return Choice(candidates, None, "no need is stated")
    return Choice(candidates, *_pick(candidates, needs, best or "kl_mean"))


def _meets(need: Condition, arm: str, row: dict[str, float | None], arms: Sequence[str]) -> bool:
    value = row[need.measure]
    return value is not None and need.holds(value) and arm in need.arms(arms, arm)


def _pick(
    candidates: Sequence[Candidate], needs: Sequence[Condition], best: str
) -> tuple[str | None, str]:
    """The arm to take, and why; among equals the one that is first by AXES."""
    words = " and ".join(map(str, needs)) or "nothing is asked for"
    fit = [one for one in candidates if not one.fails]
    if not fit:
        return None, f"nothing meets {words}{_nearest(candidates, needs)}"
    known = [one for one in fit if one.numbers[best] is not None]
    if not known:
        return None, f"{best} was not measured of what meets {words}"
    pick = min(known, key=lambda one: [_cost(name, one.numbers[name]) for name in (best, *AXES)])
    value = told(best, pick.numbers[best] or 0.0)
    extreme = "smallest" if MEASURES[best].better == "less" else "largest"
    of = f"of {len(fit)} that meet {words} " if needs else ""
    return pick.arm, f"{of}it has the {extreme} {best}, {value}"


def _nearest(candidates: Sequence[Candidate], needs: Sequence[Condition]) -> str:
    """How near one comes to a need, where there is but one."""
    if len(needs) != 1:
        return ""
    name = needs[0].measure
    known = [one for one in candidates if one.numbers[name] is not None]
    if not known:
        return f": {name} was not measured"
    nearest = min(known, key=lambda one: _cost(name, one.numbers[name]))
    return f": the nearest is {nearest.arm} with {told(name, nearest.numbers[name] or 0.0)}"


def _cost(name: str, value: float | None) -> float:
    """A number, less being better; infinite where it was not measured."""
    if value is None:
        return math.inf
    return value if MEASURES[name].better == "less" else -value


def _front(rows: dict[str, Sequence[float | None]]) -> tuple[list[str], dict[str, str]]:
    """The arms that none beats by more than TOLERANCE on all axes, and who beats each other one.

    On logarithms an arm that is better everywhere has the smaller sum, so it is seen first, and
    whatever is beaten is beaten by one of the front (an ε-Pareto set, Laumanns et al. 2002).
    """
    costs = {}
    for arm, values in rows.items():
        if None not in values:
            pairs = zip(AXES, values, strict=True)
            costs[arm] = [_log_cost(name, value or 0.0) for name, value in pairs]
    front: list[str] = []
    beaten: dict[str, str] = {}
    slack = math.log1p(TOLERANCE)
    for arm in sorted(costs, key=lambda name: sum(costs[name])):
        better = [f for f in front if _covers(costs[f], costs[arm], slack)]
        if better:
            beaten[arm] = better[0]
        else:
            front.append(arm)
    return front, beaten


def _log_cost(name: str, value: float) -> float:
    log = math.log(max(value, NOTHING))
    return log if MEASURES[name].better == "less" else -log


def _covers(one: Sequence[float], other: Sequence[float], slack: float) -> bool:
    return all(a <= b + slack for a, b in zip(one, other, strict=True))


def render_choice(choice: Choice) -> Table:
    """A row an arm, those of the front marked, the pick in bold; reads well without colour."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("arm", overflow="fold")
    names = list(choice.candidates[0].numbers) if choice.candidates else []
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for one in choice.candidates:
        mark = "→" if one.arm == choice.pick else "*" if one.on_front else ""
        cells = ["–" if v is None else f"{v:,.4g}" for v in one.numbers.values()]  # noqa: RUF001
        style = "bold" if one.arm == choice.pick else "" if one.on_front else "dim"
        row = (mark, one.arm, *cells, _remark(one))
        table.add_row(*(Text(cell, style=style) for cell in row))
    return table


def _remark(one: Candidate) -> str:
    told = [f"fails {', '.join(one.fails)}"] if one.fails else []
    missing = [name for name in AXES if one.numbers[name] is None]
    if one.on_front:
        told.insert(0, "on the front")
    elif one.beaten_by:
        told.insert(0, f"beaten by {one.beaten_by}")
    elif missing:
        told.insert(0, f"{', '.join(missing)} not measured")
    return "; ".join(told)
