"""What the page is made of, and the routes that only it needs; tests/browser has what it does."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import kdexport.serve
from kdexport.bundle import Bundle
from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief, examine_briefs
from kdexport.content.channels import load_channels
from kdexport.content.counting import UNITS
from kdexport.content.languages import load_languages
from kdexport.content.review import lengths_of
from kdexport.serve.copies import Rules
from kdexport.serve.guard import HEADERS
from tests.serve.serving import Served, served

SITE = Path(kdexport.serve.__file__).parent / "site"
FILES = sorted(path for path in SITE.iterdir() if path.is_file())
BRIEF: dict[str, Any] = {"product": "Rye bread", "channel": "x_post", "variants": 2, "seed": 1}
CSV = "id,product,facts,variants\na,Rye bread,dark;rye,2\nb,,,\nc,Tea,,x\n"


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    with served(bundle, key="sesame", rules=Rules(brand=Brand(name="Tern"))) as found:
        yield found


@pytest.fixture
def http(server: Served) -> Any:
    with server.http(headers={"Authorization": "Bearer sesame"}) as client:
        yield client


class Tags(HTMLParser):
    """The start tags of a page, and what it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_is_served_without_a_key_and_with_its_headers(server: Served) -> None:
    with server.http() as http:
        page = http.get("/").raise_for_status()
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for answer in (page, http.get("/health"), http.get("/v1/copy"), http.get("/nothing")):
            assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert http.get("/v1/copy").status_code == 401
        assert http.head("/").status_code == 200
        assert http.post("/").status_code == 405
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_every_file_is_served_and_nothing_else(server: Served) -> None:
    kinds = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    with server.http() as http:
        for path in FILES:
            if path.name != "index.html":
                answer = http.get(f"/site/{path.name}").raise_for_status()
                assert answer.content == path.read_bytes()
                assert answer.headers["content-type"].startswith(kinds[path.suffix])
        for wrong in ("index.html", "none.js", "../app.py", "%2e%2e/app.py", ""):
            assert http.get(f"/site/{wrong}").status_code == 404
        counted = http.get("/metrics").text
    assert 'kdexport_requests_total{route="/",status="200"}' in counted
    assert "app.py" not in counted and "page.js" not in counted


def test_the_page_refers_to_its_own_files_and_has_nothing_inline() -> None:
    tags = Tags((SITE / "index.html").read_text("utf-8")).found
    wanted = {
        attrs.get("src") or attrs.get("href") for tag, attrs in tags if tag in ("script", "link")
    }
    assert wanted == {"site/page.js", "site/page.css", "site/copies.css", "site/icon.svg"}
    names = {name for _, attrs in tags for name in attrs}
    assert "style" not in names and not [name for name in names if name.startswith("on")]
    assert all(attrs.get("src") for tag, attrs in tags if tag == "script")
    assert "style" not in {tag for tag, _ in tags}


def test_modules_are_there_and_write_text_only() -> None:
    for path in FILES:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 400, path.name
        if path.suffix == ".js":
            imported = re.findall(r'from "([^"]+)"', text)
            assert all((SITE / name).is_file() for name in imported), path.name
            assert text.startswith("/** "), path.name
            made_of = (
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
                "Storage",
            )
            assert not [word for word in made_of if word in text], path.name
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name


def test_what_a_brief_may_choose_from(http: Any) -> None:
    found = http.get("/v1/copy").raise_for_status().json()
    assert (found["model"], found["brand"]) == ("tiny", "Tern")
    assert [channel["name"] for channel in found["channels"]] == list(load_channels())
    assert {one["code"]: one["name"] for one in found["languages"]} == {
        code: language.name for code, language in load_languages().items()
    }
    ad = next(channel for channel in found["channels"] if channel["name"] == "google_rsa")
    assert ad["parts"]["headline"]["limits"] == {
        "google_ads": {"min": None, "soft": None, "hard": 30}
    }
    assert ad["sources"][0]["url"].startswith("https://")
    assert found["units"] == UNITS
    assert "warm" in found["tones"] and "launch" in found["campaigns"]
    for channel in found["channels"]:
        Brief(product="a", channel=channel["name"], language=found["languages"][0]["code"])


def test_a_stream_tells_lengths_where_they_are_asked_for(http: Any) -> None:
    body: dict[str, Any] = {"brief": BRIEF, "stream": True}
    plain, counted = (
        [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        for answer in (
            http.post("/v1/copy", json=body),
            http.post("/v1/copy", json=body | {"stream_options": {"include_lengths": True}}),
        )
    )
    assert plain[-1] == counted[-1]
    assert {name for event in plain[:-1] for name in event} <= {"variant", "text", "finish_reason"}
    texts, n_tokens = ["", ""], [0, 0]
    for event in counted[:-1]:
        at = event["variant"]
        texts[at] += event["text"]
        expected = lengths_of(texts[at].strip(), load_channels()["x_post"], "en")
        assert [(one["counter"], one["count"]) for one in event["lengths"]] == [
            (length.counter, length.count) for length in expected
        ]
        assert event["n_tokens"] >= n_tokens[at]
        n_tokens[at] = event["n_tokens"]
    assert sum(n_tokens) == counted[-1]["usage"]["completion_tokens"]


def test_a_file_of_briefs_is_examined_as_by_the_command(http: Any, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(CSV)
    briefs, problems = examine_briefs(tmp_path / "b.csv")
    answer = http.post("/v1/briefs", params={"name": "b.csv"}, content=CSV.encode())
    found = answer.raise_for_status().json()
    assert [Brief(**brief) for brief in found["briefs"]] == briefs
    assert found["briefs"] == [
        {"id": "a", "product": "Rye bread", "facts": ["dark", "rye"], "variants": 2}
    ]
    told = [f"{one['where']}: {one['field']}: {one['message']}" for one in found["problems"]]
    assert told == [str(problem).replace(f"{tmp_path}/", "") for problem in problems]
    assert told[0] == "b.csv:3: product: is missing"


@pytest.mark.parametrize(
    ("name", "content", "status", "words"),
    [
        ("b.parquet", b"", 400, "'b.parquet' does not tell what it is"),
        ("b.csv.gz", b"", 400, "'b.csv.gz' does not tell what it is"),
        ("", b"", 400, "'' does not tell what it is"),
        ("../../b.csv", b"product\n", 200, "../../b.csv"),
        ("b.csv", b"\xff", 200, "is not UTF-8"),
        ("b.csv", b"product\n" + b"Tea\n" * 1200, 200, "goes on after the 1,000"),
        ("b.jsonl", b"{", 200, "is not JSON"),
        ("b.csv", b"product\n" + b"a" * 2_000_001, 413, "2000000"),
    ],
)
def test_a_file_that_is_none_is_named(
    http: Any, name: str, content: bytes, status: int, words: str
) -> None:
    answer = http.post("/v1/briefs", params={"name": name}, content=content)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert "/tmp" not in answer.text
