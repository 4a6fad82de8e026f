"""Conditions on a report's numbers, such as ``kl_p99>1.0``: read from text, and held against it.

A threshold names what must not be (``--fail-if``, a recipe's ``bench.fail_if``), a need what must
be (``choose --need``). Neither knows where its text came from.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kdexport.verdict.measures import MEASURES, SHARE, Measure, read_measure, told
from kdexport.verdict.report import ARM_LABELS, BenchReport

SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
FORM = re.compile(
    r"\s*(?:(?P<arm>\S.*):)?\s*(?P<measure>\w+)\s*(?P<sign>[<>]=?)\s*(?P<limit>[^\s<>=]+)\s*"
)
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+|(?P<percent>%))?", re.ASCII)


@dataclass(frozen=True)
class Condition:
    """``[ARM:]MEASURE SIGN LIMIT``. Without an arm it is of the arm that a report is about.

    ``arm`` may be a pattern with ``*``: then it is of every arm that fits.
    """

    arm: str | None
    measure: str
    sign: str
    limit: float

    def __str__(self) -> str:
        arm = "" if self.arm is None else f"{self.arm}:"
        return f"{arm}{self.measure}{self.sign}{self.limit:.12g}"

    def holds(self, value: float) -> bool:
        """Whether it is true of a number."""
        return SIGNS[self.sign](value, self.limit)

    def arms(self, names: Sequence[str], hero: str | None) -> list[str]:
        """Which of the named arms it is of; ``hero`` is the one that a report is about."""
        if self.arm is None:
            return [name for name in names if name == hero]
        if self.arm in names:
            return [self.arm]
        return [name for name in names if fnmatch.fnmatchcase(name, self.arm)]


def parse_threshold(text: str, known: Mapping[str, Measure] = MEASURES) -> Condition:
    """A condition that must not hold, as in ``kl_p99>1.0``. Raises ValueError, in one line.

    One that would fail what is good (``speedup>8``) is refused: it would let pass what is bad.
    """
    return _parse(text, known, {"less": ">", "more": "<"}, "fails what is good")


def parse_need(text: str, known: Mapping[str, Measure] = MEASURES) -> Condition:
    """A condition that must hold, as in ``decode_tok_s>=60``. Raises ValueError, in one line."""
    return _parse(text, known, {"less": "<", "more": ">"}, "asks for what is bad")


def _parse(
    text: str, known: Mapping[str, Measure], wanted: Mapping[str, str], otherwise: str
) -> Condition:
    found = FORM.fullmatch(text)
    number = NUMBER.fullmatch(found["limit"]) if found else None
    if found is None or number is None or not math.isfinite(limit := _value(number)):
        raise ValueError(f"{text!r} is not [ARM:]MEASURE>NUMBER, as in kl_p99>1.0 or speedup<8")
    name, sign = found["measure"], found["sign"]
    measure = _known(name, known)
    if number["percent"] and measure.unit != SHARE:
        raise ValueError(f"{text!r}: {name} is no share, which % is for")
    if measure.unit == SHARE and not 0 <= limit <= 1:
        raise ValueError(f"{text!r}: {name} lies between 0 and 1; write 0.9 or 90%")
    if sign[0] != wanted[measure.better]:
        other = f"{name}{wanted[measure.better]}{sign[1:]}{found['limit']}"
        raise ValueError(f"{text!r} {otherwise}: {measure.better} is better; write {other}")
    return Condition(found["arm"], name, sign, limit)


def _known(name: str, known: Mapping[str, Measure]) -> Measure:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(known)
        raise ValueError(f"unknown measure {name!r}; {advice}")
    return known[name]


def parse_measure(name: str | None, better: str) -> str | None:
    """The name of a measure of which less, or more, is better; ValueError for another."""
    if name is not None and _known(name, MEASURES).better != better:
        raise ValueError(f"of {name}, {MEASURES[name].better} is better")
    return name


def _value(number: re.Match[str]) -> float:
    return float(number[0].replace("%", "e-2"))


def check_arms(conditions: Sequence[Condition], names: Sequence[str] = tuple(ARM_LABELS)) -> None:
    """Raise ValueError for a condition of an arm that there will not be."""
    for condition in conditions:
        if condition.arm is not None and not condition.arms(names, None):
            near = difflib.get_close_matches(condition.arm, names, n=1)
            advice = f"did you mean {near[0]!r}?" if near else "there are " + ", ".join(names)
            raise ValueError(f"'{condition}': no arm is called {condition.arm!r}; {advice}")


def failures(
    thresholds: Sequence[Condition],
    names: Sequence[str],
    hero: str | None,
    value: Callable[[str, str], float | None],
) -> list[str]:
    """A line for each threshold that is passed, and for each whose number was not measured.

    ``value`` gives a number by arm and measure.
    """
    lines = []
    for threshold in thresholds:
        for arm in threshold.arms(names, hero) or [threshold.arm or hero or "no arm"]:
            found = value(arm, threshold.measure) if arm in names else None
            if found is None or not math.isfinite(found):
                lines.append(f"{arm}: {threshold.measure} was not measured{_why(threshold)}")
            elif threshold.holds(found):
                is_now = told(threshold.measure, found)
                lines.append(f"{arm}: {threshold.measure} is {is_now}{_why(threshold)}")
    return lines


def _why(threshold: Condition) -> str:
    return f" (fails if {threshold})"


def report_failures(report: BenchReport, thresholds: Sequence[Condition]) -> list[str]:
    """A line for each threshold that a report fails; a number that is missing fails, too."""
    arms = {arm.arm: arm for arm in report.ordered_arms}
    hero = report.hero
    return failures(
        thresholds,
        list(arms),
        hero.arm if hero else None,
        lambda arm, name: read_measure(report, arms[arm], name),
    )
