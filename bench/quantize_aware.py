"""How much of what quantizing costs a student is won back by training with rounded weights.

    .venv/bin/python bench/quantize_aware.py recipes/quickstart.yaml --scheme int4 --steps 400

A finished run's student goes on for some steps twice: computing as its quantized bundle will
(`train.quantize_aware`), and without, as a control. Both are exported and quantized alike, and the
KL to the teacher is measured on the bundles. bench/README.md says how to read it.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.quality.bundles import bundle_kl  # noqa: E402
from bench.quality.statistics import KlSums, share_won_back  # noqa: E402
from bench.quality.table import shown  # noqa: E402
from bench.record import record, save  # noqa: E402
from kdexport.errors import InputError, KdexportError  # noqa: E402
from kdexport.pipeline.run import Run, open_run  # noqa: E402
from kdexport.pipeline.stages import make_bundle, make_quantized  # noqa: E402
from kdexport.pipeline.training import train_student  # noqa: E402
from kdexport.recipe import load_recipe  # noqa: E402
from kdexport.runtime.quality import Reference, load_reference  # noqa: E402
from kdexport.system.console import say  # noqa: E402
from kdexport.system.machine import cache_folder, physical_cores  # noqa: E402

WAYS: Mapping[str, float | None] = {"as it was": None, "control": 0.0, "aware": 1.0}
"""How to go on -> `train.quantize_aware`; None: not at all."""
BAR = 0.5  # of the KL that quantizing costs
N_EVALUATIONS = 4


def go_on(run: Run, share: float | None, steps: int, lr: float, folder: Path) -> Run:
    """A run that begins with another's student, and has trained it further."""
    train = {"quantize_aware": share or 0.0, "lr": lr, "max_steps": steps}
    train |= {"max_minutes": None, "epochs": None}
    train |= {"evaluate_steps": max(1, steps // N_EVALUATIONS)}
    wish = run.recipe.train.model_copy(update=train)
    recipe = run.recipe.model_copy(update={"train": wish})
    further = replace(run, recipe=recipe, folder=folder, exported=folder / "exported")
    shutil.rmtree(folder, ignore_errors=True)
    further.exported.mkdir(parents=True)
    shutil.copyfile(run.pairs, further.pairs)
    if run.targets.is_dir():
        further.targets.symlink_to(run.targets.absolute())
    if share is None:
        shutil.copytree(run.student, further.student)
        shutil.copyfile(run.reference, further.reference)
    else:
        shutil.copytree(run.student, further.student_init)
        train_student(further)
    return further


def measured(run: Run, reference: Reference) -> dict[str, KlSums]:
    """KL of both bundles of a trained run."""
    make_bundle(run)
    make_quantized(run)
    bundles = {"fp32": run.student_bundle, run.recipe.export.scheme: run.quantized_bundle}
    return {scheme: bundle_kl(bundle, reference) for scheme, bundle in bundles.items()}


def table(found: Mapping[str, Mapping[str, KlSums]]) -> list[str]:
    schemes = list(next(iter(found.values())))
    lines = [f"| | KL, {' | KL, '.join(schemes)} | cost |", "|---|---:|---:|---:|"]
    for way, by_scheme in found.items():
        exact, quantized = (by_scheme[scheme].mean for scheme in schemes)
        lines.append(f"| {way} | {exact:.4f} | {quantized:.4f} | {quantized - exact:.4f} |")
    return lines


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--scheme", default="int4")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--lr", type=float, help="of the control [default: a fifth of the recipe's]"
    )
    parser.add_argument("--work", type=Path, default=cache_folder() / "quantize-aware")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    own = [f"export.scheme={given.scheme}", f"train.n_threads={physical_cores()}"]
    run = open_run(load_recipe(given.recipe, [*given.overrides, *own]))
    if not run.student.is_dir():
        raise InputError("has no student", where=str(run.folder), remedy="kdexport run it first")
    lr = given.lr or run.recipe.train.lr / 5
    reference = load_reference(run.reference)
    found: dict[str, dict[str, KlSums]] = {}
    for way, share in WAYS.items():
        folder = given.work / way.replace(" ", "-")
        found[way] = measured(go_on(run, share, given.steps, lr, folder), reference)
        say(f"{way}: {', '.join(f'{s} {one.mean:.4f}' for s, one in found[way].items())}")
    control = found["control"]
    won = share_won_back(control["fp32"], control[given.scheme], found["aware"][given.scheme])
    met = won.value >= BAR and won.low > 0
    print("\n".join(table(found)))
    print(f"won back: {shown(won)}, bar ≥ {BAR:g}: {'met' if met else 'NOT met'}")
    result = {
        **record(__file__, words),
        "settings": {
            "scheme": given.scheme,
            "steps": given.steps,
            "lr": lr,
            "rounded_lr": run.recipe.train.rounded_lr,
        },
        "kl": {way: {s: one.mean for s, one in of.items()} for way, of in found.items()},
        "won_back": vars(won),
        "bar": BAR,
        "tokens": control["fp32"].tokens.tolist(),
        "nats": {
            way: {s: [float(f"{v:.5g}") for v in one.nats] for s, one in of.items()}
            for way, of in found.items()
        },
    }
    save(result, given.out)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KdexportError as error:
        raise SystemExit(str(error)) from None
