"""The page at /: a brief is written, copies arrive with their counts, and what is wrong is told."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from kdexport.bundle import Bundle
from kdexport.content.brands import Brand
from kdexport.content.channels import load_channels
from kdexport.content.counting import COUNTERS, count_google_ads, count_sms_segments, count_x
from kdexport.content.review import lengths_of
from kdexport.serve.copies import Rules
from tests.browser import scripted
from tests.browser.browsing import is_copy, opened, ready, shown, wait_until_done, write
from tests.serve.serving import Served, served

BRAND = Brand(name="Tern", banned=("cheap",))
LONG_NAME = "Cinder & Rye Bakery of the Two Villages beyond the Old Mill at the River"


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    with served(bundle, rules=Rules(brand=BRAND)) as found:
        yield found


def test_copies_arrive_with_the_channel_s_own_count(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tiny model writes is nonsense of many scripts, which X counts in its own way."""
    scripted.slow_down(monkeypatch, 0.01)
    with ready(browser, server.url) as page:
        with page.expect_response(is_copy) as asked:
            write(page, product="Rye bread 🥐", channel="x_post", variants="3", seed="5")
        seen = []
        while page.locator(".copy[data-state=writing]").count():
            seen += shown(page)
        done = shown(page)
        body = asked.value.request.post_data_json
        expect(page.locator("#model")).to_have_text("tiny")
        speed = page.locator("#speed").inner_text()
    assert all(copy["counts"] == [count_x(copy["text"].strip())] for copy in [*seen, *done])
    assert len({copy["counts"][0] for copy in seen}) >= 5  # while it is being written
    assert len(done) == 3 and len({copy["text"] for copy in done}) == 3
    assert speed.removesuffix(" tok/s").isdigit()
    del body["stream"], body["stream_options"]
    with server.http() as http:
        whole = http.post("/v1/copy", json=body).raise_for_status().json()
    assert [copy["text"] for copy in whole["copies"]] == [copy["text"] for copy in done]
    counts = [[length["count"] for length in one["review"]["lengths"]] for one in whole["copies"]]
    assert counts == [copy["counts"] for copy in done]


def one(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch, text: str, **fields: str
) -> dict[str, Any]:
    """What is shown of the one copy that a model writes, which is this text after its opening."""
    scripted.write(monkeypatch, bundle_of(server), text)
    with ready(browser, server.url) as page:
        write(page, **{"product": "Rye bread", "variants": "1"} | fields)
        wait_until_done(page)
        (copy,) = shown(page)
        expect(page.locator(".run")).to_have_attribute("data-state", copy["state"])
    return copy


def bundle_of(server: Served) -> Bundle:
    return server.engine._bundle


def test_copy_that_passes_has_its_check_marks(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = one(browser, server, monkeypatch, " fresh at 5 am.", facts="at 5 am", channel="sms")
    assert copy["text"] == "Made for you: Rye bread: fresh at 5 am."
    assert (copy["state"], copy["reasons"], copy["levels"]) == ("pass", [], ["pass"])
    assert copy["passed"] == ["✓ length", "✓ banned", "✓ facts", "✓ repetition"]
    assert copy["counts"] == [count_sms_segments(copy["text"])] == [1]


def test_copy_that_is_too_long_says_so(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = one(browser, server, monkeypatch, " 新", product=LONG_NAME, channel="ad_headline")
    n = count_google_ads(copy["text"])
    assert n == len(copy["text"]) + 1 > 60
    assert (copy["state"], copy["counts"], copy["levels"]) == ("fail", [n], ["fail"])
    assert copy["reasons"] == [f"✗length {n} characters as Google Ads counts, at most 60"]
    assert copy["marks"] == []


def test_what_is_wrong_is_marked_where_it_stands(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emoji take two of JavaScript's units, one of the server's code points."""
    text = " 🥐🥐 the cheap loaf, now 20 % off"
    copy = one(browser, server, monkeypatch, text, call_to_action="come by", channel="sms")
    assert copy["marks"] == ["cheap", "20 %"]
    assert copy["reasons"] == [
        "✗banned 'cheap' is banned",
        "✗facts '20 %' is not in the brief",
        "!call to action 'come by' is missing",
    ]
    assert copy["passed"] == ["✓ length", "✓ repetition"]


def test_a_warning_is_no_fault(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = one(browser, server, monkeypatch, " for you", keywords="oven", channel="ad_headline")
    assert (copy["state"], copy["levels"]) == ("warn", ["warn"])
    assert copy["counts"][0] > 30
    assert [reason[0] for reason in copy["reasons"]] == ["!", "!"]


def test_copy_that_did_not_end_is_a_fault(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = load_channels()["ad_headline"].max_new_tokens
    copy = one(browser, server, monkeypatch, "q" * (n + 1), channel="ad_headline")
    assert "✗truncated it had not ended" in copy["reasons"]


def test_an_ad_of_parts_counts_each(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    ad = """Headline: Tern Kettle
Headline: 热水 in two minutes
Headline: {KeyWord:Kettle} of one litre
Description: One litre.
Description: Order now."""
    channel = load_channels()["google_rsa"]
    facts = "one litre\nboils in two minutes"
    copy = one(browser, server, monkeypatch, ad, channel="google_rsa", facts=facts)
    assert copy["text"] == ad
    assert copy["counts"] == [length.count for length in lengths_of(ad, channel, "en")]
    assert copy["counts"][1] == COUNTERS["google_ads"]("热水 in two minutes") == 19
    assert copy["state"] == "pass"


def test_variants_stand_side_by_side_and_runs_stay(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write(monkeypatch, bundle_of(server), " one.", " two.", " three.")
    with ready(browser, server.url) as page:
        write(page, product="Rye bread", channel="sms", variants="3", tone="warm", language="de")
        wait_until_done(page)
        boxes = [copy.bounding_box() for copy in page.locator(".copy").all()]
        assert len({box["y"] for box in boxes if box}) == 1
        assert len({box["x"] for box in boxes if box}) == 3
        assert page.locator(".text").first.get_attribute("lang") == "de"
        write(page, product="Tern Kettle", variants="1")
        wait_until_done(page)
        assert page.locator(".run h3").all_inner_texts() == ["Tern Kettle", "Rye bread"]
        assert page.locator(".run").nth(1).locator(".copy").count() == 3
        expect(page.locator("#status")).to_have_text("1 copy for Tern Kettle: 1 passes.")
        page.click("#clear")
        expect(page.locator("#empty")).to_be_visible()
        assert page.locator(".run").count() == 0


def test_the_copy_button_puts_copy_on_the_clipboard(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write(monkeypatch, bundle_of(server), " “fresh” 🥐", " warm")
    with ready(browser, server.url) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
        write(page, product="Rye bread", channel="sms", variants="2")
        wait_until_done(page)
        page.get_by_role("button", name="Copy 1 to the clipboard").click()
        expect(page.locator("#status")).to_have_text("Copy 1 is on the clipboard.")
        expect(page.locator(".take").first).to_have_text("Copied ✓")
        expect(page.locator(".take").first).to_have_text("Copy")
        text = page.evaluate("navigator.clipboard.readText()")
    assert text == "Made for you: Rye bread: “fresh” 🥐"


def test_copying_works_where_a_browser_keeps_the_clipboard_to_itself(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over plain HTTP from another machine."""
    scripted.write(monkeypatch, bundle_of(server), " warm")
    with ready(browser, server.url) as page:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        write(page, product="Rye bread", channel="sms", variants="1")
        wait_until_done(page)
        page.click(".take")
        expect(page.locator("#status")).to_have_text("Copy 1 is on the clipboard.")
        page.fill("#product", "")
        page.focus("#product")
        page.keyboard.press("Control+V")
        expect(page.locator("#product")).to_have_value("Made for you: Rye bread: warm")


def test_stop_keeps_what_is_written(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.slow_down(monkeypatch, 0.05)
    scripted.write(monkeypatch, bundle_of(server), " abcdefghijklmnopqrstuvwxyz" * 2)
    with ready(browser, server.url) as page:
        write(page, product="Rye bread", channel="x_post", variants="1")
        expect(page.locator(".text")).to_contain_text("abc")
        page.click("#write")
        expect(page.locator(".copy")).to_have_attribute("data-state", "stopped")
        expect(page.locator("#write")).to_have_text("Write")
        (copy,) = shown(page)
        assert "Rye bread: abc" in copy["text"] and not copy["text"].endswith("xyz")
        server.wait_for_rest()  # its row is free
        page.click(".again")
        expect(page.locator(".copy")).to_have_attribute("data-state", "writing")
        expect(page.locator(".text")).to_contain_text("abc")  # it is another state without
        page.keyboard.press("Escape")
        expect(page.locator(".run")).to_have_attribute("data-state", "stopped")


def test_what_a_brief_or_a_model_says_stays_text(
    browser: Browser, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    copy = one(browser, server, monkeypatch, f" {evil}", product=evil, channel="x_post")
    assert copy["text"].endswith(evil)


def test_the_policy_stops_what_is_not_the_server_s(browser: Browser, server: Served) -> None:
    """That nothing is stopped elsewhere is no proof that anything would be."""
    inside = "<script>window.ran = 1</script><p style='color: red'></p>"
    tries = [
        "add('style', (style) => style.append('p {}'))",
        "add('img', (image) => (image.src = 'http://a.example/'))",
        "fetch('http://a.example/').catch(() => {})",
        "try { document.body.innerHTML = '<b>' } catch {}",
        "setTimeout(() => { throw new Error('seen') })",
    ]

    def with_more(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("</body>", f"{inside}</body>"))

    with pytest.raises(AssertionError) as stopped, opened(browser, server.url) as page:
        page.route("**/", with_more)
        page.reload()
        assert page.evaluate("window.ran") is None
        for script in tries:
            page.evaluate(
                "() => { const add = (name, change) => { const made = document.createElement(name);"
                f" change(made); document.body.append(made); }}; {script}; }}"
            )
        page.wait_for_timeout(100)
    for directive in (
        *("script-src-elem", "style-src-attr", "style-src-elem", "img-src"),
        *("connect-src", "require-trusted-types-for", "seen"),
    ):
        assert directive in str(stopped.value)
