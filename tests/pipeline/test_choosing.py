"""Which drafts become pairs: a few that are written by hand, and no teacher."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.copywriting.checking import Checks
from kdexport.pipeline import synthesize
from kdexport.pipeline.choosing import SCORERS, Draft, Job, Review, Written, choose_drafts
from kdexport.pipeline.synthesize import Sampling

CHANNELS = load_channels()
KETTLE = Brief(id="b0", product="Kettle", channel="ad_headline", facts=("boils in 60 seconds",))
OPENING = "Made for you: Kettle:"
BOILS = " boils in 60 seconds"
LONG = f"{BOILS}, and it is the one that everyone who has a kitchen wants to have"
OF_ITS_OWN = " boils in 10 seconds"


def job_of(brief: Brief, number: int = 0, brand: Brand | None = None, **sampling: Any) -> Job:
    channel = CHANNELS[brief.channel]
    n = sampling.get("best_of", 1)
    return synthesize._job(
        brief, number // n, number % n, Sampling(**sampling), "f", channel, brand
    )


def chosen(
    *texts: str | tuple[str, float],
    brief: Brief = KETTLE,
    review: str | None = "drop",
    before: Sequence[Brief] = (),
    **sampling: Any,
) -> Written:
    """What is taken of texts, each likelier than the one before it unless it is said.

    ``before``: briefs for each of which the first text was written, too.
    """
    said = [(t, float(n)) if isinstance(t, str) else t for n, t in enumerate(texts)]
    jobs = [job_of(one) for one in before]
    drafts = {job.id: Draft(job.id, said[0][0], True, job.key, logprob=0.0) for job in jobs}
    for number, (text, logprob) in enumerate(said):
        jobs.append(job_of(brief, number, **sampling))
        draft = Draft(jobs[-1].id, text.removesuffix("…"), not text.endswith("…"), jobs[-1].key)
        drafts[draft.id] = replace(draft, logprob=logprob)
    how = None if review is None else Review(Checks(CHANNELS), keeps=review == "keep")
    return choose_drafts(jobs, drafts, review=how)


def taken(found: Written) -> list[str]:
    return [pair.completion for pair in found.pairs]


def test_of_those_that_pass_the_likeliest_is_taken() -> None:
    found = chosen(BOILS, f"{BOILS}!", LONG, OF_ITS_OWN, best_of=4)
    assert taken(found) == [f"{BOILS}!"]
    assert found.candidates == {"written": 4, "passing": 2, "not the first": 1}
    assert found.faults == {"length": 1, "facts": 1}
    assert (found.dropped, found.kept) == ({}, {})
    assert taken(chosen(BOILS, LONG, OF_ITS_OWN, best_of=3, review=None)) == [OF_ITS_OWN]


def test_where_none_passes_the_nearest_is_dropped_or_kept_and_counted() -> None:
    texts = (f"{LONG} in 10 seconds", LONG, OF_ITS_OWN + " and the rest of a sentence…")
    found = chosen(*texts, best_of=3)
    assert (found.pairs, found.dropped, found.kept) == ([], {"length": ["b0"]}, {})
    found = chosen(*texts, best_of=3, review="keep")
    assert (taken(found), found.dropped, found.kept) == ([LONG], {}, {"length": ["b0"]})


@pytest.mark.parametrize("review", ["drop", "keep"])
@pytest.mark.parametrize(
    ("text", "wish", "reason"),
    [
        ("", {}, "empty"),
        (f"{BOILS} in the…", {}, "truncated"),
        (" a lovely thing to have", {}, "stray"),
        (" boils and boils and boils and boils and boils and boils and boils", {}, "repetitive"),
        (BOILS, {"banned": ("seconds",)}, "banned"),
        (BOILS, {"must_include": ("copper",)}, "required"),
    ],
)
def test_what_is_of_no_use_is_dropped_whatever_the_review(
    text: str, wish: dict[str, Any], reason: str, review: str
) -> None:
    found = chosen(text, brief=KETTLE.model_copy(update=wish), review=review)
    assert (found.pairs, found.dropped) == ([], {reason: ["b0"]})
    assert found.faults == {reason: 1}


def test_a_usable_text_that_fails_comes_before_a_useless_one() -> None:
    """A text of one fault that the data may not have, beside one of two that it may."""
    brief = KETTLE.model_copy(update={"banned": ("steam",)})
    texts = (f"{BOILS}, steam", f"{LONG} in 10 seconds")
    found = chosen(*texts, brief=brief, best_of=2, review="keep")
    assert taken(found) == [texts[1]]


def test_variants_of_a_brief_are_of_one_pool_and_not_nearly_alike() -> None:
    other = " in 60 seconds it boils your tea"
    found = chosen(LONG, OF_ITS_OWN, BOILS, other, variants=2, best_of=2)
    assert [(pair.id, pair.completion) for pair in found.pairs] == [
        ("b0-0", other),
        ("b0-1", BOILS),
    ]
    assert found.candidates["not the first"] == 1  # b0-1#0 is the first of a copy
    found = chosen(BOILS, f"{BOILS}, quite", variants=2)
    assert (taken(found), found.dropped) == ([f"{BOILS}, quite"], {"alike": ["b0-1"]})
    assert len(chosen(BOILS, f"{BOILS}, quite", variants=2, review="keep").pairs) == 2
    found = chosen(BOILS, f"{BOILS}!", variants=2, review="keep")
    assert (len(found.pairs), found.dropped) == (1, {"duplicate": ["b0-1"]})
    found = chosen(BOILS, BOILS, variants=2)
    assert (len(found.pairs), found.dropped) == (1, {"alike": ["b0-1"]})
    found = chosen(BOILS, "", variants=2)
    assert (len(found.pairs), found.dropped) == (1, {"empty": ["b0-1"]})


def test_what_another_brief_has_is_not_taken_again() -> None:
    before = [KETTLE.model_copy(update={"id": "a0"})]
    found = chosen(BOILS, (f"{BOILS} flat", -9.0), before=before, best_of=2)
    assert taken(found) == [BOILS, f"{BOILS} flat"]
    assert found.faults == {"duplicate": 1}
    assert chosen(BOILS, before=before).dropped == {"duplicate": ["b0"]}


@pytest.mark.parametrize("review", [None, "drop"])
@pytest.mark.parametrize("other", [{"channel": "meta_description"}, {"language": "es"}])
def test_the_same_words_elsewhere_are_no_duplicate(
    other: dict[str, str], review: str | None
) -> None:
    """Those of a greedy teacher, for one."""
    brief = KETTLE.model_copy(update={"channel": "email_preheader"})
    before = [brief.model_copy(update={"id": "a0", **other})]
    found = chosen(BOILS, brief=brief, before=before, review=review)
    assert (len(found.pairs), found.dropped) == (2, {})
    before.append(brief.model_copy(update={"id": "a1"}))
    found = chosen(BOILS, brief=brief, before=before, review=review)
    assert (len(found.pairs), found.dropped) == (2, {"duplicate": ["b0"]})


def test_test_texts_are_not_picked_by_what_is_measured_on_them() -> None:
    for split, kept in (("train", BOILS), ("validation", BOILS), ("test", LONG)):
        brief = KETTLE.model_copy(update={"split": split})
        assert taken(chosen(BOILS, LONG, brief=brief, best_of=2)) == [kept]


def test_language_is_checked_where_it_can_be_told() -> None:
    job = job_of(KETTLE)
    drafts = {job.id: Draft(job.id, BOILS, True, job.key)}
    review = Review(Checks(CHANNELS, identify=lambda text: "de"))
    assert choose_drafts([job], drafts, review=review).dropped == {"language": ["b0"]}


def test_parts_keep_their_labels() -> None:
    """Which elsewhere are what a model wraps around its copy."""
    ad = "Headline: Kettle\nHeadline: Boils\nHeadline: Now\nDescription: Tea.\nDescription: Soon."
    brief = Brief(id="b0", product="Kettle", channel="google_rsa")
    for review in (None, "drop"):
        found = chosen(f"\n{ad}\n", brief=brief, review=review)
        assert taken(found) == [ad]
    subject = Brief(id="b0", product="Kettle", channel="email_preheader")
    assert taken(chosen("Subject: the kettle is here", brief=subject)) == ["the kettle is here"]


def test_the_best_by_likelihood_may_be_dropped_and_nothing_said_is_the_worst() -> None:
    job = job_of(Brief(id="b0", product="Kettle", channel="ad_headline"), best_of=2)
    empty, short = (Draft("b0#0", text, True, "", logprob=-0.5) for text in ("", " x"))
    assert SCORERS["likelihood"](job, empty) < SCORERS["likelihood"](job, short) == (-0.5,)
    assert SCORERS["checks"](job, empty)[0] == 0
    unfinished = replace(short, finished=False)
    assert SCORERS["checks"](job, unfinished)[0] == 0.75
    found = choose_drafts([job], {job.id: unfinished})
    assert (found.pairs, found.dropped) == ([], {"truncated": ["b0"]})


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        (" boils in no time. Ad", None),
        (" boils in no time.", "disclosure"),
        (" cheaper than any. Ad", "banned"),
        (" the #1, you know. Ad", "claim"),
    ],
)
def test_texts_that_break_a_brand_s_rules_are_dropped(added: str, reason: str | None) -> None:
    brand = Brand(name="Tern", banned=("cheap",), disclosures=("Ad",), claims=("#1",))
    brief = Brief(id="b0", product="Kettle", channel="ad_headline")
    job, plain = job_of(brief, brand=brand), job_of(brief)
    assert "Do not use: cheap." in job.messages[1]["content"]
    assert job.key != plain.key
    drafts = {"b0": Draft("b0", added, True, "")}
    found = choose_drafts([job], drafts, brand=brand)
    assert found.dropped == ({reason: ["b0"]} if reason else {})
    assert len(found.pairs) == (reason is None)
    assert choose_drafts([plain], drafts).dropped == {}


@pytest.mark.parametrize(
    ("language", "label", "text"),
    [("zh", "标题", "一升大壶 两分钟烧开"), ("de", "Betreff", "Ein Liter, und schon kocht er")],
)
def test_copy_in_other_languages_is_cleaned_and_kept(language: str, label: str, text: str) -> None:
    facts = ("holds one litre", "boils in two minutes")
    brief = Brief(
        id="b0", product="Kettle", facts=facts, channel="email_preheader", language=language
    )
    for review in (None, "drop"):
        found = chosen(f"{label}: {text}", brief=brief, review=review)
        assert (taken(found), found.dropped) == ([text], {})
