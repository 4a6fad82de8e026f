"""What models wrote for the same requests, side by side: scores of text, and whether they differ.

Knows texts; no models. Meaning and language are judged by packages, where they are installed.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel
from kdexport.content.checks import strays, why_drop
from kdexport.content.scores import chrf, distinct, n_as_before, repeated, self_bleu
from kdexport.copywriting.checking import Checks, check_of
from kdexport.data.card import language_identifier
from kdexport.measuring.embedding import load_similarity
from kdexport.verdict.bootstrap import ratio_of_sums
from kdexport.verdict.pass_rates import Group, Passed, groups
from kdexport.verdict.report import REFERENCE_ARM, ArmResult
from kdexport.verdict.scores import CopyScores

Faults = Mapping[str, tuple[str, ...]]  # by request, as the checks tell them
Similarity = Callable[[Sequence[str], Sequence[str]], list[float]]
Language = Callable[[str], str]
LEAST_COMPARED = 8  # texts: draws of fewer are too few for 95 % to mean it
COMPARED = ("n_words", "self_bleu", "repeated", "passed", "pass_rate")  # with the teacher's


@dataclass(frozen=True)
class Written:
    """One text. ``text``: all of it. ``added``: what a model wrote on after the opening it was
    given, white space and all; ``pieces``: that, token by token. ``finished``: it ended by itself.
    """

    text: str
    added: str = ""
    pieces: tuple[str, ...] = ()
    finished: bool = True

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Written":
        """From an arm's answer."""
        return cls(answer["text"], answer["added"], tuple(answer["pieces"]), answer["finished"])


@dataclass(frozen=True)
class Judges:
    """What packages of `kdexport[scores]` judge; None where one is not installed.

    ``similarity``: the cosine of each text with its reference. ``language``: a code as ``en``.
    """

    similarity: Similarity | None = None
    language: Language | None = None


@dataclass(frozen=True)
class Briefed:
    """The brief of each request, by its name, and all checks that its copy is held to."""

    briefs: Mapping[str, Brief]
    checks: Checks

    def channel(self, name: str) -> Channel | None:
        """That of a request; None where it is no brief's."""
        return self.checks.channels[self.briefs[name].channel] if name in self.briefs else None

    def faults(self, name: str, written: Written) -> tuple[str, ...]:
        """Why a text must not be published."""
        return self.checks(self.briefs[name], written.text, finished=written.finished).hard


@dataclass(frozen=True)
class Copies:
    """What one model wrote, by the name of the request. ``briefed``: where requests are briefs."""

    texts: Mapping[str, Written]
    briefed: Briefed | None = None

    def brief(self, name: str) -> Brief | None:
        """That of a request; None where it is none."""
        return self.briefed.briefs.get(name) if self.briefed else None

    def faults(self, names: Sequence[str]) -> Faults | None:
        """What all checks find in some texts; None where not all of them are for briefs."""
        if self.briefed is None or any(name not in self.briefed.briefs for name in names):
            return None
        return {name: self.briefed.faults(name, self.texts[name]) for name in names}


def load_judges() -> Judges:
    """Those that are at hand; they take a second to open, and no network."""
    return Judges(load_similarity(), language_identifier())


def score_arms(
    arms: Sequence[ArmResult],
    written: Mapping[str, Mapping[str, Written]],
    briefed: Briefed | None = None,
) -> list[ArmResult]:
    """The arms of a bench with scores of what each wrote, beside the teacher's own copy.

    ``written``: arm -> request -> text. The teacher is the one in PyTorch where it wrote, else
    another arm of a teacher; without any there is nothing beside which.
    """
    judges = load_judges() if any(written.values()) else Judges()
    wrote = [name for name, texts in written.items() if texts]
    teachers = [name for name in (REFERENCE_ARM, *wrote) if name in wrote and "teacher" in name]
    scored = []
    for arm in arms:
        if arm.arm in wrote:
            beside = teachers[0] if teachers and teachers[0] != arm.arm else None
            references = Copies(written[beside], briefed) if beside else None
            scores = score_copies(Copies(written[arm.arm], briefed), references, judges)
            arm = arm.model_copy(update={"copies": scores})
        scored.append(arm)
    return scored


def score_copies(ours: Copies, references: Copies | None, judges: Judges) -> CopyScores:
    """Scores of what one model wrote, beside the references to the same requests.

    Without references (for the teacher's own copy) those alone that need none. ``against`` has the
    mean of ours less the references', with the interval of requests drawn anew: one that covers 0
    is a difference within noise. It is empty for fewer than `LEAST_COMPARED` requests.
    """
    names = [name for name in ours.texts if references is None or name in references.texts]
    if not names:
        raise ValueError("no request has both a text and a reference")
    faults = ours.faults(names)
    own = _own_scores(ours, names, faults)
    texts = [ours.texts[name].text for name in names]
    against, beside, their_faults = {}, {}, None
    if references is not None:
        their_faults = references.faults(names)
        theirs = _own_scores(references, names, their_faults)
        against = {
            name: ratio_of_sums([a - b for a, b in zip(own[name], theirs[name], strict=True)])
            for name in (COMPARED if len(names) >= LEAST_COMPARED else ())
            if name in own and name in theirs
        }
        beside = _beside(
            [ours.texts[name] for name in names],
            [references.texts[name] for name in names],
            judges,
        )
    failures = zip(names, _failures(ours, names), strict=True)
    reasons = {name: reason for name, reason in failures if reason}
    failed = list(reasons.values())
    return CopyScores(
        requests=names,
        by_text={**own, **beside},
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        failed={reason: failed.count(reason) for reason in sorted(set(failed))},
        reasons=reasons,
        intervals={name: ratio_of_sums(values) for name, values in {**own, **beside}.items()},
        n_as_reference=statistics.median(beside["n_as_reference"]) if beside else None,
        against=against,
        pass_rates=_pass_rates(ours.briefed, faults, their_faults),
        faults={name: [*found] for name, found in (faults or {}).items() if found},
    )


def _pass_rates(briefed: Briefed | None, ours: Faults | None, theirs: Faults | None) -> list[Group]:
    """How often texts pass all checks, by channel and language, beside the references'."""
    if briefed is None or ours is None:
        return []
    briefs = [briefed.briefs[name] for name in ours]
    return groups(briefs, _passed(ours), _passed(theirs) if theirs is not None else None)


def _passed(faults: Faults) -> list[Passed]:
    """Of one text for each brief."""
    found = [(float(not words), {*map(check_of, words)}) for words in faults.values()]
    return [Passed(rate, rate, dict.fromkeys(checks, 1)) for rate, checks in found]


def _own_scores(
    copies: Copies, names: Sequence[str], faults: Faults | None
) -> dict[str, list[float]]:
    """A value for each text that needs no reference."""
    texts = [copies.texts[name].text for name in names]
    own = {
        "n_words": [float(len(text.split())) for text in texts],
        "self_bleu": self_bleu(texts),
        "repeated": [repeated(text) for text in texts],
        "passed": [float(reason is None) for reason in _failures(copies, names)],
    }
    if faults is not None:
        own["pass_rate"] = [float(not faults[name]) for name in names]
    return own


def _failures(copies: Copies, names: Sequence[str]) -> list[str | None]:
    """Why copy would be dropped, as the teacher's is when data is made; None for what passes."""
    seen: defaultdict[tuple[str, str] | None, set[str]] = defaultdict(set)
    reasons = []
    for name in names:
        written, brief = copies.texts[name], copies.brief(name)
        place = (brief.channel, brief.language) if brief else None
        reason = why_drop(written.text, finished=written.finished, seen=seen[place])
        added = written.added or written.text
        if reason is None and brief and strays(added, brief.facts, brief.language):
            reason = "stray"
        reasons.append(reason)
    return reasons


def _beside(
    ours: Sequence[Written], references: Sequence[Written], judges: Judges
) -> dict[str, list[float]]:
    """A value for each text and its reference."""
    pairs = list(zip(ours, references, strict=True))
    texts = [one.text for one in ours], [other.text for other in references]
    found = {
        "chrf": [chrf(one, other) for one, other in zip(*texts, strict=True)],
        "identical": [float(one == other) for one, other in zip(*texts, strict=True)],
        "n_as_reference": [
            float(n_as_before(other.pieces, one.added or one.text)) for one, other in pairs
        ],
    }
    if judges.similarity is not None:
        found["similarity"] = judges.similarity(*texts)
    if judges.language is not None:
        judge = judges.language
        found["same_language"] = [
            float(judge(one) == judge(other)) for one, other in zip(*texts, strict=True)
        ]
    return found
