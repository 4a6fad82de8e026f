"""The numbers of an arm by name: how each is read, its unit, and which direction is better.

What thresholds, comparisons and choices are about. Knows reports, and none of the three.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kdexport.verdict.report import ArmResult, BenchReport
from kdexport.verdict.timing import percentile

Reader = Callable[[BenchReport, ArmResult], float | None]
SHARE = "share"  # the unit of what lies between 0 and 1


@dataclass(frozen=True)
class Measure:
    """One number of an arm. ``margin``: a relative change up to this much is never told as one.

    Timed measures have ``samples``, in the order of the runs; the number is their percentile ``q``,
    or where that is None their mean. ``against_baseline``: divided by the baseline arm's.
    ``sums``: the column of `TextSums` that it comes from. ``repeats``: what is measured once, and
    differs by this share at most where nothing changed. Without any of these its noise is not
    known, unless it is ``exact``.
    """

    unit: str
    better: Literal["less", "more"]
    read: Reader
    margin: float = 0.0
    samples: Callable[[ArmResult], Sequence[float]] | None = None
    q: float | None = None
    against_baseline: bool = False
    sums: Literal["kl", "nll", "top1"] | None = None
    repeats: float | None = None
    exact: bool = False


DRIFT = 0.03  # times of one thing, minutes apart on one machine, differ by as much
HELD = 0.05  # memory of one thing, measured again, differed by up to 2 %
SMALL = 0.01  # nobody's decision hangs on less


def _field(name: str) -> Reader:
    def read(_: BenchReport, arm: ArmResult) -> float | None:
        value: float | None = getattr(arm, name)
        return value

    return read


def _timed(
    unit: str,
    better: Literal["less", "more"],
    samples: Callable[[ArmResult], Sequence[float]],
    q: float | None = None,
) -> Measure:
    def read(_: BenchReport, arm: ArmResult) -> float | None:
        values = samples(arm)
        return percentile(values, q) if q is not None else statistics.fmean(values or [math.nan])

    return Measure(unit, better, read, DRIFT, samples, q)


def _ttft(q: float) -> Measure:
    return _timed("ms", "less", lambda arm: arm.ttft_ms, q)


def _tpot(q: float) -> Measure:
    return _timed("ms", "less", lambda arm: arm.itl_ms, q)


def _speed_up(report: BenchReport, arm: ArmResult) -> float | None:
    return None if arm.arm == report.baseline else report.speed_up(arm)


def _shrinkage(report: BenchReport, arm: ArmResult) -> float | None:
    return None if arm.arm == report.baseline else report.shrinkage(arm)


def _energy(report: BenchReport, arm: ArmResult) -> float | None:
    if not arm.joules:
        return None
    n_tokens = report.settings.new_tokens * report.settings.batch_size
    return 1000 * statistics.fmean(arm.joules) / n_tokens


def _copies(name: str) -> Reader:
    """The mean over copies, where some were scored."""

    def read(_: BenchReport, arm: ArmResult) -> float | None:
        found = arm.copies.intervals.get(name) if arm.copies else None
        return found.value if found else None

    return read


def _pass_rate_ratio(_: BenchReport, arm: ArmResult) -> float | None:
    of_all = next(iter(arm.copies.pass_rates), None) if arm.copies else None
    if of_all is None or of_all.teacher is None or not of_all.teacher.best:
        return None
    return of_all.rate.best / of_all.teacher.best


def _score(
    name: str,
    better: Literal["less", "more"] = "less",
    unit: str = "",
    sums: Literal["kl", "nll", "top1"] | None = None,
) -> Measure:
    return Measure(unit, better, _field(name), SMALL, sums=sums)


MEASURES: Mapping[str, Measure] = {
    "size_mb": Measure("MB", "less", _field("size_mb"), SMALL, exact=True),
    "shrinkage": Measure("times", "more", _shrinkage, SMALL, exact=True),
    "peak_rss_mb": Measure("MB", "less", _field("peak_rss_mb"), DRIFT, repeats=HELD),
    "steady_rss_mb": Measure("MB", "less", _field("steady_rss_mb"), DRIFT, repeats=HELD),
    "load_s": Measure("s", "less", _field("load_s"), DRIFT),
    "ttft_p50_ms": _ttft(50),
    "ttft_p90_ms": _ttft(90),
    "ttft_p99_ms": _ttft(99),
    "tpot_p50_ms": _tpot(50),
    "tpot_p90_ms": _tpot(90),
    "tpot_p99_ms": _tpot(99),
    "prefill_tok_s": Measure("tok/s", "more", _field("prefill_tok_s"), DRIFT),
    "decode_tok_s": _timed("tok/s", "more", lambda arm: arm.decode_tok_s),
    "speedup": Measure(
        "times", "more", _speed_up, DRIFT, lambda arm: arm.decode_tok_s, against_baseline=True
    ),
    "energy_mj": Measure("mJ", "less", _energy, DRIFT, lambda arm: arm.joules),
    "kl_mean": Measure("nats", "less", lambda report, arm: report.kl(arm), SMALL, sums="kl"),
    "kl_p50": _score("kl_p50", unit="nats"),
    "kl_p90": _score("kl_p90", unit="nats"),
    "kl_p99": _score("kl_p99", unit="nats"),
    "kl_max": _score("kl_max", unit="nats"),
    "top1": Measure(SHARE, "more", lambda report, arm: report.top1(arm), SMALL, sums="top1"),
    "top5": _score("top5", "more", SHARE),
    "perplexity": _score("perplexity", sums="nll"),
    "ppl_ratio": _score("ppl_ratio", unit="times", sums="nll"),
    "ece": _score("ece", unit=SHARE),
    "chrf": Measure("", "more", _copies("chrf"), SMALL),
    "passed": Measure(SHARE, "more", _copies("passed"), SMALL),
    "pass_rate": Measure(SHARE, "more", _copies("pass_rate"), SMALL),
    "pass_rate_ratio": Measure("times", "more", _pass_rate_ratio, SMALL),
}


TIMED = ("prefill_tok_s", *(name for name, one in MEASURES.items() if one.samples is not None))
"""Those that depend on the case that was timed."""


def read_measure(report: BenchReport, arm: ArmResult, name: str) -> float | None:
    """A number of an arm; None where it was not measured."""
    value = MEASURES[name].read(report, arm)
    return value if value is not None and math.isfinite(value) else None


def told(name: str, value: float) -> str:
    """A number with its unit, exact enough to be held against a limit: 2.671 nats."""
    unit = MEASURES[name].unit if name in MEASURES else ""
    return f"{value:.6g}" if unit in ("", SHARE) else f"{value:.6g} {unit}"
