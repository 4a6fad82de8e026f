import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdexport.content.languages import load_languages
from kdexport.content.matching import find_phrase, fold, tokens_of, words_match

WORD = st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1, max_size=12)


def found(phrase: str, text: str, language: str = "en") -> list[str]:
    return [text[slice(*span)] for span in find_phrase(phrase, tokens_of(text, language), language)]


@pytest.mark.parametrize(
    ("phrase", "text", "where"),
    [
        ("never", "Nevertheless, it NEVER fails.", ["NEVER"]),
        ("free", "Carefree, toll-free, freedom: free!", ["free", "free"]),
        ("risk free", "A risk-free trial", ["risk-free"]),
        ("#1", "The #1 bakery, not #10 or 1.", ["#1"]),
        ("100 %", "100% pure, 1,100 % never, １００％ too", ["100%", "１００％"]),
        ("guarantee", "Guaranteed: it guarantees", ["Guaranteed", "guarantees"]),
        ("ship", "shipping, shipped, ships, shape", ["shipping", "shipped", "ships"]),
        ("cheap", "cheaper, the cheapest, cheaply", ["cheaper", "cheapest"]),
        ("=cheap", "cheaper, Cheap", ["Cheap"]),
        ("new", "news of a new one", ["new"]),
        ("café", "CAFE\u0301 and caf\u00e9s", ["CAFE\u0301", "caf\u00e9s"]),
        ("Acme", "Acme™'s and Acme® ovens", ["Acme", "Acme"]),
        ("don't wait", "Don’t wait", ["Don’t wait"]),
        ("straße", "STRASSE", ["STRASSE"]),
        ("miracle", "mir\u00adacle", ["mir\u00adacle"]),
        ("", "anything", []),
    ],
)  # fmt: skip
def test_phrases_are_found_by_word(phrase: str, text: str, where: list[str]) -> None:
    assert found(phrase, text) == where


@pytest.mark.parametrize(
    ("language", "phrase", "text", "where"),
    [
        ("de", "günstig", "Günstige Preise, günstigsten Ungunst", ["Günstige", "günstigsten"]),
        ("de", "Garantie", "Garantien, garantiert", ["Garantien"]),
        ("de", "garantiert", "Ein garantierter Erfolg", ["garantierter"]),
        ("fr", "offre", "L'offre, nos offres, coffre", ["offre", "offres"]),
        ("fr", "gratuit", "Livraison gratuite", ["gratuite"]),
        ("es", "garantizado", "Calidad garantizada", ["garantizada"]),
        ("es", "luz", "Las luces", ["luces"]),
        ("zh", "最好", "这是最好的面包，最 好", ["最好", "最 好"]),
        ("zh", "第一", "全国第一！", ["第一"]),
        ("zh", "never", "nevertheless 从 never", ["never"]),
    ],
)
def test_forms_follow_the_language(language: str, phrase: str, text: str, where: list[str]) -> None:
    assert found(phrase, text, language) == where


@given(WORD, WORD, st.sampled_from(sorted(load_languages())))
def test_a_word_is_found_whatever_its_case_and_never_inside_another(
    word: str, around: str, language: str
) -> None:
    assert found(word, f"({word.upper()})", language)
    assert found(f"={word}", f"{around} {word}", language)
    assume(around not in load_languages()[language].elisions)
    assert not found(f"={word}", f"{around}{word}{around}", language)


@given(WORD, WORD, st.sampled_from(sorted(load_languages())))
def test_being_a_form_goes_both_ways(one: str, other: str, language: str) -> None:
    assert words_match(one, one, language)
    assert words_match(one, other, language) == words_match(other, one, language)


@given(st.text())
def test_spans_are_of_the_text_as_it_was(text: str) -> None:
    folded = fold(text)
    assert len(folded.begins) == len(folded.ends) == len(folded.text)
    spans = [token.span for token in tokens_of(text, "fr")]
    assert all(0 <= begin < end <= len(text) for begin, end in spans)
    assert spans == sorted(spans)


@given(st.text())
def test_a_text_is_found_in_itself(text: str) -> None:
    assert not tokens_of(text, "en") or text.startswith("=") or found(text, text)


def test_every_language_asks_for_the_same() -> None:
    languages = load_languages()
    assert {"en", "zh", "de", "fr", "es"} <= set(languages)
    asked = set(languages["en"].asks)
    for language in languages.values():
        assert set(language.asks) == asked
        assert all(text.count("{words}") == 1 for text in language.asks.values())
        assert all(">" in rule for rule in language.inflections)
        assert len(language.months) in (0, 12)
