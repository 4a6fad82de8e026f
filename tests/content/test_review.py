"""Each check of copy: one text that passes, and one that it finds fault with, and where."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.checks import is_repetitive, repeated_span
from kdexport.content.parts import join_parts, split_parts
from kdexport.content.review import Review, lengths_of, review_copy

CHANNELS = load_channels()
BRAND = Brand(
    name="Tern",
    banned=("cheap", "miracle cure"),
    disclosures=("Ad",),
    claims=("#1", "guaranteed", "100 %"),
)
HAN = "".join(chr(0x4E00 + n) for n in range(141))
AD = """Headline: Tern Kettle
Headline 2: Boils in 2 minutes
**Headline:** Holds its heat
Description: One litre, from $30.
Description: Order now."""


def review(text: str, channel: str = "sms", brand: Brand | None = None, **wishes: Any) -> Review:
    facts = ("one litre", "boils in two minutes", "from $30")
    brief = Brief(**{"product": "Tern Kettle", "facts": facts, "channel": channel, **wishes})
    return review_copy(text, brief, CHANNELS[channel], brand)


def found(text: str, channel: str = "sms", brand: Brand | None = None, **wishes: Any) -> list[Any]:
    """Check, the words it is about, and whether it is a fault."""
    return [
        (finding.check, text[slice(*finding.span)] if finding.span else None, finding.hard)
        for finding in review(text, channel, brand, **wishes).findings
    ]


def test_copy_that_keeps_to_its_brief_has_no_findings() -> None:
    assert found("Tern Kettle: one litre, boils in 2 minutes, from 30 dollars.") == []
    assert found(AD, "google_rsa") == []
    assert review(AD, "google_rsa").passed


@pytest.mark.parametrize(
    ("text", "channel", "wishes", "finding"),
    [
        ("", "sms", {}, ("empty", None, True)),
        ("a" * 161, "sms", {}, ("length", "a" * 161, False)),
        ("ê" * 671, "sms", {}, ("length", "ê" * 671, True)),
        (HAN, "x_post", {}, ("length", HAN, True)),
        ("It boils in 3 minutes.", "sms", {}, ("facts", "3", True)),
        ("It boils in three minutes.", "sms", {}, ("facts", "three", True)),
        ("Now 20 % off", "sms", {}, ("facts", "20 %", True)),
        ("From €30", "sms", {}, ("facts", "€30", True)),
        ("Until 24 December!", "sms", {}, ("facts", "24 December", True)),
        ("The cheapest kettle", "sms", {"banned": ["cheap"]}, ("banned", "cheapest", True)),
        ("A kettle", "sms", {"must_include": ["Tern"]}, ("required", None, True)),
        ("A kettle", "sms", {"disclosures": ["Paid partnership"]}, ("disclosure", None, True)),
        ("A kettle", "sms", {"keywords": ["tea"]}, ("keyword", None, False)),
        ("A kettle", "sms", {"call_to_action": "Order now"}, ("call to action", None, False)),
        ("so it boils tea " * 4, "sms", {}, ("repetition", "so it boils tea", True)),
    ],
)
def test_each_check_finds_its_fault_and_says_where(
    text: str, channel: str, wishes: dict[str, Any], finding: tuple[str, str | None, bool]
) -> None:
    assert found(text, channel, **wishes) == [finding]
    assert review(text, channel, **wishes).passed is not finding[2]


def test_a_brand_s_words_claims_and_disclosures_are_checked() -> None:
    text = "The #1 kettle, guaranteed: a miracle-cure for cold tea. 100%!"
    assert found(text, brand=BRAND) == [
        ("banned", "miracle-cure", True),
        ("disclosure", None, True),
        ("claim", "#1", True),
        ("claim", "guaranteed", True),
        ("claim", "100%", True),
        ("facts", "#1", True),
        ("facts", "100%", True),
    ]
    assert found("Ad: nevertheless, a kettle.", brand=BRAND) == []
    proven = found("Ad: it is guaranteed.", brand=BRAND, facts=["guaranteed for two years"])
    assert proven == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Description: Order now.\nDescription: One litre.", "headline: 0, at least 3"),
        (AD + "\nPath: a\nPath: b\nPath: c", "path: 3, at most 2"),
        (AD + "\nHeadline: tern  kettle", "headline: the same twice"),
        (AD + "\nPath:", "path is empty"),
        (
            AD + "\nHeadline: The kettle that you will love!!",
            "headline: 31 characters as Google Ads counts, at most 30",
        ),
        (
            AD + "\nDescription: {KeyWord:" + "k" * 91 + "}",
            "description: 91 characters as Google Ads counts",
        ),
        ("Here it is\n" + AD, "these words belong to no part"),
    ],
)
def test_parts_of_an_ad_are_counted_one_by_one(text: str, words: str) -> None:
    (finding,) = review(text, "google_rsa").findings
    assert words in finding.message and finding.hard


def test_lengths_of_a_text_are_those_of_its_review() -> None:
    for channel in CHANNELS:
        for text in ("", AD, AD[:40], "Tea 茶 🥐 https://example.com/tea"):
            assert lengths_of(text, CHANNELS[channel], "en") == review(text, channel).lengths


def test_a_review_names_the_checks_that_had_something_to_look_for() -> None:
    assert review("Tern Kettle").checks == ["length", "facts", "repetition"]
    asked = {"banned": ("hot",), "must_include": ("tea",), "keywords": ("kettle",)}
    words = {"call_to_action": "order", "disclosures": ("Ad",)}
    named = review(AD, "google_rsa", BRAND, **asked, **words).checks
    assert named == [
        *("length", "parts", "banned", "required", "disclosure", "claim", "facts", "repetition"),
        *("keyword", "call to action"),
    ]
    brief = Brief(product="Tern Kettle", channel="sms")
    checks = [
        review_copy(text, brief, CHANNELS["sms"], identify=lambda text: "en").checks
        for text in ("a" * 20, "a" * 19, "茶" * 10, "茶" * 9)
    ]
    assert ["language" in names for names in checks] == [True, False, True, False]


def test_lengths_are_told_in_the_channel_s_own_counting() -> None:
    (length,) = review("Tern Kettle – 30 $".replace("$", "\u20bf"), "sms").lengths
    assert (length.counter, length.count, length.soft, length.hard) == ("sms_segments", 1, 1, 10)
    assert length.detail == "UCS-2, 18 16-bit units"
    lengths = review(AD, "google_rsa").lengths
    assert [(one.part, one.count) for one in lengths][:2] == [("headline", 11), ("headline", 18)]


def test_copy_is_checked_in_its_own_language() -> None:
    text = "Tern: kocht in zwei Minuten, garantiert günstiger. Ab 30 $."
    wishes: dict[str, Any] = {"language": "de", "banned": ["günstig"]}
    assert found(text, **wishes) == [("banned", "günstiger", True)]
    assert found(
        "标题：水壶\n正文：2分钟烧开，全国最好。",
        "xiaohongshu_post",
        language="zh",
        banned=["最好"],
    ) == [("banned", "最好", True)]


def test_the_language_is_checked_where_something_can_tell_it() -> None:
    brief = Brief(product="Tern Kettle", channel="sms", language="de")

    def language(code: str, text: str = "Tern Kettle: tea for you") -> list[str]:
        review = review_copy(text, brief, CHANNELS["sms"], identify=lambda text: code)
        return [finding.check for finding in review.findings]

    assert language("de") == language("und") == []
    assert language("en") == ["language"]
    assert language("en", "Tern Kettle") == []


def test_copy_that_had_not_ended_has_a_fault() -> None:
    brief = Brief(product="Tern Kettle", channel="sms")
    for finished in (True, False):
        report = review_copy("Tern Kettle, now", brief, CHANNELS["sms"], finished=finished)
        assert report.passed is finished
        assert [finding.check for finding in report.findings] == ["truncated"] * (not finished)


def test_a_review_is_told_to_machines() -> None:
    told = review("From €30").as_json()
    assert told["passed"] is False
    assert told["findings"][0]["span"] == (5, 8)
    assert told["lengths"][0]["detail"] == "GSM-7, 9 septets"


LINE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1).filter(
    lambda text: ":" not in text and "：" not in text
)


@given(
    st.lists(LINE, max_size=15),
    st.lists(LINE, max_size=4),
    st.sampled_from(["en", "de", "fr", "es", "zh"]),
)
def test_parts_that_are_joined_come_apart_again(
    headlines: list[str], descriptions: list[str], language: str
) -> None:
    text = join_parts(
        {"headline": headlines, "description": descriptions}, CHANNELS["google_rsa"], language
    )
    pieces, stray = split_parts(text, CHANNELS["google_rsa"], language)
    assert [piece.text for piece in pieces if piece.part == "headline"] == headlines
    assert [piece.text for piece in pieces if piece.part == "description"] == descriptions
    assert all(text[slice(*piece.span)] == piece.text for piece in pieces)
    assert stray is None


@given(st.lists(st.sampled_from(["tea", "for", "you", "Now", "\n"]), max_size=60).map(" ".join))
def test_what_is_repetitive_is_found(text: str) -> None:
    """Beside a count of all runs of four words and of all lines."""
    words, lines = text.casefold().split(), [line.strip() for line in text.casefold().split("\n")]
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    is_found = max(map(runs.count, runs), default=0) > 3 or any(
        lines.count(line) > 2 for line in filter(None, lines)
    )
    span = repeated_span(text)
    assert (span is not None) == is_found == is_repetitive(text)
    assert span is None or text[slice(*span)].strip()


@given(st.text(max_size=80), st.sampled_from(sorted(CHANNELS)), st.sampled_from(["en", "de", "zh"]))
def test_any_text_can_be_reviewed(text: str, channel: str, language: str) -> None:
    report = review(text, channel, BRAND, language=language)
    assert report.as_json()["passed"] == report.passed
    spans = [finding.span for finding in report.findings if finding.span]
    assert all(0 <= begin <= end <= len(text) for begin, end in spans)


def test_a_run_of_chinese_that_comes_again_is_found() -> None:
    assert repeated_span("新鲜面包每天早上出炉，" * 4) is not None
    assert repeated_span("新鲜面包每天早上出炉，欢迎品尝。") is None
