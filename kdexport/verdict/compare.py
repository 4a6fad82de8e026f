"""Two benches side by side: what changed, and whether beyond noise.

A ratio's interval is Student's, on its logarithm, with the bootstrap's standard error (`repeats`).
Knows reports; not which of them is better overall.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdexport.verdict.measures import MEASURES, TIMED, Measure, read_measure
from kdexport.verdict.repeats import LEVEL, N_DRAWS, runs_drawn, student_t
from kdexport.verdict.report import ArmResult, BenchReport
from kdexport.verdict.scores import TextSums
from kdexport.verdict.stage_losses import same_texts

if TYPE_CHECKING:
    from rich.table import Table

N_BEYOND = 3  # samples that have to lie beyond a percentile for its noise to be known
Verdict = Literal["worse", "better", "noise", "unknown"]
Array = np.ndarray[Any, Any]

REGRESSIONS: Mapping[str, Measure] = {
    "regressions": Measure("", "less", lambda report, arm: None, exact=True)
}
"""What a threshold on a comparison may be of: how many measures of an arm got worse."""


@dataclass(frozen=True)
class Change:
    """A measure of one arm, before and after. ``ratio`` is new over old; ``low`` to ``high`` its
    interval, None where its noise is not known. ``case``: in which of the further ones; "" for the
    report's own.
    """

    arm: str
    measure: str
    old: float
    new: float
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    case: str = ""


@dataclass(frozen=True)
class Comparison:
    """``differences``: of machine, versions, settings, texts; with any, ratios are of these, too.

    ``alone``: arms that only one of the two has. ``hero``: the arm that the new report is about.
    """

    changes: list[Change]
    differences: list[str]
    alone: list[str]
    hero: str | None

    @property
    def arms(self) -> list[str]:
        """Arms that both have, in order."""
        return list(dict.fromkeys(change.arm for change in self.changes))

    def regressions(self, arm: str) -> int:
        """How many measures of an arm got worse beyond noise."""
        return self.counts(arm)["worse"]

    def counts(self, arm: str) -> Counter[Verdict]:
        """How many measures of an arm there are of each verdict."""
        return Counter(change.verdict for change in self.changes if change.arm == arm)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        regressions = {arm: self.regressions(arm) for arm in self.arms}
        return {**asdict(self), "regressions": regressions}


def compare_reports(old: BenchReport, new: BenchReport) -> Comparison:
    """What changed from one report to another, for each arm that both have."""
    arms = _in_both(old, new)
    changes = [*_changes(old, new, MEASURES)]
    for case in new.settings.others:
        if case in old.settings.others:
            changes += _changes(old.in_case(case), new.in_case(case), TIMED, case.label)
    alone = [
        f"{arm.arm} is in the {which} report alone"
        for which, one in (("old", old), ("new", new))
        for arm in one.ordered_arms
        if arm.arm not in arms
    ]
    hero = new.hero
    return Comparison(changes, list(_differences(old, new)), alone, hero.arm if hero else None)


def _in_both(old: BenchReport, new: BenchReport) -> list[str]:
    return [arm.arm for arm in new.ordered_arms if old.arm(arm.arm)]


def _changes(
    old: BenchReport, new: BenchReport, measures: Iterable[str], case: str = ""
) -> Iterator[Change]:
    """What is known of both, arm by arm."""
    for arm in _in_both(old, new):
        for measure in measures:
            change = _change(old, new, arm, measure, case)
            if change is not None:
                yield change


def _change(old: BenchReport, new: BenchReport, arm: str, name: str, case: str) -> Change | None:
    measure = MEASURES[name]
    pairs = [(report, found) for report in (old, new) if (found := report.arm(arm))]
    values = [read_measure(report, found, name) for report, found in pairs]
    before, after = values
    if before is None or after is None:
        return None
    ratio = after / before if before else None
    interval = None
    if before > 0 and after > 0:
        interval = _interval(measure, pairs, before, after)
    low, high = interval or (None, None)
    verdict = _verdict(measure, before, after, interval)
    return Change(arm, name, before, after, ratio, low, high, verdict, case)


def _interval(
    measure: Measure, pairs: Sequence[tuple[BenchReport, ArmResult]], before: float, after: float
) -> tuple[float, float] | None:
    """Of new over old at LEVEL; None where nothing is known of the noise."""
    if measure.exact:
        return after / before, after / before
    if measure.repeats is not None:
        around = 1 + measure.repeats
        return after / before / around, after / before * around
    if measure.sums is not None:
        return _paired([arm.texts for _, arm in pairs], measure.sums, before)
    if measure.samples is None:
        return None
    errors = [_timed_error(report, arm, measure) for report, arm in pairs]
    first, second = errors
    if first is None or second is None:
        return None
    n_free = sum(len(arm.decode_tok_s) - 1 for _, arm in pairs)
    width = student_t(n_free) * math.hypot(first, second)
    return after / before * math.exp(-width), after / before * math.exp(width)


def _paired(
    sides: Sequence[TextSums | None], column: str, before: float
) -> tuple[float, float] | None:
    """From the same texts on both sides: the error of a ratio of sums over texts.

    A mean over tokens is Σx / Σn over texts, whose error is that of Σ(x - n Σx / Σn) (Cochran 1977,
    Sampling Techniques, 6.4).
    """
    old, new = sides
    if old is None or new is None or not same_texts(old, new):
        return None
    sums = [getattr(side, column) for side in (old, new)]
    if any(side is None or None in side for side in sums):
        return None
    tokens = np.asarray(old.tokens)
    more = np.asarray(sums[1], dtype=np.float64) - np.asarray(sums[0], dtype=np.float64)
    n = len(tokens)
    if n < 2:
        return None
    mean = more.sum() / tokens.sum()
    error = math.sqrt(n / (n - 1) * ((more - mean * tokens) ** 2).sum()) / tokens.sum()
    ends = [float(mean + side * student_t(n - 1) * error) for side in (-1, 1)]
    if column == "nll":
        return math.exp(ends[0]), math.exp(ends[1])
    return 1 + ends[0] / before, 1 + ends[1] / before


def _timed_error(report: BenchReport, arm: ArmResult, measure: Measure) -> float | None:
    """The bootstrap's standard error of a measure's logarithm; None for too few runs."""
    draws = _draws(arm, measure)
    if measure.against_baseline and draws is not None:
        baseline = report.baseline_arm
        below = _draws(baseline, measure) if baseline else None
        draws = None if below is None else draws / below
    return None if draws is None else float(np.log(draws).std())


def _draws(arm: ArmResult, measure: Measure) -> Array | None:
    """The measure over runs that are drawn again, float64 [N_DRAWS]; None for too few runs."""
    assert measure.samples is not None
    samples = np.asarray(measure.samples(arm), dtype=np.float64)
    n_runs = len(arm.decode_tok_s)
    if n_runs < 2 or not len(samples) or len(samples) % n_runs:
        return None
    runs = samples.reshape(n_runs, -1)  # what a run measured, in the order of the runs
    drawn = runs[runs_drawn(n_runs)].reshape(N_DRAWS, -1)
    if measure.q is None:
        return np.asarray(drawn.mean(-1))
    if measure.q > 50 and len(samples) * (100 - measure.q) / 100 < N_BEYOND:
        return None
    return np.asarray(np.percentile(drawn, measure.q, axis=-1))


def _verdict(
    measure: Measure, before: float, after: float, interval: tuple[float, float] | None
) -> Verdict:
    """Beyond noise is what lies beyond the margin with the whole of its interval."""
    if before == after:
        return "noise"
    if interval is None:
        return "unknown"
    low, high = interval
    up, down = low > 1 + measure.margin, high < 1 / (1 + measure.margin)
    if not up and not down:
        return "noise"
    return "better" if up == (measure.better == "more") else "worse"


def _differences(old: BenchReport, new: BenchReport) -> Iterator[str]:
    """What makes two reports ones of different things, a line each."""
    one, other = (_facts(report) for report in (old, new))
    for name in one | other:
        if one.get(name) != other.get(name):
            yield f"{name}: {one.get(name)}, now {other.get(name)}"
    for arm in new.ordered_arms:
        before = old.arm(arm.arm)
        texts = [a.texts for a in (before, arm) if a and a.texts]
        if len(texts) == 2 and not same_texts(*texts):
            yield f"the texts that {arm.arm} is scored on"


def _facts(report: BenchReport) -> dict[str, Any]:
    """What numbers depend on beside the arms; further cases are compared where both have them."""
    machine = report.machine.model_dump(exclude={"versions"})
    settings = report.settings.model_dump(exclude={"others"})
    return {**machine, **report.machine.versions, **settings, "baseline": report.baseline}


def render_comparison(comparison: Comparison) -> Table:
    """All of the report's own arm in its own case, and what else changed beyond noise."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("arm", overflow="fold")
    table.add_column("measure", no_wrap=True)
    for name in ("old", "new", "new / old", f"{LEVEL:.0%} interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for change in comparison.changes:
        is_own = change.arm == comparison.hero and not change.case
        if not is_own and change.verdict in ("noise", "unknown"):
            continue
        words, style = SHOWN[change.verdict]
        ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
        interval = "" if change.low is None else f"{change.low:.3f} to {change.high:.3f}"
        arm = ", ".join(filter(None, (change.arm, change.case)))
        cells = [arm, change.measure, f"{change.old:,.4g}", f"{change.new:,.4g}"]
        cells += [ratio, interval, words]
        table.add_row(*map(partial(Text, style=style), cells))
    return table


SHOWN: Mapping[Verdict, tuple[str, str]] = {
    "worse": ("worse", "bold red"),
    "better": ("better", "bold green"),
    "noise": ("within noise", ""),
    "unknown": ("noise unknown", "dim"),
}


def comparison_lines(comparison: Comparison) -> list[str]:
    """What a reader has to know beside the table, and what it comes to for each arm."""
    lines = [f"not the same: {line}" for line in comparison.differences]
    lines += [f"not compared: {line}" for line in comparison.alone]
    for arm in comparison.arms:
        counts = comparison.counts(arm)
        told = [f"{counts[v]} {SHOWN[v][0]}" for v in SHOWN if counts[v] or v == "worse"]
        lines.append(f"{arm}: {', '.join(told)}")
    return lines
