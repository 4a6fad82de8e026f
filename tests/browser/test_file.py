"""A file of briefs goes up, its copies fill in, and a table comes down."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from kdexport.bundle import Bundle
from kdexport.content.briefs import examine_briefs, load_briefs
from tests.browser import scripted
from tests.browser.browsing import download, ready, shown, table, write
from tests.serve.serving import Served, served

BRIEFS = """\
id,product,facts,channel,language,variants,seed
bread,"Rye, ""dark"" one",baked at 5 am;open until noon,sms,en,2,7
kettle,Kessel,ein Liter,x_post,de,,x
tea,Tee,,push_note,de,,
ad,Tern Kettle,one litre,google_rsa,en,,
"""
AD = "Headline: Tern\nHeadline: Kettle\nHeadline: Tea\nDescription: One litre.\nDescription: Now."


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    with served(bundle) as found:
        yield found


def upload(page: Page, path: Path) -> None:
    page.get_by_text("A file of briefs").click()
    page.set_input_files("#file", path)
    expect(page.locator("#file-told")).to_contain_text(": ")


def test_a_table_goes_up_and_copies_come_down(
    browser: Browser,
    server: Served,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "spring, ü.csv"
    path.write_text(BRIEFS)
    briefs, problems = examine_briefs(path)
    texts = {briefs[0].product: (" at 5 am.", " at 6 am."), "Tee": (" gut.",), "Tern Kettle": (AD,)}
    scripted.write_for(monkeypatch, bundle, texts)
    with ready(browser, server.url) as page:
        upload(page, path)
        expect(page.locator("#file-told")).to_have_text("spring, ü.csv: 3 briefs, 1 problem")
        told = page.locator("#file-problems li").all_inner_texts()
        assert told == [str(problem).replace(str(path), path.name) for problem in problems]
        page.click("#write-file")
        expect(page.locator("#status")).to_have_text(
            "4 copies for 3 briefs: 3 pass, 1 has a fault.", timeout=30_000
        )
        expect(page.locator("#progress")).to_be_hidden()
        assert page.locator(".run h3").all_inner_texts() == [brief.product for brief in briefs]
        copies = shown(page)
        text = download(page, "#download")
        page.check("#only")
        assert page.locator(".run:visible").count() == 1
    rows = table(text)
    assert text.startswith("\ufeff") and text.endswith("\r\n")
    assert [row["brief"] for row in rows] == ["bread", "bread", "tea", "ad"]
    assert [row["place"] for row in rows] == ["1", "2", "1", "1"]
    assert [row["product"] for row in rows][::2] == ['Rye, "dark" one', "Tee"]
    assert [row["status"] for row in rows] == ["pass", "fail", "pass", "pass"]
    assert [row["copy"] or row["nearest"] for row in rows] == [copy["text"] for copy in copies]
    assert rows[1]["copy"] == "" and "'6 am.' is not in the brief" in rows[1]["violations"]
    assert rows[3]["copy"] == AD
    assert rows[0]["lengths"] == "1/10 sms_segments" and rows[0]["seed"] == "7"
    assert {row["bundle"] for row in rows} == {"tiny"}


def test_rows_fill_in_one_after_another_until_stopped(
    browser: Browser,
    server: Served,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "many.csv"
    path.write_text("product,channel\n" + "".join(f"Tea {n},sms\n" for n in range(12)))
    scripted.write(monkeypatch, bundle, " abcdefghijklmnopqrstuvwxyz")
    scripted.slow_down(monkeypatch, 0.02)
    with ready(browser, server.url) as page:
        upload(page, path)
        page.click("#write-file")
        expect(page.locator(".run[data-state=writing]")).to_have_count(4)
        expect(page.locator(".run[data-state=waiting]")).to_have_count(8)
        expect(page.locator(".run").first).to_have_attribute("data-state", "pass")
        expect(page.locator("#speed")).to_contain_text("tok/s")
        page.click("#write-file")
        expect(page.locator(".run[data-state=waiting], .run[data-state=writing]")).to_have_count(0)
        states = [run.get_attribute("data-state") for run in page.locator(".run").all()]
        rows = table(download(page, "#download"))
    n_done = states.count("pass")
    assert states[:n_done] == ["pass"] * n_done and 1 <= n_done < 12
    assert states[-1] == "error" and rows[-1]["violations"].startswith("Stopped")
    assert [row["product"] for row in rows] == [f"Tea {n}" for n in range(12)]
    server.wait_for_rest()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("briefs.docx", b"x", "does not tell what it is: use one of .csv, .tsv, .jsonl"),
        ("briefs.csv", b"product\n", "0 briefs, 1 problem"),
        ("latin.csv", "product\nBrötchen\n".encode("latin-1"), "is not UTF-8"),
        ("large.csv", b"product\n" + b"a" * 2_000_001, "larger than the 2000000 bytes"),
        ("many.csv", b"product\n" + b"Tea\n" * 1001, "1,000 briefs, 1 problem"),
    ],
)
def test_a_file_that_is_none_is_told(
    browser: Browser, server: Served, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with ready(browser, server.url) as page:
        upload(page, tmp_path / name)
        expect(page.locator("#file-form")).to_contain_text(words)
        expect(page.locator("#write-file")).to_be_enabled(enabled=name == "many.csv")


def test_the_example_is_a_file_of_briefs(browser: Browser, server: Served, tmp_path: Path) -> None:
    with ready(browser, server.url) as page:
        page.get_by_text("A file of briefs").click()
        (tmp_path / "briefs.csv").write_text(download(page, "#example-file"), newline="")
    briefs = load_briefs(tmp_path / "briefs.csv")
    assert [brief.channel for brief in briefs] == ["sms", "x_post"]
    assert briefs[0].facts == ("sourdough baked at 5 am", "open until sold out")


def test_copies_of_the_form_come_down_too(
    browser: Browser, server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write(monkeypatch, bundle, ' "fresh", warm')
    with ready(browser, server.url) as page:
        write(page, product="Rye", channel="sms", variants="1", seed="3")
        expect(page.locator(".run")).to_have_attribute("data-state", "pass")
        (row,) = table(download(page, "#download"))
        expect(page.locator("#status")).to_have_text("copies.csv has 1 row.")
    assert row["copy"] == 'Made for you: Rye: "fresh", warm' and row["seed"] == "3"
