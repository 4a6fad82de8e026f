"""How often copy passes all checks, by channel and language, beside a teacher's. Knows no texts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kdexport.verdict.bootstrap import Interval, ratio_of_sums

LEAST_PASSED = 16  # briefs of the teacher's: with fewer, some draws have none to divide by
ALL = "all"
KINDS = ("channel", "language")


class Asked(Protocol):
    """What a brief is told apart by."""

    @property
    def channel(self) -> str: ...  # noqa: D102
    @property
    def language(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Passed:
    """What one model's texts for a brief came to. ``best``: 1 where one of its candidates passes.

    ``share``: of the candidates that pass; ``faults``: how many have a fault, by check.
    """

    best: float
    share: float
    faults: Mapping[str, int]


@dataclass(frozen=True)
class Rate:
    """How many briefs have a text that passes, and the mean share of their candidates, 0 to 1."""

    best: float
    candidates: float


@dataclass(frozen=True)
class Group:
    """Briefs of one channel or language (``by``), or all of them.

    ``difference``: of the rates of ``best``, the model's less the teacher's; ``ratio``: one over
    the other. Intervals are of briefs that are drawn anew, the same for both models.
    """

    by: str
    name: str
    n_briefs: int
    rate: Rate
    teacher: Rate | None = None
    difference: Interval | None = None
    ratio: Interval | None = None

    @property
    def title(self) -> str:
        """As it is told of: ``all``, ``channel sms``."""
        return self.name if self.by == ALL else f"{self.by} {self.name}"


def groups(
    briefs: Sequence[Asked], ours: Sequence[Passed], theirs: Sequence[Passed] | None = None
) -> list[Group]:
    """All briefs, then those of each channel and of each language, where there are several."""
    found = [_group(ALL, ALL, range(len(briefs)), ours, theirs)]
    for by in KINDS:
        of_briefs = [getattr(brief, by) for brief in briefs]
        names = sorted(set(of_briefs))
        for name in names if len(names) > 1 else []:
            at = [number for number, one in enumerate(of_briefs) if one == name]
            found.append(_group(by, name, at, ours, theirs))
    return found


def _group(
    by: str, name: str, at: Sequence[int], ours: Sequence[Passed], theirs: Sequence[Passed] | None
) -> Group:
    own = [ours[number] for number in at]
    if theirs is None:
        return Group(by, name, len(own), _rate(own))
    beside = [theirs[number] for number in at]
    above = [float(one.best) for one in own]
    below = [float(one.best) for one in beside]
    differences = [one - other for one, other in zip(above, below, strict=True)]
    ratio = ratio_of_sums(above, below) if sum(below) >= LEAST_PASSED else None
    return Group(by, name, len(own), _rate(own), _rate(beside), ratio_of_sums(differences), ratio)


def _rate(found: Sequence[Passed]) -> Rate:
    n = len(found)
    return Rate(sum(one.best for one in found) / n, sum(one.share for one in found) / n)


def total(found: Sequence[Passed]) -> dict[str, int]:
    """How many texts have a fault of each check, the most frequent first."""
    counts: Counter[str] = Counter()
    for one in found:
        counts.update(one.faults)
    return dict(counts.most_common())
