"""The page without a mouse, in the dark, on a phone; the names and contrasts that it needs."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from kdexport.bundle import Bundle
from kdexport.content.channels import load_channels
from tests.browser import scripted
from tests.browser.browsing import PHONE, opened, overflowing, ready, wait_until_done, write
from tests.serve.serving import Served, served

LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
PAIRS = [
    *[("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"), ("hero", "paper")],
    *[("hero", "card"), ("on-hero", "hero"), ("hero", "hero-wash"), ("warn", "card")],
    *[("warn", "warn-wash"), ("fail", "card"), ("fail", "fail-wash"), ("ink", "fail-wash")],
    *[("ink", "warn-wash"), ("ink", "thumb"), ("ink", "track")],
]
"""What stands on what."""
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
LEAST_EDGE = 3.0  # 1.4.11: edges of what can be filled in


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    with served(bundle) as found:
        yield found


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.className"))


def test_all_is_done_by_the_keyboard(
    browser: Browser, server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write(monkeypatch, bundle, " warm", " fresh")
    with ready(browser, server.url) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
        keys = page.keyboard
        reached = []
        for _ in range(40):
            keys.press("Tab")
            name = focused(page)
            ring = page.evaluate(
                """() => {
                  const seen = document.activeElement.matches("[name=mode]")
                    ? document.activeElement.nextElementSibling : document.activeElement;
                  const style = getComputedStyle(seen);
                  return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                }"""
            )
            assert ring, f"{name} has no ring"
            reached.append(name)
            if name == "product":
                keys.type("Rye bread")
            if name == "channel":
                keys.type("SM")
            if name == "variants":
                keys.press("ArrowDown")
            if name == "write":
                break
        wanted = ["skip", "product", "facts", "channel", "language", "tone", "audience", "campaign"]
        assert [name for name in reached if name in wanted] == wanted
        assert reached[-2:] != ["write", "write"] and "call_to_action" in reached
        keys.press("Enter")
        wait_until_done(page)
        assert page.locator(".run .meta").inner_text() == "SMS · English"
        assert page.locator(".copy").count() == 2
        assert focused(page) == "write"  # it is where it was
        for _ in range(4):
            keys.press("Tab")
            if focused(page) == "take":
                break
        keys.press("Enter")
        expect(page.locator("#status")).to_have_text("Copy 1 is on the clipboard.")
        assert page.evaluate("navigator.clipboard.readText()").endswith("Rye bread: warm")


def test_keys_write_stop_and_skip(
    browser: Browser, server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.slow_down(monkeypatch, 0.05)
    with ready(browser, server.url) as page:
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_in_viewport()
        page.keyboard.press("Enter")
        assert focused(page) == "copies"
        page.fill("#product", "Rye bread")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".copy[data-state=writing] .text").first).not_to_be_empty()
        page.keyboard.press("Escape")
        expect(page.locator(".run")).to_have_attribute("data-state", "stopped")
        page.locator("[name=mode]").first.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#file-form")).to_be_visible()
        expect(page.locator("#brief-form")).to_be_hidden()


def test_every_control_has_a_name_and_news_are_announced(browser: Browser, server: Served) -> None:
    with ready(browser, server.url) as page:
        nameless = page.evaluate(
            """[...document.querySelectorAll("input, select, textarea, button, progress")]
              .filter((one) => !one.labels?.length && !one.textContent.trim()
                && !one.getAttribute("aria-label"))
              .map((one) => one.outerHTML)"""
        )
        assert nameless == []
        described = page.evaluate(
            """[...document.querySelectorAll("[aria-describedby]")].flatMap((one) =>
              one.getAttribute("aria-describedby").split(" "))
              .filter((id) => !document.getElementById(id))"""
        )
        assert described == []
        expect(page.get_by_role("status").first).to_be_attached()
        assert page.locator("#status").get_attribute("aria-live") == "polite"
        assert page.locator("html").get_attribute("lang") == "en"


def luminance(colour: str) -> float:
    """Of #rrggbb: WCAG 2.2's relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_can_be_read(
    browser: Browser, server: Served, scheme: Any
) -> None:
    with opened(browser, server.url, color_scheme=scheme) as page:
        colours: dict[str, str] = page.evaluate(
            """(names) => Object.fromEntries(names.map((name) => [name,
              getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()]))""",
            sorted({"edge", *(name for pair in PAIRS for name in pair)}),
        )
        shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours.values()), colours
    paper = tuple(int(colours["paper"][at : at + 2], 16) for at in (1, 3, 5))
    assert shown == f"rgb{paper}"
    assert (luminance(colours["paper"]) < 0.1) == (scheme == "dark")
    faint = {pair: contrast(*(colours[name] for name in pair)) for pair in PAIRS}
    assert {pair: n for pair, n in faint.items() if n < LEAST_CONTRAST} == {}
    assert min(contrast(colours["edge"], colours[on]) for on in ("paper", "card")) >= LEAST_EDGE


def test_nothing_reaches_beyond_the_screen(
    browser: Browser, server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(state: str) -> None:
        for wide in (320, 360, 768, 896, 1280):
            page.set_viewport_size({"width": wide, "height": 740})
            assert overflowing(page) == [], f"{state}, {wide} wide"

    scripted.write(monkeypatch, bundle, f" {LONG} now 20 % off")
    with ready(browser, server.url) as page:
        check("empty")
        fields = {"facts": LONG, "banned": LONG, "temperature": "0"}
        write(page, product=LONG, audience=LONG, variants="2", channel="ad_headline", **fields)
        wait_until_done(page)
        expect(page.locator(".copy").first).to_have_attribute("data-state", "fail")
        check("written")
        write(page, facts="\n".join([LONG] * 9))
        expect(page.locator(".run .problem").first).to_be_visible()
        check("refused")
        for name in load_channels():
            page.select_option("#channel", name)
            assert overflowing(page) == [], name
        page.get_by_text("A file of briefs").click()
        rows = "".join(f"{LONG},{LONG}\n" for _ in range(30))
        content = f"product,channel\n{rows}".encode()
        page.set_input_files("#file", {"name": f"{LONG}.csv", "mimeType": "", "buffer": content})
        expect(page.locator("#file-problems li")).to_have_count(21)
        check("a file with problems")


def test_on_a_phone_the_copies_come_into_sight(
    browser: Browser, server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write(monkeypatch, bundle, " warm")
    size: Any = PHONE
    with ready(browser, server.url, viewport=size, has_touch=True, is_mobile=True) as page:
        page.fill("#product", "Rye bread")
        page.keyboard.press("Enter")
        wait_until_done(page)
        expect(page.locator("#copies-title")).to_be_in_viewport()
        expect(page.locator(".copy").first).to_be_in_viewport()
        small = page.evaluate(
            """[...document.querySelectorAll("button, input, select, textarea")]
              .filter((one) => one.checkVisibility({opacityProperty: true}))
              .filter((one) => one.getBoundingClientRect().height < 24)
              .map((one) => one.outerHTML)"""
        )
        assert small == []
        sizes = page.evaluate(
            """[...document.querySelectorAll("#brief-form :is(input, select, textarea)")]
              .map((one) => parseFloat(getComputedStyle(one).fontSize))"""
        )
        assert min(sizes) >= 16  # below it a phone zooms in
