"""Does a student pass its checks more often when its teacher's texts were reviewed?

    .venv/bin/python bench/passing.py --out bench/results/passing.json

One recipe twice, with `data.generate.review` and without: the same drafts of the teacher, the same
minutes of CPU for training. Teacher and students then write as many texts for the test briefs. A
second call goes on where the first was stopped. bench/README.md says how to read it.
"""

import argparse
import importlib.metadata
import json
import platform
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.quality.arms import OURS, Arm, Budget, answer_of, command_of, print_of  # noqa: E402
from bench.quality.prepare import prepare, run_in  # noqa: E402
from bench.record import record, save  # noqa: E402
from kdexport.content.briefs import Brief  # noqa: E402
from kdexport.copywriting.copywriter import Asked, Beside, Copywriter  # noqa: E402
from kdexport.copywriting.passing import passed, written  # noqa: E402
from kdexport.data.card import read_card  # noqa: E402
from kdexport.errors import KdexportError  # noqa: E402
from kdexport.export.bundles import export_bundle  # noqa: E402
from kdexport.export.quantize import Wishes, quantize_bundle  # noqa: E402
from kdexport.pipeline.preflight import load_asked_briefs  # noqa: E402
from kdexport.recipe import Recipe, load_recipe  # noqa: E402
from kdexport.system.console import say  # noqa: E402
from kdexport.system.machine import cache_folder, physical_cores  # noqa: E402
from kdexport.train.model import staged_folder  # noqa: E402
from kdexport.verdict.bootstrap import Interval  # noqa: E402
from kdexport.verdict.pass_rates import ALL, Group, Passed, groups, total  # noqa: E402

QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
SAMPLED = ("data.generate.temperature=0.7", "data.generate.best_of=4")  # texts to choose from
TEACHER, RAW, FILTERED = "teacher", "raw", "filtered"
REVIEW = {RAW: "data.generate.review=null", FILTERED: "data.generate.review=drop"}
PAIRS = {
    f"{name} beside {other}": (name, other)
    for name, other in ((RAW, TEACHER), (FILTERED, TEACHER), (FILTERED, RAW))
}
LEAST_OF_TEACHERS = 0.95
LIBRARIES = ("torch", "transformers", "numpy", "onnxruntime")
Passes = Mapping[int, Sequence[Passed]]
"""Candidates for each brief -> what they came to, brief by brief."""


@dataclass(frozen=True)
class Task:
    """What an arm's students learn from. ``card``: of the data."""

    arm: Arm
    recipe: Recipe
    folder: Path
    card: Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """Both arms' tasks, the teacher's bundle, and the briefs that are written for."""

    tasks: Mapping[str, Task]
    teacher: Path
    briefs: Sequence[Brief]


def prepare_both(
    recipe: Path, overrides: Sequence[str], raw: Sequence[str], work: Path
) -> Prepared:
    """The teacher writes once; its drafts are then taken without a review, and with one.

    ``raw``: what else differs where they are taken without.
    """
    tasks = {}
    for name, review in REVIEW.items():
        changes = [*SAMPLED, *overrides, review, *(raw if name == RAW else ())]
        wish = load_recipe(recipe, changes)
        folder = prepare(work, wish)
        run = run_in(work, wish)
        tasks[name] = Task(Arm(OURS, recipe, changes), wish, folder, read_card(run.folder))
    briefs = [brief for brief in load_asked_briefs(run) if brief.split == "test"]
    return Prepared(tasks, run.teacher_bundle, briefs)


def trained(name: str, task: Task, students: Path, budget: Budget, seed: int) -> Path:
    """The folder of a trained student: ``bundle``, and ``did.json`` with what its training did."""
    scheme = task.recipe.export.scheme
    place = students / f"{print_of(task.arm, task.folder, budget, seed)[:24]}-{scheme}"
    if place.exists():
        return place
    students.mkdir(parents=True, exist_ok=True)
    under_way = place.with_suffix(".under-way")
    shutil.rmtree(under_way, ignore_errors=True)
    under_way.mkdir()
    did = answer_of(command_of(task.arm, task.folder, under_way, budget, seed), budget.n_threads)
    exact = export_bundle(under_way / "student", under_way / "fp32", name=f"{name}-{seed}")
    with staged_folder(place) as staging:
        if scheme == "fp32":
            shutil.copytree(exact.path, staging / "bundle")
        else:
            wishes = Wishes(calibrate=task.folder / "pairs.jsonl")
            quantize_bundle(exact, scheme, staging / "bundle", wishes)
        (staging / "did.json").write_text(json.dumps(did), "utf-8")
    shutil.rmtree(under_way)
    return place


def passes_of(
    bundle: Path, briefs: Sequence[Brief], numbers: Sequence[int], recipe: Recipe, n_threads: int
) -> Passes:
    """What a bundle's texts come to: of each number of candidates the first of the most."""
    beside = Beside(channels=recipe.data.channels, brand=recipe.data.brand)
    writer = Copywriter(bundle, Asked(candidates=max(numbers)), beside, n_threads=n_threads)
    texts = written(writer, briefs)
    return {n: [passed(scored, n) for scored in texts] for n in numbers}


def mean_of_seeds(found: Sequence[Sequence[Passed]]) -> list[Passed]:
    """Each brief's mean over students."""
    n = len(found)
    return [
        Passed(sum(one.best for one in of) / n, sum(one.share for one in of) / n, total(of))
        for of in zip(*found, strict=True)
    ]


def compare(
    briefs: Sequence[Brief], found: Mapping[str, Mapping[int, Passes]], numbers: Sequence[int]
) -> dict[str, dict[str, list[Group]]]:
    """Candidates -> a model beside another -> groups of briefs."""
    compared = {}
    for n in numbers:
        of = {
            name: mean_of_seeds([one[n] for one in seeds.values()]) for name, seeds in found.items()
        }
        compared[str(n)] = {
            pair: groups(briefs, of[name], of[other]) for pair, (name, other) in PAIRS.items()
        }
    return compared


def as_json(
    given: argparse.Namespace,
    prepared: Prepared,
    found: Mapping[str, Mapping[int, Passes]],
    did: Mapping[str, Mapping[int, Any]],
) -> dict[str, Any]:
    """All that the table and its intervals are taken from."""
    compared = compare(prepared.briefs, found, given.candidates)
    return {
        **record(__file__, given.words),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "recipe": given.recipe.name,
        "changes": [*SAMPLED, *given.overrides],
        "raw": [REVIEW[RAW], *given.raw],
        "budget": {"minutes": given.minutes, "n_threads": given.threads},
        "asked": asdict(Asked(candidates=max(given.candidates))),
        "n_briefs": len(prepared.briefs),
        "data": {name: _told(task.card) for name, task in prepared.tasks.items()},
        "did": {name: {str(seed): one for seed, one in of.items()} for name, of in did.items()},
        "best": {
            name: {
                str(seed): {str(n): [int(one.best) for one in passes[n]] for n in passes}
                for seed, passes in seeds.items()
            }
            for name, seeds in found.items()
        },
        "faults": {
            name: total([one for passes in of.values() for one in passes[max(given.candidates)]])
            for name, of in found.items()
        },
        "compared": {
            n: {pair: [asdict(group) for group in of] for pair, of in pairs.items()}
            for n, pairs in compared.items()
        },
    }


def _told(card: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs, drops and candidates of a data card."""
    pairs = {name: split["pairs"] for name, split in card["splits"].items()}
    dropped = {reason: one["count"] for reason, one in card["dropped"].items()}
    return {"pairs": pairs, "dropped": dropped, "candidates": card.get("candidates")}


def table(found: Mapping[str, Any]) -> list[str]:
    """A Markdown table: a row for each number of candidates and group of briefs."""
    lines = [
        "| texts a brief | briefs | n | teacher | raw | filtered | filtered - raw, points "
        "| filtered / teacher |",
        "|---:|---|---:|---:|---:|---:|---|---|",
    ]
    for n, pairs in found["compared"].items():
        for raw, filtered, apart in zip(*(pairs[pair] for pair in PAIRS), strict=True):
            name = raw["name"] if raw["by"] == ALL else f"{raw['by']} {raw['name']}"
            rates = (raw["teacher"], raw["rate"], filtered["rate"])
            shares = " | ".join(f"{100 * rate['best']:.1f} %" for rate in rates)
            lines.append(
                f"| {n} | {name} | {raw['n_briefs']} | {shares} "
                f"| {_shown(apart['difference'], 100, 1)} | {_shown(filtered['ratio'], 1, 3)} |"
            )
    return lines


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """Whether reviewing helps, and whether the student comes up to its teacher."""
    lines = []
    for n, pairs in found["compared"].items():
        _, filtered, apart = (pairs[pair][0] for pair in PAIRS)
        points, ratio = apart["difference"], filtered["ratio"]
        near = ratio is not None and ratio["value"] >= LEAST_OF_TEACHERS
        lines += [
            f"{n} a brief, filtered - raw: {_shown(points, 100, 1)} points, bar: the interval "
            f"above 0: {_met(points['low'] > 0)}",
            f"{n} a brief, filtered / teacher: {_shown(ratio, 1, 3)}, bar ≥ {LEAST_OF_TEACHERS:g}: "
            f"{_met(near)}",
        ]
    return lines


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


def _shown(interval: Mapping[str, float] | None, scale: float, decimals: int) -> str:
    if interval is None:
        return "too few"  # of the teacher's texts pass
    one = Interval(**interval)
    value, low, high = (f"{scale * x:.{decimals}f}" for x in (one.value, one.low, one.high))
    return f"{value} ({low} to {high})"


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Both arms with every seed, in an order drawn anew for each, and the teacher."""
    work, budget = given.work.absolute(), Budget(given.minutes, given.threads)
    overrides = [*given.overrides, f"train.n_threads={given.threads}"]
    prepared = prepare_both(given.recipe.absolute(), overrides, given.raw, work)
    recipe = prepared.tasks[RAW].recipe

    def passes(bundle: Path) -> Passes:
        return passes_of(bundle, prepared.briefs, given.candidates, recipe, given.threads)

    found: dict[str, dict[int, Passes]] = {TEACHER: {}, RAW: {}, FILTERED: {}}
    did: dict[str, dict[int, Any]] = {RAW: {}, FILTERED: {}}
    for seed in given.seeds:
        for name in random.Random(seed).sample([RAW, FILTERED], 2):
            place = trained(name, prepared.tasks[name], work / "students", budget, seed)
            did[name][seed] = json.loads((place / "did.json").read_text("utf-8"))
            say(f"seed {seed}, {name}: {did[name][seed]}")
            found[name][seed] = passes(place / "bundle")
    found[TEACHER][0] = passes(prepared.teacher)
    return as_json(given, prepared, found, did)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=QUICKSTART)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--raw", action="append", default=[], help="KEY=VALUE, as --set, of raw")
    parser.add_argument("--candidates", nargs="*", type=int, default=[1, 4], help="a brief")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--work", type=Path, default=cache_folder() / "passing-bench")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    given.words = words
    try:
        found = measure(given)
    except KdexportError as error:
        raise SystemExit(str(error)) from None
    print("\n".join([*table(found), "", *verdicts(found)]))
    save(found, given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
