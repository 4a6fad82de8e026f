"""The commands that take a recipe. Everything heavy is imported inside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kdexport.commands.options import (
    EXISTING,
    RECIPE_HELP,
    FiniteRange,
    allow_option,
    fail_on,
    json_option,
    print_report,
    recipe_of,
    set_option,
)
from kdexport.errors import InputError
from kdexport.system.streams import print_json, print_rich


@click.command(epilog=RECIPE_HELP)
@click.argument("recipe", type=EXISTING)
@set_option
@click.option(
    "--dry-run", is_flag=True, help="Print the stages, their sizes and times; do nothing."
)
@click.option(
    "--matrix",
    metavar="COLUMN=A,B,C",
    help="A student for each value of a column of the data, from one teacher.",
)
@allow_option
@json_option
def run(
    recipe: Path,
    overrides: Sequence[str],
    dry_run: bool,
    matrix: str | None,
    allow: bool,
    as_json: bool,
) -> None:
    """Do everything: teacher, data, student, distillation, export, int8, bench and report.

    A second call skips what is whole, and goes on where a killed one was.

    Where the recipe's bench.fail_if is so, the exit code is 1. A bundle that fails what is known
    before the bench, size and quality, is not written, unless --allow is given.
    """
    from kdexport.pipeline import run as pipeline
    from kdexport.pipeline.together import together
    from kdexport.verdict.conditions import report_failures
    from kdexport.verdict.report import load_report

    if matrix is not None:
        if dry_run:
            raise InputError("is not of --matrix", where="--dry-run")
        columns = matrix
        together(lambda: _run_matrix(recipe_of(recipe, overrides), columns, allow, as_json))
        return
    if dry_run:
        from kdexport.pipeline.plan import plan_recipe, render_plan

        rows = plan_recipe(recipe_of(recipe, overrides))
        print_json(rows) if as_json else print_rich(render_plan(rows))
        return

    def work() -> pipeline.Run:
        opened = pipeline.open_run(recipe_of(recipe, overrides), allow=allow)
        pipeline.run_stages(opened)
        return opened

    opened = together(work)
    report = load_report(opened.folder / "bench.json")
    print_report(report, as_json)
    if not as_json:
        click.echo(f"Report:  {opened.folder / 'report.html'}", err=True)
        click.echo(f"Bundle:  {opened.quantized_bundle}", err=True)
    fail_on(report_failures(report, opened.recipe.bench.thresholds))


def _run_matrix(recipe: Any, wish: str, allow: bool, as_json: bool) -> None:
    from kdexport.pipeline.matrix import PAGE, run_matrix

    found = run_matrix(recipe, wish, allow=allow)
    if as_json:
        print_json({"students": found.rows, "bench": found.report.model_dump(mode="json")})
        return
    print_report(found.report, as_json)
    click.echo(f"Report:  {Path(recipe.output.runs) / recipe.name / PAGE}", err=True)
    for row in found.rows:
        click.echo(f"Bundle:  {row['bundle']}", err=True)


@click.command(epilog=RECIPE_HELP)
@click.argument("recipe", type=EXISTING)
@set_option
@click.option(
    "--control",
    is_flag=True,
    help="Train the same student on the texts alone, in runs/NAME-control.",
)
@json_option
def distill(recipe: Path, overrides: Sequence[str], control: bool, as_json: bool) -> None:
    """Train the student:  L = L_task + λ·T²·KL(teacher ‖ student).

    Ends with a Hugging Face folder in runs/NAME/student. Missing data is written by the teacher
    first.
    """
    from kdexport.pipeline import run as pipeline
    from kdexport.pipeline.together import together

    def work() -> pipeline.Run:
        loaded = recipe_of(recipe, overrides)
        if control:
            from kdexport.pipeline.variants import distill_control

            return distill_control(loaded)
        opened = pipeline.open_run(loaded)
        pipeline.run_stages(opened, until="distill")
        return opened

    opened = together(work)
    if as_json:
        print_json({"student": str(opened.student), "reference": str(opened.reference)})
    else:
        click.echo(opened.student)


@click.command(epilog=RECIPE_HELP)
@click.argument("recipe", type=EXISTING)
@set_option
@json_option
def finetune(recipe: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Train the teacher itself on the recipe's texts: the same loop with λ = 0.

    Ends with a Hugging Face folder in runs/NAME/teacher, the one that was best on the validation
    texts. To distil from it, name that folder as the teacher of a recipe.
    """
    from kdexport.pipeline.together import together

    def work() -> Any:
        from kdexport.pipeline.finetune import finetune_teacher

        return finetune_teacher(recipe_of(recipe, overrides))

    found = together(work)
    if as_json:
        rows = {"teacher": str(found.folder), "perplexity_before": found.before}
        print_json({**rows, "perplexity": found.after})
    else:
        click.echo(found.folder)


@click.command(epilog=RECIPE_HELP)
@click.argument("recipe", type=EXISTING)
@click.option(
    "--search",
    "searches",
    multiple=True,
    required=True,
    metavar="KEY=RANGE",
    help="LOW..HIGH or A,B,C, as in --search train.lr=1e-4..1e-3. May be repeated.",
)
@click.option("--minutes", type=FiniteRange(0, min_open=True), default=60.0, show_default=True)
@click.option("--trials", type=click.IntRange(1), help="At most so many.")
@click.option(
    "--trial-minutes",
    type=FiniteRange(0, min_open=True),
    help="Of each trial [default: train.max_minutes].",
)
@set_option
@json_option
def sweep(
    recipe: Path,
    searches: Sequence[str],
    minutes: float,
    trials: int | None,
    trial_minutes: float | None,
    overrides: Sequence[str],
    as_json: bool,
) -> None:
    """Search values of a recipe for the lowest KL to the teacher on the validation pairs.

    Trials train on the same texts and targets. A second call goes on, also after a kill. The best
    values are left as a recipe that runs as it is: runs/NAME/sweeps/…/best.yaml.
    """
    from kdexport.describe import describe_sweep
    from kdexport.pipeline.sweep import Wish, run_sweep

    wish = Wish(recipe, overrides, searches, minutes, trials, trial_minutes)
    found = run_sweep(wish)
    if as_json:
        print_json({"best": str(found.best), "trials": found.rows})
    else:
        print_rich(describe_sweep(found.rows))
        click.echo(found.best)


@click.command("import-targets", epilog=RECIPE_HELP)
@click.argument("recipe", type=EXISTING)
@click.argument("files", type=EXISTING, nargs=-1)
@click.option("--texts", type=EXISTING, help="Write the texts' token ids to this file, and end.")
@set_option
@json_option
def import_targets(
    recipe: Path, files: Sequence[Path], texts: Path | None, overrides: Sequence[str], as_json: bool
) -> None:
    """Take targets that another program computed, such as vLLM on a GPU.

    \b
    kdexport import-targets RECIPE --texts texts.jsonl     what the teacher is to be asked
    kdexport import-targets RECIPE targets.jsonl           what it said; one file or several

    A recipe with targets: imported trains on them. FILES are JSONL or safetensors; docs/recipes.md
    tells their form.
    """
    from kdexport.pipeline import importing

    if (texts is None) == (not files):
        raise InputError("give either files of targets or --texts", where="import-targets")
    loaded = recipe_of(recipe, overrides)
    if texts is not None:
        n_texts = importing.write_texts(loaded, texts)
        print_json({"texts": str(texts), "n": n_texts}) if as_json else click.echo(texts)
        return
    folder = importing.import_targets(loaded, files)
    print_json({"targets": str(folder)}) if as_json else click.echo(folder)
