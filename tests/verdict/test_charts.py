"""Charts as SVG: what is drawn where, and that it fits into a page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.verdict.charts import (
    WIDTH,
    Bar,
    Bubble,
    Spread,
    bar_chart,
    bubble_chart,
    line_chart,
    spread_chart,
    unbeaten,
)

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{SVG}text"))


def group(svg: str, name: str) -> ElementTree.Element:
    (found,) = (g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("class") == name)
    return found


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    """Where the element's first path goes."""
    path = next(element.iter(f"{SVG}path"))
    found = re.findall(r"[ML] ([-0-9.]+) ([-0-9.]+)", path.attrib["d"])
    return [(float(x), float(y)) for x, y in found]


def place(mark: ElementTree.Element) -> tuple[float, float]:
    use = next(mark.iter(f"{SVG}use"))
    return float(use.attrib["x"]), float(use.attrib["y"])


def bubbles_chart(*bubbles: Bubble) -> str:
    return bubble_chart(bubbles, title="t", x_label="x", y_label="y")


def test_bars_are_as_long_as_their_values() -> None:
    svg = bar_chart([Bar("a", 10, "10"), Bar("b", 40, "40")], title="t")
    short, long = (max(x for x, _ in points(group(svg, f"bar-{n}"))) for n in range(2))
    assert long / short == pytest.approx(4, rel=0.01)


def test_areas_are_as_large_as_their_numbers_say() -> None:
    svg = bubbles_chart(Bubble("a", 10, 0.1, 400, "a"), Bubble("b", 100, 0.5, 100, "b"))
    marks = [group(svg, f"bubble-{n}") for n in range(2)]
    large, small = (max(abs(y) for _, y in points(mark)) - 4 for mark in marks)
    assert large / small == pytest.approx(2, rel=0.02)  # sqrt(400 / 100)
    (x1, y1), (x2, y2) = map(place, marks)
    assert x1 < x2 and y1 > y2
    assert [mark.findtext(f"{SVG}title") for mark in marks] == ["a", "b"]


def test_a_line_joins_those_that_none_beats() -> None:
    rows = {"near": (10, 0.0), "beaten": (20, 0.4), "middle": (100, 0.2), "fast": (400, 0.4)}
    rows |= {"as fast": (400, 0.6), "as near": (5, 0.0)}
    bubbles = [Bubble(name, *row, 1, "") for name, row in rows.items()]
    front = unbeaten(bubbles)
    assert [bubble.label for bubble in front] == ["near", "middle", "fast"]
    svg = bubbles_chart(*bubbles)
    marks = {bubble.label: group(svg, f"bubble-{n}") for n, bubble in enumerate(bubbles)}
    found = points(group(svg, "front"))
    expected = [place(marks[bubble.label]) for bubble in front]
    assert np.allclose(found, expected, atol=0.01)
    assert svg.index('class="front"') < svg.index('class="bubble-0"')


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1, 1e4), st.floats(0, 5), st.floats(1, 1e4)), min_size=1, max_size=6
    )
)
def test_labels_of_bubbles_stay_inside(rows: list[tuple[float, float, float]]) -> None:
    svg = bubbles_chart(*(Bubble(f"student {n}", *row, hint="") for n, row in enumerate(rows)))
    labels = [text for text in texts(svg) if (text.text or "").startswith("student")]
    assert len(labels) == len(rows)
    assert all(0 <= float(label.attrib["x"]) < WIDTH for label in labels)


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    svg = bubbles_chart(*(Bubble(f"student {n}", 100, 0.4, 50, "") for n in range(3)))
    labels = [text for text in texts(svg) if (text.text or "").startswith("student")]
    places = {(label.attrib["x"], label.attrib["y"]) for label in labels}
    assert len(places) == 3


def test_a_line_ends_at_its_last_value() -> None:
    svg = line_chart([(0, 3.0), (1, 1.0), (2, 0.5)], title="t", x_label="x", y_label="y")
    assert len(points(group(svg, "line"))) == 3
    assert texts(svg)[-1].text == "0.5"


def test_a_line_that_ends_on_the_axis_says_so() -> None:
    svg = line_chart([(0, 3.0), (1, 3e-8)], title="t", x_label="x", y_label="y")
    assert texts(svg)[-1].text == "≈ 0"
    svg = line_chart([(0, 3.0), (1, 0.0)], title="t", x_label="x", y_label="y")
    assert texts(svg)[-1].text == "0"


def test_what_was_smoothed_stands_behind_and_fits() -> None:
    behind = [(0.0, 9.0), (1.0, 0.0), (2.0, 9.0)]
    svg = line_chart([(0, 5), (2, 5)], title="t", x_label="x", y_label="y", behind=behind)
    assert svg.index('class="behind"') < svg.index('class="line"')
    ys = [y for _, y in points(group(svg, "behind"))]
    assert min(ys) > 0 and max(ys) < 250


def test_distributions_tell_their_numbers() -> None:
    svg = spread_chart([Spread("a", (1, 2, 3, 4, 10), "3 ms")], title="t", x_label="ms")
    said = [text.text for text in texts(svg)]
    assert "a: 3 ms" in said and "ms" in said and {"1", "2", "5"} <= {*said}


def test_text_is_escaped_and_stays_text() -> None:
    svg = bar_chart([Bar("<b>&", 1, "1")], title='"<')
    assert texts(svg)[0].text == "<b>&"
    assert ElementTree.fromstring(svg).get("aria-label") == '"<'
    svg = bubbles_chart(Bubble("x", 1, 1, 1, "</title><script>"))
    assert group(svg, "bubble-0").findtext(f"{SVG}title") == "</title><script>"


def test_two_charts_share_a_page() -> None:
    """No rule for the whole page, no id twice, no colour or font but the page's."""
    bars = [Bar("a", 1, "1", style="hero")]
    both = bar_chart(bars, title="one") + bar_chart(bars, title="two")
    ids = re.findall(r'\bid="([^"]+)"', both)
    assert len(ids) == len({*ids})
    assert {used in ids for used in re.findall(r"url\(#([^)]+)\)", both)} == {True}
    assert "<style" not in both and "<metadata" not in both and "DejaVu" not in both
    assert not re.search(r"#[0-9a-f]{6}", both) and "var(--hero)" in both
    assert bar_chart(bars, title="one") in both  # the same each time
