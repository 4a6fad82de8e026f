"""Audience segments: what is known of them, and what they answered to, chooses a brief's words.

Arithmetic on counts alone: the same table makes the same choice, and every choice says why.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdexport.content.briefs import EVERY, Brief, Text, load_briefs, names_of
from kdexport.content.channels import Channels
from kdexport.content.matching import find_phrase, tokens_of
from kdexport.content.records import Kind, Problem, examine_records, listed, load_records
from kdexport.data.tables import Row
from kdexport.errors import InputError

LISTS = ("interests", "words", "lead_with")
PAST = "past."
OPENED = ("email_subject", "email_preheader", "push_note")
"""Channels whose copy is there to be opened; all other copy is there to be clicked."""
SURE = 0.95  # that a difference is none of chance
Measure = Literal["opens", "clicks"]
DONE: Mapping[Measure, str] = {"opens": "opened", "clicks": "clicked"}


class Past(BaseModel):
    """A past campaign, as a segment answered it. ``led_with``: words of the fact it began with."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    tone: str = ""
    led_with: str = ""
    sends: int = Field(ge=1)
    opens: int | None = Field(default=None, ge=0)
    clicks: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _counts_fit(self) -> "Past":
        if self.opens is None and self.clicks is None:
            raise ValueError("has neither opens nor clicks")
        for name, count in (("opens", self.opens), ("clicks", self.clicks)):
            if count is not None and count > self.sends:
                raise ValueError(f"has {count} {name} of {self.sends} sends")
        return self


class Segment(BaseModel):
    """A part of the audience. Only a name is needed.

    ``audience``: how it is called in a prompt, its name where there is none; ``age_band`` and
    ``interests`` stand beside it. ``tone``: what it likes; ``words``: that worked, asked for where
    they fit; ``lead_with``: words of facts that are to come first; ``n_facts``: how many facts a
    copy for it has at most. ``past``: its campaigns by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    name: str = Field(min_length=1)
    audience: str = ""
    age_band: str = ""
    interests: tuple[Text, ...] = ()
    tone: str = ""
    words: tuple[Text, ...] = ()
    lead_with: tuple[Text, ...] = ()
    n_facts: Annotated[int, Field(ge=1)] | None = None
    past: dict[str, Past] = {}

    @field_validator("name")
    @classmethod
    def _can_be_named(cls, value: str) -> str:
        if value == EVERY or ";" in value:
            raise ValueError(f"{value!r} cannot be a segment's name: in briefs it says several")
        return value

    @property
    def in_words(self) -> str:
        """As a prompt has it: ``young parents (25-34; sleep, weekends)``."""
        known = "; ".join(filter(None, (self.age_band, ", ".join(self.interests))))
        return f"{self.audience or self.name}{f' ({known})' if known else ''}"


@dataclass(frozen=True)
class Personal:
    """A brief for the one segment that it names, and why its tone and first fact are what they are.

    A brief that names no segment is as it was.
    """

    brief: Brief
    because: tuple[str, ...] = ()


def load_segments(path: Path) -> dict[str, Segment]:
    """The segments of a table, by name.

    A campaign is a group of columns, ``past.CAMPAIGN.sends`` and so on, or a key of ``past``.
    Raises InputError that names file, line and field.
    """
    return {one.name: one for one in load_records(path, SEGMENTS)}


def examine_segments(path: Path) -> tuple[dict[str, Segment], list[Problem]]:
    """The segments of a table, and all that is wrong with it."""
    segments, problems = examine_records(path, SEGMENTS)
    return {one.name: one for one in segments}, problems


def _segment(row: Row) -> Segment:
    cells: dict[str, Any] = {}
    for name, cell in row.cells.items():
        if name.startswith(PAST):
            campaign, dot, field = name.removeprefix(PAST).rpartition(".")
            if not dot or not campaign:
                raise InputError(
                    f"column {name!r} names no field of a campaign",
                    where=row.where,
                    remedy=f"use {PAST}CAMPAIGN.{', .'.join(Past.model_fields)}",
                )
            cells.setdefault("past", {}).setdefault(campaign, {})[field] = cell
        else:
            is_list = name in LISTS and isinstance(cell, str)
            cells[name] = listed(cell, row.where, name) if is_list else cell
    return Segment.model_validate(cells)


SEGMENTS = Kind(Segment, "name", _segment)


def load_personal(
    path: Path, channels: Channels | None = None, audiences: Path | None = None
) -> list[Personal]:
    """The briefs of a file; with a table of segments, those that name some once for each."""
    if audiences is None:
        return [Personal(brief) for brief in load_briefs(path, channels)]
    segments = load_segments(audiences)
    return personalised(load_briefs(path, channels, segments), segments)


def personalised(briefs: Sequence[Brief], segments: Mapping[str, Segment]) -> list[Personal]:
    """Each brief once for each segment that it names, in this order; "all" names every one.

    The briefs were loaded with these segments. Raises InputError where two get the same id.
    """
    found: list[Personal] = []
    for brief in briefs:
        named = names_of(brief.segment)
        names = list(segments) if EVERY in named else list(dict.fromkeys(named))
        found += [_for(brief, segments[name]) for name in names] or [Personal(brief)]
    ids: set[str] = set()
    for one in found:
        if one.brief.id in ids:
            raise InputError(f"two briefs become {one.brief.id!r}", remedy="give one another id")
        ids.add(one.brief.id)
    return found


def _for(brief: Brief, segment: Segment) -> Personal:
    """A brief as it is for a segment."""
    measure = _measure(brief.channel, segment)
    tone, why_tone = _tone(brief, segment, measure)
    facts, why_fact = _facts(brief, segment, measure)
    changed = {
        "id": f"{brief.id}/{segment.name}",
        "segment": segment.name,
        "audience": segment.in_words,
        "tone": tone,
        "facts": facts,
        "keywords": tuple(dict.fromkeys((*brief.keywords, *segment.words))),
    }
    return Personal(brief.model_copy(update=changed), tuple(filter(None, (why_tone, why_fact))))


def _measure(channel: str, segment: Segment) -> Measure:
    """What counts as an answer; the other one where no campaign has it."""
    wanted: Measure = "opens" if channel in OPENED else "clicks"
    other: Measure = "clicks" if wanted == "opens" else "opens"
    counted = any(getattr(one, wanted) is not None for one in segment.past.values())
    return wanted if counted else other


def _tone(brief: Brief, segment: Segment, measure: Measure) -> tuple[str, str]:
    """The tone that was answered more than others, else the segment's own, else the brief's."""
    answers = _answers(segment, measure, "tone")
    if best := leader(answers):
        return best.name, f"tone {best.name}: {best.told(measure)} in other tones"
    if segment.tone:
        return segment.tone, f"tone {segment.tone}: the segment's own{_unsure(answers, measure)}"
    return brief.tone, f"tone {brief.tone}: the brief's{_unsure(answers, measure)}"


def _unsure(answers: Mapping[str, "Answers"], measure: Measure) -> str:
    """Why the past does not choose, where there is one."""
    if len(answers) < 2:
        return ""
    return f"; no past tone was {DONE[measure]} more than the others beyond chance"


def _facts(brief: Brief, segment: Segment, measure: Measure) -> tuple[tuple[str, ...], str]:
    """The facts, those first that have the words to lead with; why the first one is that."""
    reasons: dict[str, str] = {}
    if best := leader(_answers(segment, measure, "led_with")):
        reasons[best.name] = f"{best.name!r} {best.told(measure)} with others first"
    for phrase in segment.lead_with:
        reasons.setdefault(phrase, f"the segment's own {phrase!r}")
    for phrase in segment.interests:
        reasons.setdefault(phrase, f"its interest {phrase!r}")
    first = [_first(fact, list(reasons), brief.language) for fact in brief.facts]
    order = sorted(range(len(first)), key=lambda at: (first[at], at))
    facts = tuple(brief.facts[at] for at in order)[: segment.n_facts]
    if not facts or first[order[0]] == len(reasons):
        return facts, ""
    return facts, f"first fact: {list(reasons.values())[first[order[0]]]}"


def _first(fact: str, phrases: Sequence[str], language: str) -> int:
    """The place of the first phrase that a fact has; the number of phrases where it has none."""
    tokens = tokens_of(fact, language)
    found = (at for at, one in enumerate(phrases) if any(find_phrase(one, tokens, language)))
    return next(found, len(phrases))


@dataclass(frozen=True)
class Answers:
    """How many of those whom something was sent answered it."""

    n: int
    of: int

    @property
    def rate(self) -> float:
        """The share."""
        return self.n / self.of

    def __str__(self) -> str:
        return f"{self.rate:.1%} of {self.of:,}"


@dataclass(frozen=True)
class Leader:
    """What was answered more than the others, beyond chance."""

    name: str
    own: Answers
    others: Answers

    def told(self, measure: Measure) -> str:
        """Both shares, as the first half of a sentence that ends with what the others are."""
        return f"{DONE[measure]} by {self.own}, against {self.others}"


def _answers(
    segment: Segment, measure: Measure, by: Literal["tone", "led_with"]
) -> dict[str, Answers]:
    """Past answers of a segment, added up by tone or by first fact."""
    found: dict[str, Answers] = {}
    for one in segment.past.values():
        name, n = getattr(one, by), getattr(one, measure)
        if name and n is not None:
            before = found.get(name, Answers(0, 0))
            found[name] = Answers(before.n + n, before.of + one.sends)
    return found


def leader(answers: Mapping[str, Answers]) -> Leader | None:
    """The one whose lowest likely share is highest, if it is answered more than all others pooled.

    The difference has to lie above 0, at `SURE` shared out among the candidates (Bonferroni).
    """
    if len(answers) < 2:
        return None
    z = NormalDist().inv_cdf(1 - (1 - SURE) / 2 / len(answers))
    name = min(answers, key=lambda one: (-_wilson(answers[one], z)[0], one))
    own, rest = answers[name], [answers[other] for other in answers if other != name]
    others = Answers(sum(one.n for one in rest), sum(one.of for one in rest))
    return Leader(name, own, others) if least_difference(own, others, z) > 0 else None


def least_difference(one: Answers, other: Answers, z: float) -> float:
    """The lower end of the interval of a difference of two shares (Newcombe 1998, method 10)."""
    below, above = one.rate - _wilson(one, z)[0], _wilson(other, z)[1] - other.rate
    return one.rate - other.rate - math.hypot(below, above)


def _wilson(answers: Answers, z: float) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), ``z`` deviations wide on either side."""
    n, share = answers.of, answers.rate
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
