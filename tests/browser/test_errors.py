"""What the page says when the server says no, and when there is none."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from kdexport.bundle import Bundle
from tests.browser import scripted
from tests.browser.browsing import opened, ready, write
from tests.serve.serving import Served, served

LONG = {"model": "tiny", "prompt": "a", "max_tokens": 60, "min_tokens": 60, "stream": True}
BRIEF = {"product": "Rye bread", "channel": "sms", "variants": "1"}


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    with served(bundle) as found:
        yield found


def test_a_key_is_asked_for_and_kept_in_memory_only(
    browser: Browser, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write(monkeypatch, bundle, " warm")
    with served(bundle, key="sesame") as found, opened(browser, found.url) as page:
        expect(page.locator("#key")).to_be_focused()
        expect(page.locator("#key-problem")).to_have_text("This server wants a key.")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_have_text("The API key is missing or wrong")
        expect(page.locator("#key")).to_be_focused()
        expect(page.locator("#key")).to_have_value("")
        page.keyboard.type("sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        expect(page.locator("#model")).to_have_text("tiny")
        write(page, **BRIEF)
        expect(page.locator(".run")).to_have_attribute("data-state", "pass")
        kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert kept == [0, 0, ""] and "sesame" not in page.content()
        page.reload()
        expect(page.locator("#key-form")).to_be_visible()


def test_a_wrong_brief_is_named_and_its_field_too(browser: Browser, server: Served) -> None:
    with ready(browser, server.url) as page:
        facts = "\n".join(f"fact {n}" for n in range(9))
        write(page, product="Rye bread", facts=facts)
        line = "Facts: List should have at most 8 items after validation, not 9"
        expect(page.locator(".run .problem")).to_have_text(line)
        expect(page.locator("#status")).to_have_text(line)
        expect(page.locator("#facts")).to_be_focused()
        expect(page.locator("#facts")).to_have_attribute("aria-invalid", "true")
        expect(page.locator(".again")).to_be_hidden()
        write(page, facts="fact")
        expect(page.locator("[aria-invalid]")).to_have_count(0)


def test_a_brief_without_a_product_is_not_sent(browser: Browser, server: Served) -> None:
    with ready(browser, server.url) as page:
        page.click("#write")
        expect(page.locator("#product")).to_be_focused()
        assert page.locator(".run").count() == 0


def test_a_busy_server_is_asked_again(
    browser: Browser, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.slow_down(monkeypatch, 0.02)
    scripted.write(monkeypatch, bundle, " warm")
    with (
        served(bundle, max_rows=1, max_waiting=0) as found,
        ready(browser, found.url) as page,
        found.http() as http,
        http.stream("POST", "/v1/completions", json=LONG) as first,
    ):
        lines = first.iter_lines()
        next(lines)
        write(page, **BRIEF)
        line = "1 texts are under way or wait, and there is room for 1. Trying again in 1 s."
        expect(page.locator(".run .problem")).to_have_text(line)
        expect(page.locator(".run")).to_have_attribute("data-state", "waiting")
        list(lines)
        expect(page.locator(".run")).to_have_attribute("data-state", "pass")
        expect(page.locator(".run .problem")).to_be_hidden()


def test_a_loading_server_is_waited_for(
    browser: Browser, server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write(monkeypatch, bundle, " warm")
    engine = server.engine
    with opened(browser, server.url) as page:
        expect(page.locator("#state")).to_have_text("ready")
        monkeypatch.setattr(engine, "is_ready", False)
        write(page, **BRIEF)
        line = "The model is being loaded. Trying again in 2 s."
        expect(page.locator(".run .problem")).to_have_text(line)
        page.reload()
        expect(page.locator("#state")).to_have_text("loading")
        monkeypatch.setattr(engine, "is_ready", True)
        expect(page.locator("#state")).to_have_text("ready")
        write(page, **BRIEF)
        expect(page.locator(".run")).to_have_attribute("data-state", "pass")


def test_waiting_can_be_stopped(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ready(browser, server.url) as page:
        monkeypatch.setattr(server.engine, "is_ready", False)
        write(page, **BRIEF)
        expect(page.locator(".run")).to_have_attribute("data-state", "waiting")
        page.keyboard.press("Escape")
        expect(page.locator(".run .problem")).to_have_text("Stopped before anything was written.")
        monkeypatch.setattr(server.engine, "is_ready", True)
        page.click(".again")
        expect(page.locator(".copy .text")).not_to_be_empty()


def test_copy_that_takes_too_long_is_told(
    browser: Browser, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.slow_down(monkeypatch, 0.05)
    with served(bundle, timeout_seconds=0.2) as found, ready(browser, found.url) as page:
        write(page, **BRIEF)
        line = "The request was not done within 0.2 s"
        expect(page.locator(".run .problem")).to_have_text(line)
        expect(page.locator(".again")).to_be_visible()


def test_a_server_that_is_gone_is_told(
    browser: Browser, server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write(monkeypatch, bundle, " warm")
    with ready(browser, server.url) as page:
        page.context.set_offline(True)
        write(page, **BRIEF)
        line = "The server cannot be reached. Is it still running?"
        expect(page.locator(".run .problem")).to_have_text(line)
        expect(page.locator("#status")).to_have_text(line)
        expect(page.locator("#state")).to_have_text("not reachable")
        page.context.set_offline(False)
        expect(page.locator("#state")).to_have_text("ready")
        page.click(".again")
        expect(page.locator(".run")).to_have_attribute("data-state", "pass")
