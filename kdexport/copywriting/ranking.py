"""Which of several texts are taken: those that pass, the best first, no two nearly alike.

Pure functions of texts and scores; what is wrong with a text, others have found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdexport.copywriting.checking import Checked
from kdexport.data.contamination import N_WORDS, WORD, n_grams, normalised

NEARLY = 0.8  # likeness from which two texts are one
PASS, WARN, FAIL, ERROR = "pass", "warn", "fail", "error"
STATUSES = (PASS, WARN, FAIL, ERROR)
NO_OTHER = "no other text was written"


@dataclass(frozen=True)
class Scored:
    """A candidate that was checked. ``logprob``, ``judge_logprob``: means over its tokens, nats.

    The judge's is the fluency that counts where there is a judge. ``click_score``: the probability
    that it is clicked, by a ranker.
    """

    number: int
    text: str
    checked: Checked
    logprob: float | None = None
    judge_logprob: float | None = None
    click_score: float | None = None

    @property
    def fluency(self) -> float:
        """What texts that violate as little are ranked by."""
        known = self.logprob if self.judge_logprob is None else self.judge_logprob
        return float("-inf") if known is None else known


@dataclass(frozen=True)
class Place:
    """One of the texts asked for: its status, and the text that has it or is nearest to it."""

    status: str
    scored: Scored | None = None

    @property
    def violations(self) -> tuple[str, ...]:
        """Hard ones first."""
        if self.scored is None:
            return (NO_OTHER,)
        return self.scored.checked.hard + self.scored.checked.soft


def choose(scored: Sequence[Scored], keep: int) -> list[Place]:
    """``keep`` places. Those that pass come first, by soft violations, then by click score where
    there is one, then by fluency.

    One that is nearly alike to a better one is passed over. Where too few pass, the places left
    fail, each with the nearest text that stands in no other place: the one with the fewest hard
    violations, then the least too long. Ties go to the lower number.
    """
    taken: list[Scored] = []
    others: list[Scored] = []
    for one in sorted(scored, key=_order):
        twin = next((own for own in taken if likeness(one.text, own.text) >= NEARLY), None)
        if one.checked.hard:
            others.append(one)
        elif twin is not None:
            others.append(_failing(one, f"alike: nearly candidate {twin.number}"))
        elif len(taken) < keep:
            taken.append(one)
    places = [Place(WARN if one.checked.soft else PASS, one) for one in taken]
    shown = {one.text for one in taken}
    for one in sorted(others, key=_order):
        if len(places) < keep and one.text not in shown:
            shown.add(one.text)
            places.append(Place(FAIL, one))
    return places + [Place(FAIL)] * (keep - len(places))


def _order(one: Scored) -> tuple[float, ...]:
    checked = one.checked
    faults = len(checked.hard), checked.over, len(checked.soft)
    return *faults, -(one.click_score or 0.0), -one.fluency, one.number


def _failing(one: Scored, why: str) -> Scored:
    return replace(one, checked=replace(one.checked, hard=(*one.checked.hard, why)))


def likeness(one: str, other: str) -> float:
    """The Jaccard index of two texts' rows of three words; of their words where one has fewer.

    1 for texts that are equal but for case and white space; as `data.contamination` has it.
    """
    ours, theirs = normalised(one), normalised(other)
    if ours == theirs:
        return 1.0
    words = [WORD.findall(text) for text in (ours, theirs)]
    if min(map(len, words)) < N_WORDS:
        sets = [set(found) for found in words]
    else:
        sets = [n_grams(ours), n_grams(theirs)]
    union = sets[0] | sets[1]
    return len(sets[0] & sets[1]) / len(union) if union else 0.0
