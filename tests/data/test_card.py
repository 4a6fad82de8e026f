"""What the card of a run's data counts."""

import json
import statistics
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.data.card import (
    DataCard,
    Drops,
    amend_card,
    in_words,
    language_identifier,
    spread_of,
)
from kdexport.data.pairs import Pair
from kdexport.data.spans import Span


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_lengths_against_their_definitions(numbers: list[int]) -> None:
    found = spread_of(array("I", numbers))
    assert found is not None
    assert (found["total"], found["max"]) == (sum(numbers), max(numbers))
    assert found["mean"] == pytest.approx(sum(numbers) / len(numbers), abs=0.051)
    assert found["p50"] == statistics.median_low(numbers)
    below = [sum(n <= number for n in numbers) for number in sorted(numbers)]
    assert found["p90"] == next(
        number for number, n in zip(sorted(numbers), below, strict=True) if n >= 0.9 * len(numbers)
    )


def test_no_numbers_have_no_lengths() -> None:
    assert spread_of(array("I")) is None


def test_a_card_tells_of_each_split() -> None:
    card = DataCard(lambda text: "en" if "bread" in text else "und")
    card.add(Pair("a", "train", (), "fresh bread", 2.0), 3, 5, "sms")
    card.add(Pair("b", "train", (), "cake", spans=(Span(0, 2, 3.0),)), 4, 2, "sms")
    card.add(Pair("c", "test", (), "tea"), 1, 1)
    assert card.n_pairs("train", "test") == 3
    found = card.as_json()
    assert found["train"] == {
        "pairs": 2,
        "weighted_pairs": 1,
        "pairs_with_weighted_spans": 1,
        "completion_characters": {"total": 15, "mean": 7.5, "p50": 4, "p90": 11, "max": 11},
        "prompt_tokens": {"total": 7, "mean": 3.5, "p50": 3, "p90": 4, "max": 4},
        "completion_tokens": {"total": 7, "mean": 3.5, "p50": 2, "p90": 5, "max": 5},
        "languages": {"en": 1, "und": 1},
        "channels": {"sms": 2},
    }
    assert found["validation"]["pairs"] == 0 and found["validation"]["prompt_tokens"] is None


def test_drops_are_counted_and_the_first_named() -> None:
    drops = Drops()
    for number in range(7):
        drops.add("empty", f"b{number}")
    drops.add("stray", "b9")
    assert str(drops) == "7 empty, 1 stray"
    assert drops.as_json() == {
        "empty": {"count": 7, "examples": ["b0", "b1", "b2", "b3", "b4"]},
        "stray": {"count": 1, "examples": ["b9"]},
    }
    assert str(Drops()) == "none"


def test_languages_are_told_and_guesses_are_not() -> None:
    identify = language_identifier()
    assert identify is not None
    told = [
        identify(text)
        for text in (
            "Fruit tarts are 20% off until Sunday evening.",
            "Frische Brötchen gibt es bis Sonntag zum halben Preis.",
            "今日のパンは二割引きです",
            "Bread!",
        )
    ]
    assert told == ["en", "de", "ja", "und"]


def test_without_the_library_there_are_no_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert language_identifier() is None
    card = DataCard(None)
    card.add(Pair("a", "train", (), "tea"), 0, 1)
    assert card.as_json()["train"]["languages"] == {}


def test_a_card_in_words() -> None:
    card = DataCard(lambda text: text[:2])
    for number, text in enumerate(["en", "en", "de", "fr", "it"]):
        card.add(Pair(str(number), "train", (), text), 10, 2 + number)
    card.add(Pair("t", "test", (), "en"), 3, 4)
    drops = Drops()
    drops.add("stray", "s")
    told = {"splits": card.as_json(), "dropped": drops.as_json()}
    assert in_words(told) == {
        "train": "5 pairs, 10 + 4 tokens on average, 40 % en, 20 % de, 20 % fr",
        "test": "1 pairs, 3 + 4 tokens on average, 100 % en",
        "stray": "1 dropped",
    }
    assert in_words({}) == {}


def test_a_card_is_amended(tmp_path: Path) -> None:
    amend_card(tmp_path, {"a": 1, "b": "ü"})
    amend_card(tmp_path, {"a": 2})
    assert json.loads((tmp_path / "data_card.json").read_text("utf-8")) == {"a": 2, "b": "ü"}
    assert [path.name for path in tmp_path.iterdir()] == ["data_card.json"]
