"""What two models wrote for the same requests, side by side."""

import importlib.util
from typing import Any

import pytest

from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.review import Identify
from kdexport.copywriting.checking import Checks
from kdexport.measuring import scoring
from kdexport.measuring.scoring import (
    Briefed,
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


def copies(texts: list[str], briefed: Briefed | None = None) -> Copies:
    """The texts as what was written, a word a token."""
    written = {
        f"b{n}": Written(text, text, tuple(w + " " for w in text.split()))
        for n, text in enumerate(texts)
    }
    return Copies(written, briefed)


def briefs(*wishes: dict[str, Any], identify: Identify | None = None) -> Briefed:
    """A brief of each wish."""
    base: dict[str, Any] = {"product": "Bread", "channel": "email_preheader"}
    found = {f"b{n}": Brief(id=f"b{n}", **base | wish) for n, wish in enumerate(wishes)}
    return Briefed(found, Checks(load_channels(), identify=identify))


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
    wishes: list[dict[str, Any]] = [{} for _ in texts]
    wishes[4]["facts"] = ("sourdough", "baked daily", "open on Sundays")
    wishes[0]["facts"] = ("fresh bread",)
    found = score_copies(Copies(written, briefs(*wishes)), None, Judges())
    assert found.failed == {"duplicate": 1, "empty": 1, "truncated": 1, "stray": 1}
    assert found.reasons["b3"] == "truncated" and found.reasons["b4"] == "stray"
    assert found.intervals["passed"].value == pytest.approx(1 / 5)
    assert found.against == {}
    assert found.n_as_reference is None
    assert "chrf" not in found.intervals


def test_the_same_words_in_another_channel_are_no_duplicate() -> None:
    same = copies([LINES[0]] * 3, briefs({}, {"channel": "sms"}, {"language": "de"}))
    assert score_copies(same, None, Judges()).failed == {}
    same = copies([LINES[0]] * 3, briefs({}, {"channel": "sms"}, {"channel": "sms"}))
    assert score_copies(same, None, Judges()).reasons == {"b2": "duplicate"}


OURS = ["Bread at 5 am", "Cheap bread, now", "Bread for $3", "Fresh bread", "Brot, ganz frisch"]
THEIRS = ["Bread at 5 am", "Good bread, now", "Bread for a song", "Fresh bread", "Brot, 3 Sorten"]
WISHES: list[dict[str, Any]] = [
    {"facts": ("baked at 5 am",)},
    {"banned": ("cheap",)},
    {},
    {"must_include": ("rye",), "channel": "sms"},
    {"language": "de"},
]


def test_copy_for_briefs_is_held_to_all_checks_beside_the_teacher_s() -> None:
    briefed = briefs(*WISHES)
    found = score_copies(copies(OURS, briefed), copies(THEIRS, briefed), Judges())
    assert found.by_text["pass_rate"] == [1, 0, 0, 0, 1]
    assert found.faults == {
        "b1": ["banned: 'cheap' is banned"],
        "b2": ["facts: '$3' is not in the brief"],
        "b3": ["required: 'rye' is missing"],
    }
    told = {group.title: group for group in found.pass_rates}
    rates = {name: (one.rate.best, one.teacher and one.teacher.best) for name, one in told.items()}
    assert rates == {
        "all": (2 / 5, 3 / 5),
        "channel email_preheader": (2 / 4, 3 / 4),
        "channel sms": (0, 0),
        "language de": (1, 0),
        "language en": (1 / 4, 3 / 4),
    }
    difference = told["all"].difference
    assert difference and difference.value == pytest.approx(-1 / 5) and difference.covers()
    assert found.intervals["pass_rate"].value == 2 / 5
    alone = score_copies(copies(THEIRS, briefed), None, Judges())
    assert [group.teacher for group in alone.pass_rates] == [None] * 5


def test_a_text_cut_off_or_of_another_language_does_not_pass() -> None:
    briefed = briefs({}, {}, identify=lambda text: "fr" if "pain" in text else "en")
    texts = {"b0": Written("Bread and", "Bread and", finished=False)}
    texts["b1"] = Written("Du bon pain tout frais", "Du bon pain tout frais")
    found = score_copies(Copies(texts, briefed), None, Judges())
    assert {name: words[0].partition(":")[0] for name, words in found.faults.items()} == {
        "b0": "truncated",
        "b1": "language",
    }


def test_what_is_no_brief_s_has_no_pass_rate() -> None:
    found = score_copies(copies(LINES, briefs({})), copies(LINES), Judges())
    assert (found.pass_rates, found.faults) == ([], {})
    assert "pass_rate" not in found.intervals and "pass_rate" not in found.against


def test_a_difference_beyond_noise_is_told_of_enough_briefs() -> None:
    briefed = briefs(*[{} for _ in LINES])
    unproven = [f"{line} Bread for $9" for line in LINES]
    found = score_copies(copies(unproven, briefed), copies(LINES, briefed), Judges())
    assert found.against["pass_rate"].value == -7 / 8  # one speaks of two pairs, also the teacher's
    assert found.against["pass_rate"].high < 0


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
    teacher, quantized, *students = score_arms(arms, written)
    assert teacher.copies is not None
    assert teacher.copies.against == {}
    assert quantized.copies is not None
    assert quantized.copies.intervals["identical"].value == 1
    for student in students:
        assert student.copies is not None
        assert student.copies.intervals["identical"].value == 0
    alone = score_arms(arms[2:3], {arms[2].arm: wrote})
    assert alone[0].copies is not None
    assert alone[0].copies.against == {}
    assert score_arms(arms, {arm.arm: {} for arm in arms}) == arms
