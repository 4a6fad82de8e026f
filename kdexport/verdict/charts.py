"""Charts of the report, as inline SVG by matplotlib.

Knows lengths and labels, not what a bench is. Colours are the page's own, by their names in its
style sheet, so that a chart follows its light, dark and printed forms. Drawn as wide as a phone
is, so that text is legible there. Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 370.0  # units, each a point of matplotlib's
ROW, BAR = 43.0, 14.0  # height of a row with its label above, and of its bar
PLOT_HEIGHT = 200.0
SMALLEST, LARGEST = 4.0, 18.0  # radii of bubbles
Box = tuple[float, float, float, float]  # left, bottom, right, top, in units
INK: Mapping[str, str] = {
    name: f"#0000{0xA0 + number:02x}"
    for number, name in enumerate(("hero", "plain", "quiet", "ink", "soft", "rule"))
}
"""Colours of the style sheet -> what stands for them until the SVG is written."""
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 11.0,
    "axes.edgecolor": "none",
    "axes.facecolor": "none",
    "axes.labelcolor": INK["soft"],
    "axes.labelsize": 11.0,
    "grid.color": INK["rule"],
    "grid.linewidth": 1.0,
    "text.color": INK["ink"],
    "xtick.color": INK["soft"],
    "ytick.color": INK["soft"],
    "xtick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.major.size": 0.0,
}


@dataclass(frozen=True)
class Bar:
    """A length with its half-width of uncertainty, and how both read."""

    label: str
    value: float
    text: str
    spread: float = 0.0
    style: str = "plain"


@dataclass(frozen=True)
class Bubble:
    """A point whose area stands for a third number."""

    label: str
    x: float
    y: float
    area: float
    hint: str
    style: str = "plain"


@dataclass(frozen=True)
class Spread:
    """A distribution by five of its percentiles, ascending: 1, 25, 50, 75 and 99."""

    label: str
    percentiles: tuple[float, float, float, float, float]
    text: str
    style: str = "plain"


@dataclass
class Chart:
    """A chart that is being drawn; ``hints``: what a mark says when it is pointed at, by its id."""

    axes: Axes
    hints: dict[str, str] = field(default_factory=dict)
    svg: str = ""


def bar_chart(bars: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars from zero, each with its label above and its number behind."""
    longest = max((bar.value + bar.spread for bar in bars), default=0) or 1
    with _drawn(ROW * len(bars), title, left=0, right=0, top=0, bottom=0) as chart:
        axes = chart.axes
        axes.axis("off")
        axes.set(xlim=(0, longest * WIDTH / (WIDTH - 96)), ylim=(ROW * len(bars), 0))
        for number, bar in enumerate(bars):
            top = ROW * number + ROW - BAR - 10
            middle = top + BAR / 2
            axes.barh(middle, bar.value, BAR, color=INK[bar.style], gid=f"bar-{number}")
            axes.text(0, top - 5, bar.label, va="baseline", fontsize=12)
            if bar.spread:
                ends = (bar.value - bar.spread, bar.value + bar.spread)
                axes.plot(ends, (middle, middle), color=INK["ink"], linewidth=1.2)
            end = bar.value + bar.spread + longest / 70
            axes.text(end, middle, bar.text, va="center", fontsize=12, fontweight="bold")
    return chart.svg


def bubble_chart(bubbles: Sequence[Bubble], *, title: str, x_label: str, y_label: str) -> str:
    """Points with a logarithmic x and a linear y from zero; the area is the third number.

    A line joins those that none beats: with a larger x and a smaller y.
    """
    largest = max(bubble.area for bubble in bubbles)
    with _drawn(PLOT_HEIGHT, title) as chart:
        axes = chart.axes
        axes.set_xscale("log")
        _log_ticks(axes)
        top = max(bubble.y for bubble in bubbles) * 1.25 or 1.0
        low, high = (end(bubble.x for bubble in bubbles) for end in (min, max))
        axes.set(xlim=(low / 1.6, high * 1.6), ylim=(0, top), xlabel=x_label)
        _y_axis(axes, y_label)
        front = [(one.x, one.y) for one in unbeaten(bubbles)]
        axes.plot(*zip(*front, strict=True), color=INK["quiet"], linewidth=1.2, gid="front")
        taken: list[Box] = [(0, 0, WIDTH, 42)]  # the axis
        for number, bubble in enumerate(bubbles):
            radius = SMALLEST + (LARGEST - SMALLEST) * math.sqrt(bubble.area / largest)
            mark = f"bubble-{number}"
            axes.plot(
                *([bubble.x], [bubble.y], "o"),
                markersize=2 * radius,
                color=INK[bubble.style],
                markeredgewidth=0,
                alpha=0.82,
                clip_on=False,
                gid=mark,
            )
            chart.hints[mark] = bubble.hint
            x, y = axes.transData.transform((bubble.x, bubble.y))
            taken.append((x - radius, y - radius, x + radius, y + radius))
        for bubble, circle in zip(bubbles, taken[1:], strict=True):
            weight = "bold" if bubble.style == "hero" else "normal"
            taken.append(_label_beside(axes, bubble.label, circle, taken, weight))
    return chart.svg


def unbeaten(bubbles: Sequence[Bubble]) -> list[Bubble]:
    """Those than which no other has a larger x and no larger y (the Pareto front), by x."""
    front: list[Bubble] = []
    for one in sorted(bubbles, key=lambda bubble: (-bubble.x, bubble.y)):
        if not front or one.y < front[-1].y:
            front.append(one)
    return front[::-1]


def line_chart(
    points: Sequence[tuple[float, float]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    behind: Sequence[tuple[float, float]] = (),
) -> str:
    """One line through (x, y) points, y from zero, its last value written at its end.

    ``behind``: a fainter line of the same quantity, as it was before it was smoothed.
    """
    with _drawn(PLOT_HEIGHT, title, right=44) as chart:
        axes = chart.axes
        everything = (*points, *behind)
        axes.set(
            xlim=(0, max(x for x, _ in everything) or 1.0),
            ylim=(0, max(y for _, y in everything) * 1.1 or 1.0),
            xlabel=x_label,
        )
        _y_axis(axes, y_label)
        if behind:
            axes.plot(*zip(*behind, strict=True), color=INK["plain"], linewidth=1, gid="behind")
        axes.plot(*zip(*points, strict=True), color=INK["hero"], linewidth=2, gid="line")
        x, y = points[-1]
        axes.plot([x], [y], "o", color=INK["hero"], markersize=7, clip_on=False)
        axes.annotate(
            _end_of_line(y, axes),
            (x, y),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )
    return chart.svg


def spread_chart(spreads: Sequence[Spread], *, title: str, x_label: str) -> str:
    """Distributions under each other on one logarithmic x: whiskers 1 to 99 %, box 25 to 75 %."""
    height = ROW * len(spreads)
    with _drawn(height, title, left=6, right=6, top=0) as chart:
        axes = chart.axes
        axes.set_xscale("log")
        _log_ticks(axes)
        low = min(spread.percentiles[0] for spread in spreads) / 1.1
        high = max(spread.percentiles[-1] for spread in spreads) * 1.1
        axes.set(xlim=(low, high), ylim=(height, 0), xlabel=x_label, yticks=[])
        axes.grid(axis="x")
        for number, spread in enumerate(spreads):
            top = ROW * number + ROW - BAR - 10
            middle = top + BAR / 2
            p1, p25, p50, p75, p99 = spread.percentiles
            axes.plot((p1, p99), (middle, middle), color=INK["ink"], linewidth=1.2)
            axes.barh(middle, p75 - p25, BAR, left=p25, color=INK[spread.style])
            axes.plot((p50, p50), (top, top + BAR), color=INK["ink"], linewidth=2)
            label = f"{spread.label}: {spread.text}"
            axes.text(low, top - 5, label, va="baseline", fontsize=12)
    return chart.svg


@contextmanager
def _drawn(
    tall: float,
    title: str,
    *,
    left: float = 46,
    right: float = 16,
    top: float = 24,
    bottom: float = 44,
) -> Iterator[Chart]:
    """Axes so many units high, within margins; afterwards the chart's ``svg``."""
    import matplotlib
    from matplotlib.figure import Figure

    wide, whole = WIDTH - left - right, tall + top + bottom
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):  # ids of its own, always the same
        figure = Figure(figsize=(WIDTH / 72, whole / 72), dpi=72)
        place = (left / WIDTH, bottom / whole, wide / WIDTH, tall / whole)
        chart = Chart(figure.add_axes(place))
        chart.axes.xaxis.set_label_coords(1.0, -26 / tall)
        chart.axes.xaxis.label.set_horizontalalignment("right")
        yield chart
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    chart.svg = _inline(written.getvalue(), title, chart.hints)


def _inline(svg: str, title: str, hints: Mapping[str, str]) -> str:
    """Matplotlib's file as an element of the page: its colours, its font, nothing global."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font(-family)?: [^;\"]*('[^\"]*?)(?=[;\"])", _without_family, svg)
    for name, colour in INK.items():
        svg = svg.replace(colour, f"var(--{name})")
    for mark, hint in hints.items():
        svg = svg.replace(f'<g id="{mark}">', f'<g id="{mark}"><title>{escape(hint)}</title>')
    svg = re.sub(r'<g id="([a-z]+-?[0-9]*)">', r'<g class="\1">', svg)  # marks, by our names
    svg = re.sub(r' id="[a-z0-9]+_[0-9]+"', "", svg)
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
    return svg.replace("<svg", f'<svg class="chart" role="img" aria-label={quoteattr(title)}', 1)


def _without_family(found: re.Match[str]) -> str:
    """A font's weight and size without its family, which is the page's."""
    size = re.search(r"([0-9]+ )?([0-9.]+px)", found[0])
    if size is None:
        return "font-style: normal"
    weight = f"font-weight: {size[1].strip()}; " if size[1] else ""
    return f"{weight}font-size: {size[2]}"


def _y_axis(axes: Axes, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    above = axes.get_ylim()[1]
    place: Any = {"xycoords": ("figure fraction", "data"), "textcoords": "offset points"}
    axes.annotate(label, (0, above), (0, 11), va="baseline", color=INK["soft"], **place)


def _log_ticks(axes: Axes) -> None:
    """1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _label_beside(axes: Axes, text: str, circle: Box, taken: Sequence[Box], weight: str) -> Box:
    """Write a label where it covers nothing: beside the circle, above or below, else higher up."""
    left, bottom, right, top = circle
    x, y = (left + right) / 2, (bottom + top) / 2
    label = axes.text(0, 0, text, fontsize=12, fontweight=weight, transform=None)
    extent: Any = label.get_window_extent()
    wide, tall = extent.width, 14.0
    places = [
        (right + 4, y - tall / 2),
        (left - 4 - wide, y - tall / 2),
        (x - wide / 2, top + 4),
        (x - wide / 2, bottom - 4 - tall),
        (right - wide, bottom - 4 - 1.5 * tall),
        *((x - wide / 2, top + 4 + step * tall) for step in range(1, 7)),
    ]
    boxes = [(at, below, at + wide, below + tall) for at, below in places]
    inside = [box for box in boxes if box[0] >= 0 and box[2] <= WIDTH]
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    chosen = (free or inside or boxes)[0]
    label.set_position((chosen[0], chosen[1] + 3))
    return chosen


def _overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share a point inside."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _end_of_line(y: float, axes: Axes) -> str:
    """A line's last value; one that cannot be told from the axis has no digits to read."""
    return "≈ 0" if 0 < y < axes.get_ylim()[1] / 1000 else _number(y)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
