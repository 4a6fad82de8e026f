import re
from html.parser import HTMLParser

import pytest

from kdexport.verdict import page
from kdexport.verdict.page import render_html, smoothed
from kdexport.verdict.report import BenchReport, Sample
from tests.verdict.fixture import example_report

VOID = {"meta", "br", "link", "input", "img", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = render_html(example_report())
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name in ("src", "href", "onload")]
    assert page.count("url(") == page.count("url(#")  # parts of the same drawing
    hrefs = [value for name, value in parsed.attributes if name == "xlink:href"]
    assert all(str(value).startswith("#") for value in hrefs)
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_it_shows_arms_charts_samples_and_stages() -> None:
    report = example_report()
    parsed = Page(render_html(report))
    for arm in report.arms:
        assert arm.label in parsed.text
    assert parsed.tags.count("svg") == 7
    assert "1,373 pairs, 58 + 23 tokens on average" in parsed.text and "41 dropped" in parsed.text
    for sample in report.samples:
        for copy in sample.copies.values():
            assert copy in parsed.text
    for heading in (
        "Training loss",
        "Distillation",
        "Learning rate",
        "What each stage cost",
        "Copy",
    ):
        assert heading in parsed.text
    for stage in report.stages:
        assert stage in parsed.text
    assert report.machine.cpu in parsed.text


def test_it_says_on_which_machine_and_how_it_was_measured() -> None:
    report = example_report()
    assert "governor" not in render_html(report) and "Measured by" not in render_html(report)
    machine = report.machine.model_copy(update={"governor": "powersave", "cpu_quota": 1.5})
    command = ["kdexport", "bench", "exported/my tea", "--runs", "3"]
    told = report.model_copy(update={"machine": machine, "command": command})
    parsed = Page(render_html(told))
    for words in ("powersave", "2, of which the time of 1.5", "bench 'exported/my tea' --runs 3"):
        assert words in parsed.text


def test_whatever_a_model_writes_is_escaped() -> None:
    report = example_report()
    evil = "<script>alert(1)</script><b onclick='x'>&"
    sample = Sample(brief_id="x", prompt=evil, copies={"student-int8": evil})
    arms = [report.arms[0].model_copy(update={"arm": evil, "engine": evil}), *report.arms[1:]]
    changed = report.model_copy(
        update={"samples": [sample], "name": evil, "arms": arms, "recipe": {"note": evil}}
    )
    parsed = Page(render_html(changed))
    assert "script" not in parsed.tags
    assert "b" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert evil in parsed.text


@pytest.mark.parametrize("n_arms", [0, 1, 2])
def test_a_report_of_little_is_a_page_too(n_arms: int) -> None:
    report = example_report()
    few: BenchReport = report.model_copy(
        update={
            "arms": report.arms[:n_arms],
            "samples": [],
            "training": [],
            "stages": {},
            "recipe": {},
        }
    )
    parsed = Page(render_html(few))
    assert re.search(r"No arm|decodes|smaller", parsed.text)


def test_a_running_mean_keeps_ends_and_straight_lines() -> None:
    line = [(float(x), 2.0 * x) for x in range(100)]  # whole numbers: means are exact
    assert smoothed(line) == line
    spike = [(float(x), float(x == 50)) for x in range(100)]
    assert max(y for _, y in smoothed(spike)) == pytest.approx(1 / 11)
    assert smoothed(spike[:3]) == spike[:3]


def test_without_matplotlib_the_page_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "can_draw", lambda: False)
    text = render_html(example_report())
    assert "<svg" not in text and "install kdexport[report]" in text
    Page(text)


def test_copy_stands_beside_what_its_checks_say() -> None:
    report = example_report()
    first = report.samples[0]
    hero = report.hero
    assert hero is not None
    failing = first.model_copy(update={"checks": {hero.arm: "stray <b>"}})
    text = render_html(report.model_copy(update={"samples": [failing, *report.samples[1:]]}))
    assert text.count('<p class="check">✗ stray &lt;b&gt;</p>') == 1
    passed = sum(reason == "" for sample in report.samples[1:] for reason in sample.checks.values())
    assert text.count("✓ passes the checks") == passed > 0
