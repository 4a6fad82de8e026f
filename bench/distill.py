"""KL to the teacher for equal CPU minutes: kdexport, training on the texts alone, TRL's GKD.

    make peers && .venv/bin/python bench/distill.py --out bench/results/distill.json
    .venv/bin/python bench/distill.py --ablations --seeds 0 --out bench/results/ablations.json

A second call goes on where the first was stopped. bench/README.md says how
to read it.
"""

import argparse
import importlib.metadata
import platform
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.quality.arms import OURS, THEIRS, TRL, Arm, Budget, Result, arms_of, run_arm  # noqa: E402
from bench.quality.prepare import prepare  # noqa: E402
from bench.quality.table import BARS, ratio, rows, verdicts  # noqa: E402
from bench.record import record, save, shortened  # noqa: E402
from kdexport.errors import KdexportError  # noqa: E402
from kdexport.recipe import load_recipe  # noqa: E402
from kdexport.system.console import say  # noqa: E402
from kdexport.system.machine import cache_folder, physical_cores  # noqa: E402

QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
ABLATIONS = ROOT / "recipes" / "ablations"
LIBRARIES = ("torch", "transformers", "numpy", "tokenizers")
BASE = "quickstart"


def ablations(recipe: Path) -> Mapping[str, Arm]:
    """The recipe itself, and each of the folder's."""
    return {BASE: Arm(OURS, recipe)} | {
        file.stem: Arm(OURS, file) for file in sorted(ABLATIONS.glob("*.yaml"))
    }


def measure(
    arms: Mapping[str, Arm], task: Path, results: Path, budget: Budget, seeds: Sequence[int]
) -> dict[str, dict[int, Result]]:
    """Every arm with every seed, in an order drawn anew for each seed."""
    found: dict[str, dict[int, Result]] = {name: {} for name in arms}
    for seed in seeds:
        for name in random.Random(seed).sample(list(arms), len(arms)):
            found[name][seed] = run_arm(arms[name], task, results, budget, seed)
            one = found[name][seed]
            say(f"seed {seed}, {name}: KL {one.kl.mean:.4f}, {one.did}")
    return found


def as_json(
    found: Mapping[str, Mapping[int, Result]], base: str, budget: Budget, words: Sequence[str]
) -> dict[str, Any]:
    """All that a reader needs to take the intervals anew: KL of each text, arm and seed."""
    arms = {
        name: {
            str(seed): {
                "kl": one.kl.mean,
                "nats": [float(f"{value:.4g}") for value in one.kl.nats],
                "n_parameters": one.n_parameters,
                "did": dict(one.did),
                "command": [shortened(word) for word in one.command],
            }
            for seed, one in by_seed.items()
        }
        for name, by_seed in found.items()
    }
    first = next(iter(found[base].values()))
    return {
        **record(__file__, words),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "budget": vars(budget),
        "base": base,
        "bars": [vars(bar) for bar in BARS if bar.other in found],
        "ratios": {name: vars(ratio(found, base, name)) for name in found if name != base},
        "tokens": first.kl.tokens.tolist(),
        "arms": arms,
    }


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=QUICKSTART)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--arms", nargs="*", help="only these")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--work", type=Path, default=cache_folder() / "distill-bench")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    recipe, work = given.recipe.absolute(), given.work.absolute()
    arms = ablations(recipe) if given.ablations else arms_of(recipe)
    unknown = set(given.arms or ()) - set(arms)
    if unknown:
        raise SystemExit(f"no arm is called {', '.join(unknown)}; there are {', '.join(arms)}")
    base = next(iter(arms))
    arms = {
        name: arm for name, arm in arms.items() if not given.arms or name in {*given.arms, base}
    }
    if not TRL.exists() and any(arm.module == THEIRS for arm in arms.values()):
        raise SystemExit("TRL is not installed here: run make peers, or name other --arms")
    arms = {name: arm.also(given.overrides) for name, arm in arms.items()}
    budget = Budget(given.minutes, given.threads)
    try:
        task = prepare(work, load_recipe(recipe, given.overrides))
        found = measure(arms, task, work / "results", budget, given.seeds)
    except KdexportError as error:
        raise SystemExit(str(error)) from None
    print("\n".join([*rows(found, base), "", *verdicts(found, base)]).rstrip())
    save(as_json(found, base, budget, words), given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
