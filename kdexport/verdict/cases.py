"""The cases that were timed beside a report's own, a row each and arm; ratios with their intervals.

Knows no colours and no HTML.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kdexport.verdict.bootstrap import Interval
from kdexport.verdict.measures import read_measure
from kdexport.verdict.repeats import LEVEL, ratio_again
from kdexport.verdict.report import ArmResult, BenchReport, short
from kdexport.verdict.timing import Timed, percentile

CASE_COLUMNS = ("TTFT p50 ms", "TPOT p50/p99 ms", "prefill tok/s", "decode tok/s", "speed-up")
TIME_COLUMNS = ("TTFT p50/p90/p99 ms", "TPOT p50/p90/p99 ms", "prefill tok/s", "steady RSS MB")
TIMED = (
    *(("ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms"), ("tpot_p50_ms", "tpot_p90_ms", "tpot_p99_ms")),
    *(("prefill_tok_s",), ("steady_rss_mb",)),
)
"""The measures of each of these columns."""

FAR = 2.0  # a gap of so many medians is told


@dataclass(frozen=True)
class CaseRow:
    """One arm in one case: cells in the order of `CASE_COLUMNS`."""

    case: str
    arm: str
    label: str
    cells: tuple[str, ...]


def case_rows(report: BenchReport) -> list[CaseRow]:
    """A row for each case beside the report's own and each arm that was measured in it."""
    baseline = report.baseline_arm
    rows = []
    for at, case in enumerate(report.settings.others):
        against = baseline.others[at] if baseline and len(baseline.others) > at else None
        for arm in report.ordered_arms:
            if len(arm.others) > at:
                cells = _cells(arm.others[at], against)
                rows.append(CaseRow(case.label, arm.arm, arm.label, cells))
    return rows


def _cells(one: Timed, against: Timed | None) -> tuple[str, ...]:
    gaps = [percentile(one.itl_ms, q) for q in (50, 99)]
    speed = statistics.fmean(one.decode_tok_s)
    gain = speed_up(one, against)
    return (
        short(statistics.median(one.ttft_ms)),
        " / ".join(short(gap) for gap in gaps if gap is not None),
        short(one.prefill_tok_s),
        short(speed),
        "" if gain is None else interval_text(gain),
    )


def time_cells(report: BenchReport, arm: ArmResult) -> tuple[str, ...]:
    """An arm's cells in the order of `TIME_COLUMNS`; empty where nothing was measured."""
    columns = ([read_measure(report, arm, name) for name in names] for names in TIMED)
    return tuple(
        " / ".join(short(value) for value in values if value is not None) for values in columns
    )


def speed_up(one: Timed, against: Timed | None) -> Interval | None:
    """Mean decoding speed over another's, and where another bench would find it (`ratio_again`).

    None where the two did not take the same number of turns.
    """
    if against is None or len(one.decode_tok_s) != len(against.decode_tok_s):
        return None
    return ratio_again(one.decode_tok_s, against.decode_tok_s)


def quicker_first_token(one: Timed, against: Timed | None) -> Interval | None:
    """The other's mean time to first token over this one's; as `speed_up`."""
    if against is None or len(one.ttft_ms) != len(against.ttft_ms):
        return None
    return ratio_again(against.ttft_ms, one.ttft_ms)


def interval_text(found: Interval) -> str:
    """Such as ``9.61 (9.32 to 9.88)``; without brackets where they would say nothing."""
    value, low, high = (short(each) for each in (found.value, found.low, found.high))
    return value if low == high else f"{value} ({low} to {high})"


def timing_notes(report: BenchReport) -> list[str]:
    """What a table's numbers do not show: intervals of ratios, gaps far out, energy."""
    return [*_ratios(report), *_far_gaps(report), _energy(report)]


def _ratios(report: BenchReport) -> list[str]:
    baseline = report.baseline_arm
    told = []
    for arm in report.ordered_arms if baseline else []:
        parts = [f"{name} {interval_text(gain)}" for name, gain in gains(report, arm).items()]
        told += [f"{arm.label}: {', '.join(parts)}"] if parts else []
    if not told or baseline is None:
        return []
    return [
        f"Quicker than {baseline.label} by (where another bench would find it, "
        f"{100 * LEVEL:.0f} %): {'; '.join(told)}."
    ]


def gains(report: BenchReport, arm: ArmResult) -> dict[str, Interval]:
    """How much quicker than the baseline an arm is, in what; none for the baseline itself."""
    return {} if arm.arm == report.baseline else quicker(arm, report.baseline_arm)


def quicker(one: Timed, against: Timed | None) -> dict[str, Interval]:
    """How much quicker one is than another, in what, as far as both took the same turns."""
    found = {
        "decode": speed_up(one, against),
        "first token": quicker_first_token(one, against),
    }
    return {name: gain for name, gain in found.items() if gain is not None}


def _far_gaps(report: BenchReport) -> list[str]:
    told = [_far_of(arm) for arm in report.ordered_arms if arm.itl_ms]
    return [f"Gaps beyond {FAR:g} medians, which count: {'; '.join(told)}."] if told else []


def _far_of(arm: ArmResult) -> str:
    limit = FAR * statistics.median(arm.itl_ms)
    n_far = sum(gap > limit for gap in arm.itl_ms)
    longest = f", the longest {short(max(arm.itl_ms))} ms" if n_far else ""
    return f"{arm.label} {n_far} of {len(arm.itl_ms):,}{longest}"


def _energy(report: BenchReport) -> str:
    found = [(arm, read_measure(report, arm, "energy_mj")) for arm in report.ordered_arms]
    told = [f"{arm.label} {short(value)} mJ" for arm, value in found if value is not None]
    if not told:
        return "Energy: this machine does not tell it (no RAPL counters that may be read)."
    return (
        f"Energy of the CPU's packages for a token, prompt and idling included: {'; '.join(told)}."
    )


def markdown_cases(report: BenchReport) -> str:
    """The rows in GitHub's Markdown; nothing where there are none."""
    rows = case_rows(report)
    if not rows:
        return ""
    lines = [_line(["", "", *CASE_COLUMNS]), "|---|---|" + "---:|" * len(CASE_COLUMNS)]
    lines += [_line([row.case, row.label, *row.cells]) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
