"""What a segment answered to chooses tone and facts, by arithmetic that can be looked up."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.audiences import (
    Answers,
    Past,
    Segment,
    examine_segments,
    leader,
    least_difference,
    load_personal,
    load_segments,
    personalised,
)
from kdexport.content.briefs import Brief
from kdexport.errors import InputError

HEADER = (
    "name,audience,age_band,interests,tone,words,lead_with,n_facts,"
    "past.spring.tone,past.spring.led_with,past.spring.sends,past.spring.opens,past.spring.clicks,"
    "past.autumn sale.tone,past.autumn sale.sends,past.autumn sale.clicks\n"
)
FAMILIES = (
    "families,young parents,25-34,sleep; weekends,warm,,sleep,2,playful,free,1000,,90,warm,900,20\n"
)
BRIEF = Brief(
    id="b",
    product="Tern Lamp",
    facts=("one litre", "Free delivery", "dims for sleep"),
    tone="bold",
    keywords=("lamp",),
    segment="all",
)


def table(folder: Path, *rows: str, name: str = "segments.csv") -> Path:
    (folder / name).write_text(HEADER + "".join(rows))
    return folder / name


def segment(**known: object) -> Segment:
    return Segment.model_validate({"name": "s", **known})


def for_segment(one: Segment, brief: Brief = BRIEF) -> tuple[Brief, list[str]]:
    (found,) = personalised([brief], {one.name: one})
    return found.brief, list(found.because)


def test_a_table_of_segments_is_read(tmp_path: Path) -> None:
    found = load_segments(table(tmp_path, FAMILIES, "others,,,,,,,,,,,,,,,\n"))
    assert found["families"] == Segment(
        name="families",
        audience="young parents",
        age_band="25-34",
        interests=("sleep", "weekends"),
        tone="warm",
        lead_with=("sleep",),
        n_facts=2,
        past={
            "spring": Past(tone="playful", led_with="free", sends=1000, clicks=90),
            "autumn sale": Past(tone="warm", sends=900, clicks=20),
        },
    )
    assert found["others"] == Segment(name="others")
    nested = tmp_path / "segments.yaml"
    nested.write_text("- name: s\n  past: {spring: {sends: 10, opens: 2}}\n")
    assert load_segments(nested)["s"].past == {"spring": Past(sends=10, opens=2)}


def test_the_brief_of_a_segment_is_in_its_words_and_says_why() -> None:
    known = {"audience": "young parents", "age_band": "25-34", "interests": ("sleep", "weekends")}
    past = {
        "spring": {"tone": "playful", "led_with": "delivery", "sends": 1000, "clicks": 90},
        "autumn": {"tone": "warm", "led_with": "litre", "sends": 900, "clicks": 20},
    }
    brief, because = for_segment(segment(**known, tone="warm", words=("glow", "lamp"), past=past))
    assert (brief.id, brief.segment) == ("b/s", "s")
    assert brief.audience == "young parents (25-34; sleep, weekends)"
    assert brief.tone == "playful"
    assert brief.facts == ("Free delivery", "dims for sleep", "one litre")
    assert brief.keywords == ("lamp", "glow")
    assert because == [
        "tone playful: clicked by 9.0% of 1,000, against 2.2% of 900 in other tones",
        "first fact: 'delivery' clicked by 9.0% of 1,000, against 2.2% of 900 with others first",
    ]


def test_what_the_past_does_not_tell_is_the_segment_s_then_the_brief_s() -> None:
    past = {
        "spring": {"tone": "playful", "sends": 100, "clicks": 5},
        "autumn": {"tone": "warm", "sends": 100, "clicks": 3},
    }
    unsure = "; no past tone was clicked more than the others beyond chance"
    brief, because = for_segment(segment(tone="witty", past=past, lead_with=("SLEEP",)))
    assert (brief.tone, brief.facts[0]) == ("witty", "dims for sleep")
    assert because == [
        f"tone witty: the segment's own{unsure}",
        "first fact: the segment's own 'SLEEP'",
    ]
    brief, because = for_segment(segment(past=past, interests=("drinks", "litres")))
    assert (brief.tone, brief.facts) == (BRIEF.tone, BRIEF.facts)
    assert because == [f"tone bold: the brief's{unsure}", "first fact: its interest 'litres'"]
    brief, because = for_segment(segment(n_facts=1))
    assert (brief.facts, because) == (BRIEF.facts[:1], ["tone bold: the brief's"])
    assert for_segment(segment(), BRIEF.model_copy(update={"facts": ()}))[0].facts == ()


def test_copy_that_is_to_be_opened_is_judged_by_opens() -> None:
    past = {
        "spring": {"tone": "playful", "sends": 1000, "opens": 200, "clicks": 90},
        "autumn": {"tone": "warm", "sends": 1000, "opens": 400, "clicks": 20},
    }
    subject = BRIEF.model_copy(update={"channel": "email_subject"})
    known = segment(past=past)
    assert for_segment(known)[0].tone == "playful"
    brief, because = for_segment(known, subject)
    assert brief.tone == "warm"
    told = "opened by 40.0% of 1,000, against 20.0% of 1,000 in other tones"
    assert because[0] == f"tone warm: {told}"
    only = {name: {**one, "opens": None} for name, one in past.items()}
    assert for_segment(segment(past=only), subject)[0].tone == "playful"


def test_the_interval_of_a_difference_is_newcombe_s() -> None:
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 is 0.2, from 0.0524 to 0.3339."""
    one, other = Answers(56, 70), Answers(48, 80)
    assert least_difference(one, other, 1.959964) == pytest.approx(0.0524, abs=5e-5)
    assert -least_difference(other, one, 1.959964) == pytest.approx(0.3339, abs=5e-5)


counts = st.integers(1, 5000).flatmap(lambda of: st.integers(0, of).map(lambda n: Answers(n, of)))


@given(st.dictionaries(st.sampled_from("abcd"), counts))
def test_a_leader_is_so_in_any_order_and_leads_the_others(
    answers: dict[str, Answers],
) -> None:
    found = leader(answers)
    assert leader(dict(reversed(answers.items()))) == found
    if found:
        assert found.own.rate > found.others.rate
        assert found.others.of == sum(one.of for one in answers.values()) - found.own.of
        more = {name: Answers(4 * one.n, 4 * one.of) for name, one in answers.items()}
        assert leader(more) is not None


def test_chance_alone_seldom_makes_a_leader() -> None:
    """Of equal tones one leads in at most 5 of 100 draws, on average; here with 4 tones."""
    draw = random.Random(0)
    led = 0
    for _ in range(400):
        answers = {
            name: Answers(sum(draw.random() < 0.1 for _ in range(300)), 300) for name in "abcd"
        }
        led += leader(answers) is not None
    assert led <= 20 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_briefs_are_written_for_the_segments_that_they_name(tmp_path: Path) -> None:
    segments = table(tmp_path, FAMILIES, "students,,,,,,,,,,,,,,,\n")
    path = tmp_path / "briefs.csv"
    path.write_text(
        "id,product,segment\na,Lamp,students; families\nb,Lamp,all\nc,Lamp,\nd,Lamp,students\n"
    )
    ids = [one.brief.id for one in load_personal(path, audiences=segments)]
    assert ids == ["a/students", "a/families", "b/families", "b/students", "c", "d/students"]
    assert [one.brief.id for one in load_personal(path)] == list("abcd")
    path.write_text("id,product,segment\na,Lamp,\nb,Lamp,studnts\n")
    with pytest.raises(InputError) as caught:
        load_personal(path, audiences=segments)
    assert str(caught.value) == (
        f"{path}:3: segment: unknown segment 'studnts'; did you mean 'students'?"
    )
    path.write_text("id,product,segment\na,Lamp,all\na/students,Lamp,\n")
    with pytest.raises(InputError, match="two briefs become 'a/students'"):
        load_personal(path, audiences=segments)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (FAMILIES.replace("1000", "many"), "past.spring.sends: should be a whole number"),
        (FAMILIES.replace("1000", ""), "past.spring.sends: is missing"),
        (FAMILIES.replace(",90,", ",1001,"), "past.spring: has 1001 clicks of 1000 sends"),
        (FAMILIES.replace(",90,", ",,"), "past.spring: has neither opens nor clicks"),
        (FAMILIES.replace("families", "all"), "name: 'all' cannot be a segment's name"),
        (FAMILIES.replace(",2,", ",0,"), "n_facts: input should be greater than or equal to 1"),
        (FAMILIES * 2, "name: 'families' stands in line 2 too"),
    ],
)
def test_a_bad_segment_is_one_line(tmp_path: Path, row: str, said: str) -> None:
    path = table(tmp_path, row)
    with pytest.raises(InputError) as caught:
        load_segments(path)
    line = 3 if row == FAMILIES * 2 else 2
    assert str(caught.value).startswith(f"{path}:{line}: {said}")
    assert len(examine_segments(path)[1]) == 1


def test_a_column_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "segments.csv"
    path.write_text("name,past.spring.click\ns,1\n")
    assert {str(problem) for problem in examine_segments(path)[1]} == {
        f"{path}:2: past.spring.sends: is missing",
        f"{path}:2: past.spring: unknown key 'click'; did you mean 'clicks'?",
    }
    path.write_text("name,past.spring\ns,1\n")
    with pytest.raises(InputError, match=r"'past\.spring' names no field of a campaign"):
        load_segments(path)
    path.write_text("name,age\ns,1\n")
    with pytest.raises(InputError, match="unknown key 'age'"):
        load_segments(path)
