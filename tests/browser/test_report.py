"""A bench's report.html as people open it: from a file, offline, on screens and on paper."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, Page, expect

from kdexport.bundle import Bundle
from kdexport.commands.main import cli
from kdexport.verdict.page import render_html
from tests.browser.browsing import opened, overflowing
from tests.verdict.fixture import example_report

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True},
    "paper": {"viewport": {"width": 688, "height": 1000}},  # A4 within its margins, at 96 dpi
}
SMALLEST = 9.0  # pixels, of a chart's letters
CHARTS = """
() => [...document.querySelectorAll("svg")].map((svg) => {
  const panel = svg.closest("figure").getBoundingClientRect();
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((text) => {
    const at = text.getBoundingClientRect();
    return {
      text: text.textContent,
      inside: at.left >= panel.left && at.right <= panel.right && at.bottom <= panel.bottom,
      size: parseFloat(getComputedStyle(text).fontSize) * box.width / svg.viewBox.baseVal.width,
    };
  });
  const painted = [...svg.querySelectorAll("path, use")].filter((shape) => {
    const { fill, stroke } = getComputedStyle(shape);
    const at = shape.getBoundingClientRect();
    return (fill !== "none" || stroke !== "none") && at.width + at.height > 0;
  });
  return { wide: box.width, high: box.height, texts, painted: painted.length };
})
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[dict[str, Path]]:
    """One as a whole run would leave it, and one of a tiny model that was really measured."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "whole.html").write_text(render_html(example_report()), "utf-8")
    asked = ["--runs", "1", "--new", "4", "--prompt", "8", "--threads", "1", "--out", folder]
    ran = CliRunner().invoke(cli, ["bench", str(bundle.path), *map(str, asked)])
    assert ran.exit_code == 0, ran.output
    yield {"whole": folder / "whole.html", "measured": folder / "report.html"}


def check_charts(page: Page, n_charts: int) -> None:
    charts = page.evaluate(CHARTS)
    assert len(charts) == n_charts
    for chart in charts:
        assert chart["wide"] > 200 and chart["high"] > 30 and chart["painted"] > 0
        assert [text for text in chart["texts"] if not text["inside"]] == []
        assert min(text["size"] for text in chart["texts"]) >= SMALLEST


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(("name", "n_charts"), [("whole", 7), ("measured", 2)])
def test_the_report_is_read_offline_on_any_screen_and_on_paper(
    browser: Browser, reports: dict[str, Path], name: str, n_charts: int, look: str
) -> None:
    asked: list[str] = []
    address = reports[name].as_uri()
    with opened(browser, address, offline=True, **LOOKS[look]) as page:
        page.on("request", lambda request: asked.append(request.url))
        if look == "paper":
            page.emulate_media(media="print")
        page.reload()
        expect(page.locator("main")).to_be_visible()
        assert overflowing(page, but="nothing" if look == "paper" else ".scroll") == []
        check_charts(page, n_charts)
        assert page.locator("script").count() == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 26)"
        assert dark == (look == "dark")
        folded = page.locator("details")
        if folded.count():
            folded.locator("summary").focus()
            page.keyboard.press("Enter")
            expect(folded.locator("pre")).to_be_visible()
            assert overflowing(page) == []
    assert asked == [address]
