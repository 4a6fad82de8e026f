"""Charts of the report, as inline SVG: no script, no font, no library.

Knows lengths and labels, not what a bench is. Colours are CSS classes of the page, so that a chart
follows its light, dark and printed forms: `hero`, `plain` and `quiet` for marks, `axis` for rules.
Drawn 440 units wide, which is legible on a phone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

WIDTH = 440.0
LABEL_HEIGHT, BAR_HEIGHT, ROW_GAP = 17.0, 14.0, 12.0
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 44.0, 14.0, 14.0, 40.0
PLOT_HEIGHT = 250.0
LETTER_WIDTH = 6.4  # of the label's font, on average

Element = ElementTree.Element
Place = Callable[[float], float]


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share a point inside."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


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


def bar_chart(bars: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars from zero, each with its label above and its number behind."""
    longest = max((bar.value + bar.spread for bar in bars), default=0) or 1
    row = LABEL_HEIGHT + BAR_HEIGHT + ROW_GAP
    svg = _svg(row * len(bars), title)
    for at, bar in enumerate(bars):
        top = at * row + LABEL_HEIGHT
        width = bar.value / longest * (WIDTH - 96)
        _text(svg, 0, top - 5, bar.label, css="label")
        _add(svg, "rect", x=0, y=top, width=max(width, 1), height=BAR_HEIGHT, rx=2, css=bar.style)
        whisker = bar.spread / longest * (WIDTH - 96)
        if whisker:
            middle = top + BAR_HEIGHT / 2
            _line(svg, width - whisker, middle, width + whisker, middle, css="whisker")
        _text(svg, width + whisker + 6, top + BAR_HEIGHT - 3, bar.text, css="value")
    return _markup(svg)


def bubble_chart(bubbles: Sequence[Bubble], *, title: str, x_label: str, y_label: str) -> str:
    """Points with a logarithmic x and a linear y from zero; the area is the third number."""
    svg = _svg(PLOT_HEIGHT, title)
    low = min(bubble.x for bubble in bubbles) / 1.6
    high = max(bubble.x for bubble in bubbles) * 1.6
    top = max(bubble.y for bubble in bubbles) * 1.25 or 1.0
    largest = max(bubble.area for bubble in bubbles)
    right, bottom = WIDTH - MARGIN_RIGHT, PLOT_HEIGHT - MARGIN_BOTTOM

    def place_x(x: float) -> float:
        return MARGIN_LEFT + math.log(x / low) / math.log(high / low) * (right - MARGIN_LEFT)

    def place_y(y: float) -> float:
        return bottom - y / top * (bottom - MARGIN_TOP)

    _y_axis(svg, linear_ticks(top), place_y, right)
    for tick in log_ticks(low, high):
        _text(svg, place_x(tick), bottom + 16, _number(tick), css="tick", anchor="middle")
    _text(svg, right, bottom + 34, x_label, css="axis-label", anchor="end")
    _text(svg, 0, 10, y_label, css="axis-label")
    circles = [(place_x(b.x), place_y(b.y), 4 + 14 * math.sqrt(b.area / largest)) for b in bubbles]
    taken = [Box(x - r, y - r, x + r, y + r) for x, y, r in circles]
    for bubble, (x, y, radius) in zip(bubbles, circles, strict=True):
        circle = _add(svg, "circle", cx=x, cy=y, r=radius, css=f"{bubble.style} bubble")
        _add(circle, "title").text = bubble.hint
        box = _free_box(x, y, radius, LETTER_WIDTH * len(bubble.label), taken)
        taken.append(box)
        _text(svg, box.left, box.bottom - 3, bubble.label, css="label")
    return _markup(svg)


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
    svg = _svg(PLOT_HEIGHT, title)
    right, bottom = WIDTH - MARGIN_RIGHT - 30, PLOT_HEIGHT - MARGIN_BOTTOM
    widest = max(x for x, _ in (*points, *behind)) or 1.0
    top = max(y for _, y in (*points, *behind)) * 1.1 or 1.0

    def place_x(x: float) -> float:
        return MARGIN_LEFT + x / widest * (right - MARGIN_LEFT)

    def place_y(y: float) -> float:
        return bottom - y / top * (bottom - MARGIN_TOP)

    _y_axis(svg, linear_ticks(top), place_y, right)
    for tick in linear_ticks(widest):
        _text(svg, place_x(tick), bottom + 16, _number(tick), css="tick", anchor="middle")
    _text(svg, right, bottom + 34, x_label, css="axis-label", anchor="end")
    _text(svg, 0, 10, y_label, css="axis-label")
    for line, css in ((behind, "curve faint"), (points, "curve")):
        path = " ".join(f"{_round(place_x(x))},{_round(place_y(y))}" for x, y in line)
        if path:
            _add(svg, "polyline", points=path, css=css)
    end_x, end_y = points[-1]
    _add(svg, "circle", cx=place_x(end_x), cy=place_y(end_y), r=3.5, css="hero")
    _text(svg, place_x(end_x) + 7, place_y(end_y) + 4, _number(end_y), css="value")
    return _markup(svg)


def spread_chart(spreads: Sequence[Spread], *, title: str, x_label: str) -> str:
    """Distributions under each other on one logarithmic x: whiskers 1 to 99 %, box 25 to 75 %."""
    row = LABEL_HEIGHT + BAR_HEIGHT + ROW_GAP
    height = row * len(spreads) + MARGIN_BOTTOM
    svg = _svg(height, title)
    low = min(spread.percentiles[0] for spread in spreads) / 1.1
    high = max(spread.percentiles[-1] for spread in spreads) * 1.1

    def place_x(x: float) -> float:
        return 2 + math.log(x / low) / math.log(high / low) * (WIDTH - 4)

    for tick in log_ticks(low, high):
        _line(svg, place_x(tick), 0, place_x(tick), height - MARGIN_BOTTOM, css="axis")
        _text(svg, place_x(tick), height - 24, _number(tick), css="tick", anchor="middle")
    _text(svg, WIDTH, height - 6, x_label, css="axis-label", anchor="end")
    for at, spread in enumerate(spreads):
        top = at * row + LABEL_HEIGHT
        p1, p25, p50, p75, p99 = map(place_x, spread.percentiles)
        label = _text(svg, 0, top - 5, spread.label, css="label")
        _add(label, "tspan", css="value").text = f"  {spread.text}"
        middle = top + BAR_HEIGHT / 2
        _line(svg, p1, middle, p99, middle, css="whisker")
        box = max(p75 - p25, 2)
        _add(svg, "rect", x=p25, y=top, width=box, height=BAR_HEIGHT, rx=2, css=spread.style)
        _line(svg, p50, top, p50, top + BAR_HEIGHT, css="median")
    return _markup(svg)


def linear_ticks(top: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 to at most ``top`` (above zero), about ``wanted`` of them."""
    rough = top / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [at * step for at in range(math.floor(top / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten that lie within ``low`` and ``high`` (above zero)."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _y_axis(svg: Element, ticks: Sequence[float], place: Place, right: float) -> None:
    for tick in ticks:
        _line(svg, MARGIN_LEFT, place(tick), right, place(tick), css="axis")
        _text(svg, MARGIN_LEFT - 6, place(tick) + 4, _number(tick), css="tick", anchor="end")


def _free_box(x: float, y: float, radius: float, width: float, taken: Sequence[Box]) -> Box:
    """Where a label beside a circle covers nothing: beside, above or below, else higher up."""
    reach, tall = radius + 4, 14.0
    corners = [
        (x + reach, y - tall / 2),
        (x - reach - width, y - tall / 2),
        (x - width / 2, y - reach - tall),
        (x - width / 2, y + reach),
        (x + radius - width, y + reach + tall / 2),
        *((x - width / 2, y - reach - step * tall) for step in range(2, 8)),
    ]
    boxes = [Box(left, top, left + width, top + tall) for left, top in corners]
    inside = [box for box in boxes if box.left >= 0 and box.right <= WIDTH]
    free = [box for box in inside if not any(box.overlaps(other) for other in taken)]
    return (free or inside or boxes)[0]


def _svg(height: float, title: str) -> Element:
    box = f"0 0 {WIDTH:g} {height:g}"
    return Element("svg", {"viewBox": box, "role": "img", "aria-label": title, "class": "chart"})


def _add(parent: Element, tag: str, *, css: str = "", **attributes: str | float) -> Element:
    given = {
        name.replace("_", "-"): value if isinstance(value, str) else _round(value)
        for name, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, given | ({"class": css} if css else {}))


def _line(parent: Element, x1: float, y1: float, x2: float, y2: float, *, css: str) -> None:
    _add(parent, "line", x1=x1, y1=y1, x2=x2, y2=y2, css=css)


def _text(
    parent: Element, x: float, y: float, content: str, *, css: str, anchor: str = "start"
) -> Element:
    element = _add(parent, "text", x=x, y=y, text_anchor=anchor, css=css)
    element.text = content
    return element


def _round(value: float) -> str:
    return f"{round(value, 1):g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _markup(svg: Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode")
