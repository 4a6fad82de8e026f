"""Counters against the cases that the rules' owners publish, and against what must always hold."""

import json
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdexport.content.counting import (
    COUNTERS,
    EMOJI,
    UNITS,
    count_google_ads,
    count_graphemes,
    count_hashtags,
    count_mentions,
    count_sms_segments,
    count_utf8,
    count_utf16,
    count_words,
    count_x,
)
from kdexport.content.sms import GSM_7, GSM_7_EXTENSION, JOINED, SINGLE, count_sms
from kdexport.content.x_urls import find_urls

CASES = json.loads((Path(__file__).parent / "data" / "twitter_text.json").read_text("utf-8"))
FAMILY = "👨‍👩‍👧‍👦"
LETTERS = st.text(st.characters(codec="ascii", categories=["L"]), max_size=300)
HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), max_size=200)
EMOJI_TEXT = st.lists(st.sampled_from(["😀", FAMILY, "🙋🏽", "🇩🇪", "1️⃣", "☺️", "❤️‍🔥"]), max_size=40)


@pytest.mark.parametrize("case", CASES["weights"], ids=lambda case: case["what"])
def test_x_weighs_what_twitter_text_publishes(case: dict[str, str]) -> None:
    assert count_x(case["text"]) == case["weight"]


@pytest.mark.parametrize("case", CASES["urls"], ids=lambda case: case["what"])
def test_x_finds_the_urls_that_twitter_text_publishes(case: dict[str, str]) -> None:
    assert [case["text"][slice(*span)] for span in find_urls(case["text"])] == case["urls"]


@pytest.mark.parametrize(
    ("text", "weight"),  # docs.x.com/fundamentals/counting-characters
    [("👾", 2), ("🙋🏽", 2), ("👨‍🎤", 2), (FAMILY, 2), ("cafe\u0301", 4), ("caf\u00e9", 4)],
)
def test_x_weighs_what_its_documentation_says(text: str, weight: int) -> None:
    assert count_x(text) == weight


@given(st.text())
def test_x_counts_normal_forms_alike(text: str) -> None:
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert count_x(text) == count_x(forms[0]) == count_x(forms[1])


@given(LETTERS)
def test_x_counts_letters_once(text: str) -> None:
    assert count_x(text) == len(text)


@given(HAN)
def test_x_counts_chinese_twice(text: str) -> None:
    assert count_x(text) == 2 * len(text)


@given(EMOJI_TEXT)
def test_x_counts_an_emoji_twice_whatever_it_is_made_of(emoji: list[str]) -> None:
    assert count_x(" ".join(emoji)) == 2 * len(emoji) + max(len(emoji) - 1, 0)
    assert all(EMOJI.fullmatch(one) for one in emoji)


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=2000))
def test_x_counts_a_url_23_whatever_its_length(path: str) -> None:
    assert count_x(f"https://example.com/{path}") == count_x(f"example.com/{path}") == 23


def test_x_does_not_take_what_is_no_address_for_one() -> None:
    assert count_x("5.99 a.m. e.g.this report.pdf") == len("5.99 a.m. e.g.this report.pdf")
    assert count_x("© ® 1 #") == 7  # written with emoji only where U+FE0F follows


def test_what_is_counted_has_words() -> None:
    assert UNITS.keys() == COUNTERS.keys() and all(UNITS.values())


@given(st.text(), st.text())
def test_lengths_add_up(one: str, other: str) -> None:
    for name in ("characters", "utf16", "utf8"):
        count = COUNTERS[name]
        assert count(one + other) == count(one) + count(other)
    for name in ("graphemes", "words", "x", "google_ads"):
        count = COUNTERS[name]  # what stands together may become one, but not more
        assert count(one + "\n" + other) <= count(one) + count(other) + count("\n")


@given(st.text())
def test_counters_agree_on_what_is_longer(text: str) -> None:
    assert count_graphemes(text) <= len(text) <= count_utf16(text) <= count_utf8(text)
    assert count_words(text) <= len(text)
    assert all(count(text) >= 0 for count in COUNTERS.values())
    assert all(count("") == 0 for count in COUNTERS.values())


@given(st.text(st.characters(codec="utf-8")))
def test_units_are_those_of_the_encodings(text: str) -> None:
    assert count_utf16(text) == len(text.encode("utf-16-le")) // 2
    assert count_utf8(text) == len(text.encode("utf-8"))


def test_one_grapheme_is_what_is_seen_as_one() -> None:
    assert [count_graphemes(text) for text in (FAMILY, "e\u0301", "\r\n", "각", "🇩🇪🇫🇷")] == [
        1,
        1,
        1,
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("Fresh bread", 11),
        ("新鲜面包", 8),  # double-width languages: 15 characters in a headline of 30
        ("フレッシュ", 10),
        ("ﾌﾚｯｼｭ", 5),  # half-width
        ("신선한 빵", 9),
        ("e\u0301te\u0301", 3),
        ("Buy {KeyWord:Chocolate}", 13),  # support.google.com/google-ads/answer/2454041
        ("Buy {keyword:Dark Chocolate} now", 22),
        ("{KEYWord:巧克力}", 6),
        ("{KeyWord:}", 0),
        ("{Other:Chocolate}", 17),
    ],
)
def test_google_ads_counts_as_it_says(text: str, length: int) -> None:
    assert count_google_ads(text) == length


@given(LETTERS, HAN)
def test_google_ads_counts_width(letters: str, han: str) -> None:
    assert count_google_ads(letters + han) == len(letters) + 2 * len(han)
    assert count_google_ads(f"{{KeyWord:{letters}}}") == len(letters)


@given(st.text())
def test_google_ads_counts_normal_forms_alike(text: str) -> None:
    assert count_google_ads(text) == count_google_ads(unicodedata.normalize("NFD", text))


def test_the_alphabets_of_sms_are_whole() -> None:
    assert len(GSM_7) == len(set(GSM_7)) == 127  # 128 with the escape
    assert len(GSM_7_EXTENSION) == len(set(GSM_7_EXTENSION)) == 10
    assert not set(GSM_7) & set(GSM_7_EXTENSION)


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("", ("GSM-7", 0, 0)),
        ("a" * 160, ("GSM-7", 160, 1)),
        ("a" * 161, ("GSM-7", 161, 2)),
        ("a" * 306, ("GSM-7", 306, 2)),
        ("a" * 307, ("GSM-7", 307, 3)),
        ("€" * 80, ("GSM-7", 160, 1)),
        ("a" * 159 + "€", ("GSM-7", 161, 2)),
        ("a" * 152 + "€" + "a" * 151, ("GSM-7", 305, 2)),
        ("a" * 152 + "€" + "a" * 152, ("GSM-7", 306, 3)),  # 306 septets, one lost at the border
        ("ê", ("UCS-2", 1, 1)),
        ("a" * 69 + "ê", ("UCS-2", 70, 1)),
        ("a" * 70 + "ê", ("UCS-2", 71, 2)),
        ("新" * 134, ("UCS-2", 134, 2)),
        ("新" * 135, ("UCS-2", 135, 3)),
        ("😀" * 35, ("UCS-2", 70, 1)),
        ("😀" * 66, ("UCS-2", 132, 2)),
        ("😀" * 67, ("UCS-2", 134, 3)),  # 33 pairs to a message of 67
        ("“quoted”", ("UCS-2", 8, 1)),
    ],
)
def test_sms_is_split_as_the_standard_says(text: str, counted: tuple[str, int, int]) -> None:
    found = count_sms(text)
    assert (found.encoding, found.units, found.segments) == counted
    assert count_sms_segments(text) == found.segments


@given(st.text(st.sampled_from(GSM_7 + GSM_7_EXTENSION), max_size=700))
@example("a" * 152 + "€" * 200)
def test_an_sms_of_its_alphabet_stays_in_it(text: str) -> None:
    found = count_sms(text)
    assert found.encoding == "GSM-7"
    assert found.units == len(text) + sum(letter in GSM_7_EXTENSION for letter in text)
    _fits(found.units, found.segments, found.encoding)


@given(st.text(max_size=700), st.sampled_from("ê新😀“"))
def test_one_foreign_character_is_enough(text: str, foreign: str) -> None:
    found = count_sms(text + foreign)
    assert (found.encoding, found.units) == ("UCS-2", count_utf16(text + foreign))
    _fits(found.units, found.segments, found.encoding)


def _fits(units: int, segments: int, encoding: str) -> None:
    """No more messages than units that are lost at their borders account for, and no fewer."""
    if units <= SINGLE[encoding]:
        assert segments == min(units, 1)
    else:
        room = JOINED[encoding]
        assert -(-units // room) <= segments <= -(-units // (room - 1))


def test_words_hashtags_and_mentions() -> None:
    assert count_words("Don't wait: 1,000 state-of-the-art loaves.") == 5
    assert count_words("新鲜面包, fresh bread") == 6
    assert count_hashtags("#bread #1 #sale2026 a#b &#39; \uff03パン #") == 3
    assert count_mentions("@baker and me@baker.com, @rye.mill") == 2


@pytest.mark.parametrize("text", ["あ" * 2000 + ".", "a." * 2000, "a-" * 2000 + ".", "12." * 2000])
def test_what_has_no_address_in_it_takes_no_long_search(text: str) -> None:
    begun = time.process_time()
    count_x(text)
    assert time.process_time() - begun < 1  # 20 ms; 10 s and more where every start is tried
