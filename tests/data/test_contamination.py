"""No training text is among those that a student is judged by, nor nearly."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.data.contamination import HeldOut, Match, Overlap, n_grams, normalised, text_of
from kdexport.data.pairs import Pair

SENTENCE = "Fruit tarts from our oven are twenty percent off until Sunday evening at nine o'clock"


def texts(*contents: str) -> list[Pair]:
    return [Pair(f"h{n}", "test", (), content) for n, content in enumerate(contents)]


def pair(content: str, *asked: str) -> Pair:
    return Pair("t", "train", tuple({"role": "user", "content": a} for a in asked), content)


def jaccard(one: str, other: str) -> float:
    first, second = n_grams(normalised(one)), n_grams(normalised(other))
    return len(first & second) / len(first | second) if first | second else 0.0


@pytest.mark.parametrize(
    "same",
    ["  Fresh\u00a0BREAD\n", "ｆｒｅｓｈ bread", "Fresh\tbread"],  # noqa: RUF001
)
def test_case_spaces_and_compatible_characters_count_as_the_same(same: str) -> None:
    held_out = HeldOut(texts("Cake", "Fresh bread"), 1.0)
    match = held_out.match(pair(same))
    assert match is not None
    assert (match.held_out, match.likeness) == ("h1", 1.0)
    assert match.reason == "equal to a held-out text"
    assert held_out.match(pair("Pie")) is None


def test_prompt_and_completion_are_one_text_without_the_system_s_words() -> None:
    asked = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Bread?"})
    held_out = HeldOut([Pair("h", "test", asked, "Fresh!")], 0.8)
    assert held_out.match(pair("Fresh!", "Bread?")) is not None
    assert held_out.match(pair("Fresh!", "Cake?")) is None
    assert text_of(pair("Fresh!", "Bread?")) == "Bread?\nFresh!"


def test_a_word_changed_in_a_long_text_is_near_and_in_a_short_one_not() -> None:
    long, short = f"{SENTENCE}, {SENTENCE}.", "Tea 1 for you"
    held_out = HeldOut(texts(long, short), 0.8)
    match = held_out.match(pair(long.replace("Fruit", "Cream", 1)))
    assert match is not None and match.held_out == "h0" and 0.8 <= match.likeness < 1
    assert held_out.match(pair("Tea 2 for you")) is None


def test_the_same_words_in_a_row_are_as_near_as_can_be() -> None:
    held_out = HeldOut(texts(SENTENCE), 1.0)
    assert held_out.match(pair(f"{SENTENCE} - hurry!")) is None
    match = held_out.match(pair(f"{SENTENCE}!"))
    assert match is not None and match.reason == "nearly a held-out text"


def test_scripts_without_spaces_have_words_too() -> None:
    # One sign of 22 is another: 17 rows of three of 23 are shared, 17 / 23 = 0.74.
    one = "今日は焼きたてのパンを二割引きで販売しています"
    assert HeldOut(texts(one), 0.7).match(pair(one.replace("二", "三"))) is not None
    assert HeldOut(texts(one), 0.7).match(pair("明日は新しい靴を半額で売り出す予定です")) is None


def test_what_many_held_out_texts_share_is_a_template() -> None:
    """Or every answer to one long question would be near to every other."""
    template = " ".join(f"instruction{n}" for n in range(200))
    held_out = HeldOut([pair(f"answer number {n} is short", template) for n in range(30)], 0.8)
    assert held_out.match(pair("quite another one", template)) is None
    assert held_out.match(pair("answer number 7 is short", template)) is not None
    few = HeldOut([pair(f"answer number {n} is short", template) for n in range(5)], 0.8)
    assert few.match(pair("quite another one", template)) is not None


words = st.lists(st.sampled_from("abcdef"), max_size=12).map(" ".join)


@given(st.lists(words, max_size=6), words, st.floats(0.1, 1.0))
def test_the_nearest_is_found_exactly(held: Sequence[str], own: str, threshold: float) -> None:
    """Against the definition, text by text."""
    match = HeldOut(texts(*held), threshold).match(pair(own))
    best = max((1.0 if own == text else jaccard(own, text) for text in held), default=0.0)
    if best < threshold:
        assert match is None
    else:
        assert match is not None and match.likeness == pytest.approx(best)
        assert match.is_equal == (own in held)


def test_what_overlaps_is_counted_and_the_first_told() -> None:
    overlap = Overlap()
    overlap.add("t7", Match("h2", 0.8571, False))
    for number in range(6):
        overlap.add(f"t{number}", Match("h1", 1.0, True))
    assert overlap.example == "'t7' is like 'h2' (likeness 0.86)"
    found = overlap.as_json()
    assert found["count"] == 7 and len(found["examples"]) == 5
    assert found["examples"][:2] == [
        {"training": "t7", "held_out": "h2", "likeness": 0.857},
        {"training": "t0", "held_out": "h1", "likeness": 1.0},
    ]
