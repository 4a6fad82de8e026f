"""The measured numbers as a table, and the bars that each scheme is held to, met or not."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.peers.measure import Series

MISSING = "–"  # noqa: RUF001  (an en dash is meant)
Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Column:
    """A measure as shown: the median over the rounds, and the range where there are several."""

    title: str
    measure: str
    decimals: int
    scale: float = 1.0

    def cell(self, values: Values) -> str:
        """An arm's number in this column."""
        return spread([self.scale * value for value in values.get(self.measure, [])], self.decimals)


COLUMNS = (
    Column("decode tok/s", "decode", 0),
    Column("prefill tok/s", "prefill", 0),
    Column("TTFT long ms", "ttft_long_ms", 0),
    Column("decode deep tok/s", "decode_deep", 0),
    Column("deep share %", "deep_share", 0, 100),
    Column("batch of 8 ×", "batch_gain", 1),  # noqa: RUF001
    Column("open s", "load_s", 2),
    Column("size MB", "size_mb", 0),
    Column("byte/param", "bytes_per_parameter", 2),
    Column("peak RSS MB", "peak_rss_mb", 0),
    Column("KL prefill", "kl_prefill", 4),
    Column("KL by token", "kl_steps", 4),
    Column("top-1 %", "top1_prefill", 1, 100),
)


def spread(values: Sequence[float], decimals: int) -> str:
    """Median and range: "1.31 (1.25-1.38)"."""
    if not values:
        return MISSING
    middle = f"{statistics.median(values):.{decimals}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{decimals}f}-{max(values):.{decimals}f})"


def table(series: Series) -> list[str]:
    """Markdown lines, one an arm; columns that no arm has are left out."""
    columns = [c for c in COLUMNS if any(c.measure in values for values in series.values())]
    rows = [["arm", *(column.title for column in columns)]]
    rows += [[arm, *(column.cell(values) for column in columns)] for arm, values in series.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _twice_and_a_room(values: Values) -> float:
    return 1.6 * values["size_mb"][0] + 60


@dataclass(frozen=True)
class Bar:
    """A demand on an arm's measure, or on its ratio to a peer's in the same round.

    ``peer``: an arm, or BEST for the best of all that are not ours. ``limit``: a number, or what
    makes one of the arm's own values.
    """

    arm: str
    measure: str
    limit: float | Callable[[Values], float]
    at_least: bool = False
    peer: str | None = None
    decimals: int = 2


BEST = "best peer"


def _common(arm: str) -> list[Bar]:
    """What is asked of every scheme."""
    return [
        Bar(arm, "peak_rss_mb", _twice_and_a_room, decimals=0),
        Bar(arm, "ttft_long_ms", 1.2, peer=BEST),
        Bar(arm, "deep_share", 0.6, at_least=True),
        Bar(arm, "batch_gain", 3, at_least=True, decimals=1),
        Bar(arm, "load_s", 0.6),
    ]


def _faithful(arm: str, kl: float, size: float) -> list[Bar]:
    """KL both ways, and bytes per parameter."""
    return [
        Bar(arm, "kl_prefill", kl, decimals=4),
        Bar(arm, "kl_steps", kl, decimals=4),
        Bar(arm, "bytes_per_parameter", size),
    ]


BARS: tuple[Bar, ...] = (
    Bar("int8", "decode", 1.2, at_least=True, peer="llama-q8_0"),
    Bar("int8", "decode", 2.2, at_least=True, peer="optimum-int8"),
    Bar("int8", "prefill", 1.4, at_least=True, peer="llama-q8_0"),
    Bar("int8", "prefill", 1, at_least=True, peer="optimum-int8"),
    *_faithful("int8", 0.02, 1.05),
    *_common("int8"),
    *_faithful("int8-calibrated", 0.01, 1.05),
    *_common("int8-calibrated"),
    Bar("int8-block", "decode", 1, at_least=True, peer="llama-q8_0"),
    Bar("int8-block", "prefill", 1, at_least=True, peer="llama-q8_0"),
    *_faithful("int8-block", 0.005, 1.15),
    *_common("int8-block"),
    Bar("int4", "decode", 1, at_least=True, peer="llama-q4_0"),
    Bar("int4", "prefill", 1, at_least=True, peer="llama-q4_0"),
    *_faithful("int4", 0.12, 0.68),
    *_common("int4"),
)


@dataclass(frozen=True)
class Verdict:
    """A bar beside what was measured: one value a round; the median decides."""

    bar: Bar
    limit: float
    values: list[float]

    @property
    def met(self) -> bool:
        """Whether the median is on the right side."""
        middle = statistics.median(self.values)
        return middle >= self.limit if self.bar.at_least else middle <= self.limit

    @property
    def line(self) -> str:
        """ "int8 decode / llama-q8_0: 1.31 (1.25-1.38), bar ≥ 1.2: met"."""
        bar = self.bar
        name = f"{bar.arm} {bar.measure}" + (f" / {bar.peer}" if bar.peer else "")
        limit = f"{self.limit:.{bar.decimals}f}".rstrip("0").rstrip(".") if bar.decimals else ""
        limit = limit or f"{self.limit:.0f}"
        sign, verdict = ("≥" if bar.at_least else "≤"), ("met" if self.met else "NOT met")
        return f"{name}: {spread(self.values, bar.decimals)}, bar {sign} {limit}: {verdict}"


def verdicts(series: Series, ours: Sequence[str]) -> list[Verdict]:
    """The bars whose arms were measured."""
    found = []
    for bar in BARS:
        values = _values(series, bar, ours)
        if values:
            limit = bar.limit if isinstance(bar.limit, float | int) else bar.limit(series[bar.arm])
            found.append(Verdict(bar, float(limit), values))
    return found


def _values(series: Series, bar: Bar, ours: Sequence[str]) -> list[float]:
    own = series.get(bar.arm, {}).get(bar.measure, [])
    if bar.peer is None or not own:
        return list(own)
    arms = [arm for arm in series if arm not in ours] if bar.peer == BEST else [bar.peer]
    rounds = [series[arm][bar.measure] for arm in arms if bar.measure in series.get(arm, {})]
    if not rounds:
        return []
    best = max if bar.at_least else min
    return [mine / best(theirs) for mine, *theirs in zip(own, *rounds, strict=True)]
