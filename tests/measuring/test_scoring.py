"""What two models wrote for the same requests, side by side."""

import importlib.util

import pytest

from kdexport.measuring import scoring
from kdexport.measuring.scoring import (
    Copies,
    Judges,
    Written,
    load_judges,
    score_arms,
    score_copies,
)
from tests.verdict.fixture import example_report

LINES = [
    "Fresh bread from our oven every morning.",
    "Two pairs of shoes for the price of one.",
    "A weekend in the mountains with breakfast.",
    "Tea from the hills, picked by hand.",
    "Your bike is ready: come and get it.",
    "Soap that smells of sea salt and fennel.",
    "New: oat milk in bottles that we take back.",
    "Paint your kitchen in one afternoon.",
]


def copies(texts: list[str], **facts: list[str]) -> Copies:
    """The texts as what was written, a word a token."""
    return Copies(
        {
            f"b{n}": Written(text, text, tuple(w + " " for w in text.split()))
            for n, text in enumerate(texts)
        },
        facts,
    )


def test_a_copy_of_the_teacher_differs_in_nothing() -> None:
    found = score_copies(copies(LINES), copies(LINES), Judges())
    assert found.intervals["chrf"].value == pytest.approx(100)
    assert found.intervals["identical"].value == 1
    assert {one.value for one in found.against.values()} == {0}
    assert all(one.covers(0) for one in found.against.values())
    assert found.requests == [f"b{n}" for n in range(8)]
    assert found.failed == {}


def test_what_is_always_longer_and_repeats_itself_is_told() -> None:
    endless = [f"{line} {line} {line} {line} {line}" for line in LINES]
    found = score_copies(copies(endless), copies(LINES), Judges())
    assert found.against["n_words"].low > 0
    assert found.against["repeated"].low > 0
    assert found.against["passed"].high < 0
    assert found.failed == {"repetitive": 8}
    assert found.by_text["passed"] == [0] * 8


def test_what_differs_now_this_way_now_that_is_noise() -> None:
    changed = [
        f"{line} Now." if n % 2 else line[:-1].rsplit(" ", 1)[0] for n, line in enumerate(LINES)
    ]
    found = score_copies(copies(changed), copies(LINES), Judges())
    assert found.against["n_words"].covers(0)
    assert not found.intervals["n_words"].covers(0)


def test_tokens_before_the_first_that_differs_have_a_median() -> None:
    changed = [LINES[0], "Two pairs of boots", "A weekend", "Coffee", "Your bike is", "Soap"]
    found = score_copies(copies(changed), copies(LINES), Judges())
    assert found.against == {}  # of six, too few to compare
    # The last token of a text has a space here that the text has not: it counts as different.
    assert found.by_text["n_as_reference"] == [6, 3, 1, 0, 2, 0]
    assert found.n_as_reference == 1.5


def test_checks_are_those_of_the_data() -> None:
    texts = [LINES[0], LINES[0], "Tea", "Cut off in the middle of", "About something else here."]
    written = dict(copies(texts).texts)
    written["b3"] = Written(texts[3], texts[3], finished=False)
    facts = {"b4": ["sourdough", "baked daily", "open on Sundays"], "b0": ["fresh bread"]}
    found = score_copies(Copies(written, facts), None, Judges())
    assert found.failed == {"duplicate": 1, "empty": 1, "truncated": 1, "stray": 1}
    assert found.reasons["b3"] == "truncated" and found.reasons["b4"] == "stray"
    assert found.intervals["passed"].value == pytest.approx(1 / 5)
    assert found.against == {}
    assert found.n_as_reference is None
    assert "chrf" not in found.intervals


def test_judges_judge_where_they_are_installed() -> None:
    judges = Judges(
        similarity=lambda ours, theirs: [0.5] * len(ours),
        language=lambda text: "de" if "Brot" in text else "en",
    )
    found = score_copies(copies(["Frisches Brot", LINES[1]]), copies(LINES), judges)
    assert found.intervals["similarity"].value == 0.5
    assert found.by_text["same_language"] == [0, 1]
    assert len(found.requests) == 2


def test_nothing_in_common_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no request"):
        score_copies(copies(LINES), Copies({"other": Written("x")}), Judges())


def test_languages_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("py3langid")
    monkeypatch.setattr(scoring, "load_similarity", lambda: None)
    judge = load_judges().language
    assert judge is not None
    assert judge("Fresh bread from our oven, every morning of the week.") == "en"
    assert judge("Frisches Brot aus unserem Ofen, jeden Morgen der Woche.") == "de"


def test_no_judge_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert load_judges() == Judges()


def test_every_arm_of_a_bench_is_beside_the_teacher() -> None:
    arms = example_report().ordered_arms
    wrote = dict(copies(LINES).texts)
    shorter = {name: Written(one.text[:-1], one.text[:-1]) for name, one in wrote.items()}
    written = {arm.arm: shorter if arm.arm.startswith("student") else wrote for arm in arms}
    teacher, quantized, *students = score_arms(arms, written, {})
    assert teacher.copies is not None
    assert teacher.copies.against == {}
    assert quantized.copies is not None
    assert quantized.copies.intervals["identical"].value == 1
    for student in students:
        assert student.copies is not None
        assert student.copies.intervals["identical"].value == 0
    alone = score_arms(arms[2:3], {arms[2].arm: wrote}, {})
    assert alone[0].copies is not None
    assert alone[0].copies.against == {}
    assert score_arms(arms, {arm.arm: {} for arm in arms}, {}) == arms
