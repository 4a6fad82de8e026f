"""`kdexport content eval`: how often copy passes its checks, by channel and language.

For each brief the bundle and its teacher write the same number of candidates; the best one of each
counts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdexport.content.briefs import Brief
from kdexport.copywriting.copywriter import Asked, Beside, Copywriter, shards
from kdexport.copywriting.ranking import PASS, WARN, choose
from kdexport.system.console import tracked
from kdexport.verdict.bootstrap import Interval, ratio_of_sums

LEAST_PASSED = 16  # briefs of the teacher's: with fewer, some draws have none to divide by
ALL = "all"


@dataclass(frozen=True)
class Passed:
    """What one model's texts for a brief came to. ``best``: of its candidates one passes.

    ``share``: of the candidates that pass; ``faults``: how many have a fault, by check.
    """

    best: bool
    share: float
    faults: dict[str, int]


@dataclass(frozen=True)
class Rate:
    """How many briefs have a text that passes, and the mean share of their candidates, 0 to 1."""

    best: float
    candidates: float


@dataclass(frozen=True)
class Group:
    """Briefs of one channel or language (``by``), or all of them.

    ``difference``: of the rates of ``best``, the bundle's less the teacher's; ``ratio``: one over
    the other. Intervals are of briefs that are drawn anew, the same for both models.
    """

    by: str
    name: str
    n_briefs: int
    bundle: Rate
    teacher: Rate | None = None
    difference: Interval | None = None
    ratio: Interval | None = None


@dataclass(frozen=True)
class ContentEvaluation:
    """What was found. ``models``: the bundle and its teacher; ``faults``: of all texts of each.

    ``asked``: how texts were written.
    """

    briefs: str
    asked: Asked
    models: list[str]
    groups: list[Group]
    faults: list[dict[str, int]]


def evaluate_content(
    bundle: Path,
    briefs_path: Path,
    asked: Asked,
    beside: Beside,
    *,
    teacher: Path | None = None,
    n_briefs: int | None = None,
    n_threads: int | None = None,
) -> ContentEvaluation:
    """Write for the briefs of a file with each model, one after the other, and count."""
    briefs = [one.brief for one in beside.briefs(briefs_path)]
    if n_briefs is not None:
        n_briefs = min(n_briefs, len(briefs))
        briefs = [briefs[number * len(briefs) // n_briefs] for number in range(n_briefs)]
    models = [bundle, *([teacher] if teacher else [])]
    found = [passed(Copywriter(one, asked, beside, n_threads=n_threads), briefs) for one in models]
    return ContentEvaluation(
        briefs=str(briefs_path),
        asked=asked,
        models=[str(model) for model in models],
        groups=groups(briefs, found[0], found[1] if teacher else None),
        faults=[total(of) for of in found],
    )


def passed(writer: Copywriter, briefs: Sequence[Brief]) -> list[Passed]:
    """What a model's texts come to, brief by brief. A brief that cannot be written passes not."""
    found = [Passed(False, 0.0, {"error": writer.asked.candidates}) for _ in briefs]
    with tracked(f"{writer.bundle.manifest.name} writes", "briefs", len(briefs)) as progress:
        n_done = 0
        for shard in shards([writer.work(*one) for one in enumerate(briefs)]):
            for work, answer in writer.answers(shard):
                n_done += 1
                progress(n_done)
                if answer.error is None:
                    scored = writer.score(work, answer.candidates)
                    faults = Counter(
                        check
                        for one in scored
                        for check in {words.partition(":")[0] for words in one.checked.hard}
                    )
                    n_passed = sum(not one.checked.hard for one in scored)
                    found[work.number] = Passed(
                        choose(scored, 1)[0].status in (PASS, WARN),
                        n_passed / len(scored),
                        dict(faults),
                    )
    return found


def groups(
    briefs: Sequence[Brief], ours: Sequence[Passed], theirs: Sequence[Passed] | None
) -> list[Group]:
    """All briefs, then those of each channel and of each language, where there are several."""
    found = [_group(ALL, ALL, range(len(briefs)), ours, theirs)]
    for by in ("channel", "language"):
        names = sorted({str(getattr(brief, by)) for brief in briefs})
        for name in names if len(names) > 1 else []:
            at = [number for number, brief in enumerate(briefs) if getattr(brief, by) == name]
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
