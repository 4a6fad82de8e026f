"""Chromium as tests need it: pages that note what must not happen, and what is seen of a page."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Response, expect

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
"""
OVERFLOWING = """
([wide, but]) => [...document.querySelectorAll("body *")]
  .filter((element) => element.checkVisibility() && !element.closest(`.unseen, .skip, ${but}`))
  .filter((element) => element.getBoundingClientRect().right > wide + 0.5)
  .map((element) => `${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}`)
"""


@contextmanager
def opened(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """A page of a context of its own.

    Afterwards: no error in its scripts, nothing that the policy had to stop, no other server asked.
    """
    origin = urlsplit(url).netloc
    held = browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **context})
    page = held.new_page()
    page.set_default_timeout(20_000)
    page.add_init_script(NOTE_VIOLATIONS)
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: "Content Security" in line.text and errors.append(line.text))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(url)
        yield page
        errors += page.evaluate("window.violations ?? []")
    finally:
        held.close()
    elsewhere = [url for url in asked if urlsplit(url).netloc != origin]
    assert not errors and not elsewhere, [*errors, *elsewhere]


@contextmanager
def ready(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """The server's page, with its pickers filled."""
    with opened(browser, url, **context) as page:
        page.locator("#channel option").first.wait_for(state="attached")
        yield page


def write(page: Page, **fields: str) -> None:
    """Fill the form in and press the button."""
    for name, value in fields.items():
        field = page.locator(f"#{name}")
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.evaluate("field => field.closest('details')?.setAttribute('open', '')")
            field.fill(value)
    page.click("#write")


def wait_until_done(page: Page) -> None:
    """Until nothing is being written."""
    expect(page.locator("#write.stops")).to_have_count(0)


def is_copy(answer: Response) -> bool:
    return answer.url.endswith("/v1/copy") and answer.request.method == "POST"


def shown(page: Page) -> list[dict[str, Any]]:
    """Text, first count and state of each copy on the page, all of one moment."""
    found: list[dict[str, Any]] = page.evaluate(
        """[...document.querySelectorAll(".copy")].map((copy) => ({
          text: copy.querySelector(".text").textContent,
          counts: [...copy.querySelectorAll(".length b")].map((b) => Number(b.textContent)),
          levels: [...copy.querySelectorAll(".length")].map((item) => item.dataset.level),
          reasons: [...copy.querySelectorAll(".reasons li")].map((item) => item.textContent),
          marks: [...copy.querySelectorAll("mark")].map((mark) => mark.textContent),
          passed: [...copy.querySelectorAll(".passed span")].map((check) => check.textContent),
          state: copy.dataset.state,
        }))"""
    )
    return found


def overflowing(page: Page, but: str = ".scroll") -> list[str]:
    """What reaches beyond the right edge of the page, but in what scrolls by itself."""
    wide = page.evaluate("document.documentElement.clientWidth")
    found: list[str] = page.evaluate(OVERFLOWING, [wide, but])
    if page.evaluate("document.documentElement.scrollWidth") > wide:
        found.append("the page scrolls sideways")
    return found


def download(page: Page, button: str) -> str:
    """The text of the file that a button hands out."""
    with page.expect_download() as held:
        page.click(button)
    return Path(held.value.path()).read_bytes().decode()


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
