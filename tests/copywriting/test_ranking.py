"""Which texts are taken, whatever came."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.copywriting.checking import Checked
from kdexport.copywriting.ranking import (
    FAIL,
    NEARLY,
    NO_OTHER,
    PASS,
    WARN,
    Place,
    Scored,
    choose,
    likeness,
)

WORDS = ("fresh", "bread", "today", "from", "our", "oven", "tea", "in", "spring")
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
checks = st.builds(
    Checked,
    hard=st.lists(st.sampled_from(["empty", "banned", "length"]), max_size=2).map(tuple),
    soft=st.lists(st.sampled_from(["tone", "strays"]), max_size=2).map(tuple),
    over=st.sampled_from([0.0, 0.1, 1.0]),
).map(lambda found: found if found.hard else replace(found, over=0.0))
fluencies = st.none() | st.sampled_from([-3.0, -1.0, -0.5])
clicks = st.none() | st.sampled_from([0.01, 0.02, 0.05])
candidates = st.lists(st.tuples(texts, checks, fluencies, st.none(), clicks), max_size=8).map(
    lambda found: [Scored(n, *one) for n, one in enumerate(found)]
)


def test_order_is_by_soft_violations_then_by_fluency_of_the_judge() -> None:
    scored = [
        Scored(0, "Fresh bread from our oven", Checked(soft=("tone",)), -0.1, -0.1),
        Scored(1, "Tea in spring", Checked(), -0.2, -2.0),
        Scored(2, "Book your weekend today", Checked(), -0.9, -1.0),
        Scored(3, "Buy two pairs", Checked(hard=("banned",)), 0.0, 0.0),
    ]
    assert [(p.status, p.scored and p.scored.number) for p in choose(scored, 4)] == [
        (PASS, 2),
        (PASS, 1),
        (WARN, 0),
        (FAIL, 3),
    ]


def test_what_is_clicked_more_comes_first_among_those_that_pass_alike() -> None:
    """However likely a text is clicked, it does not come before one that violates less."""
    scored = [
        Scored(0, "Fresh bread from our oven", Checked(soft=("tone",)), -0.1, None, 0.9),
        Scored(1, "Tea in spring", Checked(), -0.2, None, 0.01),
        Scored(2, "Book your weekend today", Checked(), -0.9, None, 0.02),
        Scored(3, "Buy two pairs", Checked(hard=("banned",)), 0.0, None, 0.99),
    ]
    places = choose(scored, 4)
    assert [place.scored.number for place in places if place.scored] == [2, 1, 0, 3]


def test_of_nearly_equal_texts_the_better_stands_and_the_other_says_why() -> None:
    scored = [
        Scored(0, "Fresh bread from our oven, every day!", Checked(), -0.5),
        Scored(1, "fresh bread from our oven,  every day?", Checked(), -0.4),
    ]
    first, second = choose(scored, 2)
    assert first.scored and second.scored
    assert (first.status, first.scored.number) == (PASS, 1)
    assert (second.status, second.violations) == (FAIL, ("alike: nearly candidate 1",))


def test_the_nearest_violates_least_and_is_least_too_long() -> None:
    scored = [
        Scored(0, "one", Checked(("length 70 > 60",), over=0.2), -0.1),
        Scored(1, "two", Checked(("length 63 > 60",), over=0.05), -9.0),
        Scored(2, "three", Checked(("length 61 > 60", "banned"), over=0.01), -0.1),
    ]
    places = choose(scored, 5)
    assert [place.scored.number for place in places if place.scored] == [1, 0, 2]
    assert [place.violations for place in places[3:]] == [(NO_OTHER,)] * 2


@given(candidates, st.integers(1, 9), st.randoms(use_true_random=False))
def test_places_are_kept_whatever_came(scored: list[Scored], keep: int, random: Random) -> None:
    places = choose(scored, keep)
    assert len(places) == keep
    passing = [p.scored for p in places if p.status != FAIL and p.scored]
    failing = [place for place in places if place.status == FAIL]
    assert places == [*(p for p in places if p.status != FAIL), *failing]
    assert not any(one.checked.hard for one in passing)
    for at, one in enumerate(passing):
        assert all(likeness(one.text, other.text) < NEARLY for other in passing[:at])
    if failing:  # whatever passes is among the texts, or too like one of them
        for one in scored:
            if not one.checked.hard:
                assert any(likeness(one.text, other.text) >= NEARLY for other in passing)
    assert all(place.violations for place in failing)
    shown = [place.scored.text for place in places if place.scored]
    assert len(set(shown)) == len(shown)
    keys = [
        (len(one.checked.soft), -(one.click_score or 0), -one.fluency, one.number)
        for one in passing
    ]
    assert keys == sorted(keys)
    others = list(scored)
    random.shuffle(others)
    assert choose(others, keep) == places


@given(texts, texts)
def test_likeness_is_symmetric_and_1_for_a_text_itself(one: str, other: str) -> None:
    assert likeness(one, other) == likeness(other, one)
    assert likeness(one, one.upper()) == 1.0
    assert 0.0 <= likeness(one, other) <= 1.0


def test_likeness_by_hand() -> None:
    # 4 and 4 rows of three words, 3 in common: 3 / 5
    assert likeness("a b c d e f", "a b c d e g") == pytest.approx(3 / 5)
    assert likeness("a b", "a c") == pytest.approx(1 / 3)  # of words
    assert Place(FAIL).violations == (NO_OTHER,)
