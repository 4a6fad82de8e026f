"""Scores of texts, against sacrebleu's figures and cases that can be counted by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.scores import chrf, distinct, n_as_before, repeated, self_bleu

BREAD = "Fresh bread from our oven, 20% off this spring!"
OVEN = "Fresh bread, 20% off: our spring oven sale."
SHOES = "Buy two pairs of running shoes and get free delivery."
BOOTS = "Buy two pairs of boots and get free delivery today."
APPLES = "Grüne Äpfel – frisch vom Hof."
Text = st.text("ab cd.", max_size=12)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [  # sacrebleu 2.6.0, CHRF().sentence_score
        (OVEN, BREAD, 50.13692505886292),
        (BOOTS, SHOES, 66.61664233506941),
        ("Tea", SHOES, 1.86219739292365),
        (APPLES, APPLES[:12], 72.45100382757545),
        (BREAD, BREAD, 100),
        (BREAD, "", 0),
        ("", "", 0),
    ],
)
def test_chrf_is_sacrebleu_s(text: str, reference: str, expected: float) -> None:
    assert chrf(text, reference) == pytest.approx(expected)


def test_self_bleu_is_sacrebleu_s() -> None:
    texts = [BREAD, OVEN, SHOES, "Tea", APPLES, "a a a a b", BOOTS]
    # sacrebleu 2.6.0, BLEU(smooth_method="floor", smooth_value=0.1, effective_order=True)
    expected = [8.24872000639961, 8.43175304717131, 52.5381978884832, 0, 0, 0, 52.5381978884832]
    assert self_bleu(texts) == pytest.approx(expected)


@given(Text, Text)
def test_chrf_is_a_share(one: str, other: str) -> None:
    assert 0 <= chrf(one, other) <= 100 + 1e-9
    if one.split():
        assert chrf(one, one) == pytest.approx(100)


@given(st.lists(Text, max_size=5))
def test_varied_is_what_repeats_nothing(texts: list[str]) -> None:
    assert all(0 <= value <= 100 + 1e-9 for value in self_bleu(texts))
    assert 0 <= distinct(texts, 2) <= 1
    assert all(0 <= repeated(text) < 1 for text in texts)


def test_a_text_among_its_like_has_a_self_bleu_of_100() -> None:
    assert self_bleu([SHOES, SHOES]) == pytest.approx([100, 100])
    assert self_bleu([SHOES]) == [0]
    assert self_bleu([SHOES, BREAD]) == pytest.approx([0, 0])


def test_a_short_text_pays_for_what_it_lacks() -> None:
    short, _ = self_bleu(["buy two pairs of", SHOES])
    assert short == pytest.approx(100 * math.exp(1 - 10 / 4))


def test_distinct_counts_all_texts_together() -> None:
    assert distinct(["good bread", "Good tea"], 1) == pytest.approx(3 / 4)
    assert distinct(["good bread", "Good tea"], 2) == 1
    assert distinct(["good bread", "good bread"], 2) == pytest.approx(1 / 2)
    assert distinct(["tea"], 2) == 0


def test_repetition_is_of_runs_of_four_words() -> None:
    assert repeated("one two three four five") == 0
    assert repeated("buy now and save buy now and save") == pytest.approx(1 - 4 / 5)
    assert repeated("tea tea") == 0


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("Fresh bread today", 3),
        ("Fresh bread today, and tomorrow", 3),
        ("Fresh bread, today", 2),
        ("Freshly", 1),
        ("Fre", 0),
        ("", 0),
    ],
)
def test_the_first_token_that_differs(text: str, n: int) -> None:
    assert n_as_before(["Fresh", " bread", " today"], text) == n
