"""`kdexport content eval`: how often copy passes its checks, by channel and language.

For each brief the bundle and its teacher write the same number of candidates; the best one of each
counts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdexport.content.briefs import Brief
from kdexport.copywriting.checking import check_of
from kdexport.copywriting.copywriter import Asked, Beside, Copywriter, shards
from kdexport.copywriting.ranking import FAIL, Scored, choose
from kdexport.system.console import tracked
from kdexport.verdict.pass_rates import Group, Passed, groups, total


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
    found = []
    for one in models:
        texts = written(Copywriter(one, asked, beside, n_threads=n_threads), briefs)
        found.append([passed(candidates, asked.candidates) for candidates in texts])
    return ContentEvaluation(
        briefs=str(briefs_path),
        asked=asked,
        models=[str(model) for model in models],
        groups=groups(briefs, found[0], found[1] if teacher else None),
        faults=[total(of) for of in found],
    )


def written(writer: Copywriter, briefs: Sequence[Brief]) -> list[list[Scored]]:
    """A model's candidates for each brief, checked, by number; none where it cannot be written."""
    found: list[list[Scored]] = [[] for _ in briefs]
    with tracked(f"{writer.bundle.manifest.name} writes", "briefs", len(briefs)) as progress:
        n_done = 0
        for shard in shards([writer.work(*one) for one in enumerate(briefs)]):
            for work, answer in writer.answers(shard):
                n_done += 1
                progress(n_done)
                if answer.error is None:
                    found[work.number] = writer.score(work, answer.candidates)
    return found


def passed(scored: Sequence[Scored], n: int) -> Passed:
    """What the first ``n`` candidates for a brief come to; of none, that none passes."""
    first = scored[:n]
    if not first:
        return Passed(0.0, 0.0, {"error": n})
    faults = Counter(check for one in first for check in {*map(check_of, one.checked.hard)})
    share = sum(not one.checked.hard for one in first) / len(first)
    return Passed(float(choose(first, 1)[0].status != FAIL), share, dict(faults))
