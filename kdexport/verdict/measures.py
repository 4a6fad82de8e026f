"""The numbers of an arm by name: how each is read, its unit, and which direction is better.

What thresholds, comparisons and choices are about. Knows reports, and none of the three.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kdexport.verdict.report import ArmResult, BenchReport, percentile

Reader = Callable[[BenchReport, ArmResult], float | None]
SHARE = "share"  # the unit of what lies between 0 and 1


@dataclass(frozen=True)
class Measure:
    """One number of an arm. ``margin``: a relative change up to this much is never told as one.

    Timed measures have ``samples``, in the order of the runs; the number is their percentile ``q``,
    or where that is None their mean. ``against_baseline``: divided by the baseline arm's.
    ``error``: the number's standard error. Without any of these it is one measurement, or, where
    ``exact``, the same each time.
    """

    unit: str
    better: Literal["less", "more"]
    read: Reader
    margin: float = 0.0
    samples: Callable[[ArmResult], Sequence[float]] | None = None
    q: float | None = None
    against_baseline: bool = False
    error: Callable[[ArmResult], float | None] | None = None
    exact: bool = False


DRIFT = 0.03  # times of the same thing, minutes apart on the same machine, differ by as much


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


def _share_error(arm: ArmResult) -> float | None:
    """Of a share of tokens, as if they were drawn one by one."""
    if arm.top1 is None or not arm.n_quality_tokens:
        return None
    return math.sqrt(arm.top1 * (1 - arm.top1) / arm.n_quality_tokens)


MEASURES: Mapping[str, Measure] = {
    "size_mb": Measure("MB", "less", _field("size_mb"), 0.01, exact=True),
    "shrinkage": Measure("times", "more", _shrinkage, 0.01, exact=True),
    "peak_rss_mb": Measure("MB", "less", _field("peak_rss_mb"), DRIFT),
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
    "kl_mean": Measure("nats", "less", lambda report, arm: report.kl(arm)),
    "kl_p50": Measure("nats", "less", _field("kl_p50")),
    "kl_p99": Measure("nats", "less", _field("kl_p99")),
    "top1": Measure(SHARE, "more", lambda report, arm: report.top1(arm), error=_share_error),
    "perplexity": Measure("", "less", _field("perplexity")),
}


def read_measure(report: BenchReport, arm: ArmResult, name: str) -> float | None:
    """A number of an arm; None where it was not measured."""
    value = MEASURES[name].read(report, arm)
    return value if value is not None and math.isfinite(value) else None


def told(name: str, value: float) -> str:
    """A number with its unit, exact enough to be held against a limit: 2.671 nats."""
    unit = MEASURES[name].unit if name in MEASURES else ""
    return f"{value:.6g}" if unit in ("", SHARE) else f"{value:.6g} {unit}"
