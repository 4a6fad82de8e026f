from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.verdict.charts import (
    WIDTH,
    Bar,
    Box,
    Bubble,
    Spread,
    bar_chart,
    bubble_chart,
    line_chart,
    linear_ticks,
    log_ticks,
    spread_chart,
)


def parts(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(tag))


def test_bars_are_as_long_as_their_values() -> None:
    svg = bar_chart([Bar("a", 10, "10"), Bar("b", 40, "40")], title="t")
    short, long = (float(rect.attrib["width"]) for rect in parts(svg, "rect"))
    assert long / short == pytest.approx(4, rel=0.01)


def test_areas_are_as_large_as_their_numbers_say() -> None:
    bubbles = [Bubble("a", 10, 0.1, 400, "a"), Bubble("b", 100, 0.5, 100, "b")]
    svg = bubble_chart(bubbles, title="t", x_label="x", y_label="y")
    large, small = (float(circle.attrib["r"]) - 4 for circle in parts(svg, "circle"))
    assert large / small == pytest.approx(2, rel=0.02)  # sqrt(400 / 100)
    first, second = parts(svg, "circle")
    assert float(first.attrib["cx"]) < float(second.attrib["cx"])
    assert float(first.attrib["cy"]) > float(second.attrib["cy"])


@given(
    st.lists(
        st.tuples(st.floats(1, 1e4), st.floats(0, 5), st.floats(1, 1e4)), min_size=1, max_size=6
    )
)
def test_labels_of_bubbles_stay_inside(rows: list[tuple[float, float, float]]) -> None:
    bubbles = [Bubble(f"student {n}", *row, hint="") for n, row in enumerate(rows)]
    svg = bubble_chart(bubbles, title="t", x_label="x", y_label="y")
    labels = [t for t in parts(svg, "text") if t.attrib["class"] == "label"]
    assert all(0 <= float(label.attrib["x"]) < WIDTH for label in labels)


def test_a_line_ends_at_its_last_value() -> None:
    svg = line_chart([(0, 3.0), (1, 1.0), (2, 0.5)], title="t", x_label="x", y_label="y")
    assert len(parts(svg, "polyline")[0].attrib["points"].split()) == 3
    assert parts(svg, "text")[-1].text == "0.5"


def test_boxes_lie_within_their_whiskers() -> None:
    svg = spread_chart([Spread("a", (1, 2, 3, 4, 10), "3 ms")], title="t", x_label="ms")
    (box,) = parts(svg, "rect")
    whisker = next(w for w in parts(svg, "line") if w.attrib["class"] == "whisker")
    assert float(whisker.attrib["x1"]) < float(box.attrib["x"])
    right = float(box.attrib["x"]) + float(box.attrib["width"])
    assert right < float(whisker.attrib["x2"])


def test_labels_are_escaped() -> None:
    svg = bar_chart([Bar("<b>&", 1, "1")], title='"<')
    assert parts(svg, "text")[0].text == "<b>&"


@given(st.floats(1e-6, 1e9))
def test_linear_ticks_begin_at_zero_and_stay_below(top: float) -> None:
    ticks = linear_ticks(top)
    assert ticks[0] == 0
    assert 2 <= len(ticks) <= 7
    assert ticks[-1] <= top * (1 + 1e-6)


@given(st.floats(1e-3, 1e6), st.floats(1.5, 1000))
def test_log_ticks_lie_within(low: float, factor: float) -> None:
    assert all(low <= tick <= low * factor for tick in log_ticks(low, low * factor))


def test_boxes_overlap_when_they_share_a_point() -> None:
    assert Box(0, 0, 2, 2).overlaps(Box(1, 1, 3, 3))
    assert not Box(0, 0, 2, 2).overlaps(Box(2, 0, 3, 2))


def test_what_was_smoothed_stands_behind_and_fits() -> None:
    behind = [(0.0, 9.0), (1.0, 0.0), (2.0, 9.0)]
    svg = line_chart([(0, 5), (2, 5)], title="t", x_label="x", y_label="y", behind=behind)
    faint, bold = parts(svg, "polyline")
    assert (faint.attrib["class"], bold.attrib["class"]) == ("curve faint", "curve")
    ys = [float(point.split(",")[1]) for point in faint.attrib["points"].split()]
    assert min(ys) > 0 and max(ys) < 250
