"""Options that several commands have, and how they show a report."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kdexport.errors import InputError
from kdexport.system.streams import stdout_console

EXISTING = click.Path(path_type=Path)
RECIPE_HELP = "RECIPE is a YAML file; see recipes/quickstart.yaml for one with comments."
allow_option = click.option(
    "--allow", is_flag=True, help="Keep bundles that fail the thresholds of bench.fail_if."
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe, as in --set train.lr=3e-4. May be repeated.",
)
channels_option = click.option(
    "--channels",
    "channels_folder",
    type=EXISTING,
    help="A folder of channels of your own, a YAML file each.",
)
audiences_option = click.option(
    "--audiences",
    "audiences_path",
    type=EXISTING,
    help="A table of segments: briefs that name some are written for each.",
)
brand_option = click.option(
    "--brand", "brand_path", type=EXISTING, help="A brand's style pack: its rules hold, too."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a machine.")


@contextmanager
def refusing(option: str) -> Iterator[None]:
    """A ValueError within becomes a refusal of what an option was given."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error), where=option) from None


def fail_on(lines: Sequence[str]) -> None:
    """End with exit code 1 and these lines on stderr, if there are any."""
    for line in lines:
        click.echo(f"kdexport: {line}", err=True)
    if lines:
        raise SystemExit(1)


def numbers_from(least: int) -> Callable[[str], list[int]]:
    """The type of an option: whole numbers of ``least`` or more, with commas between them."""

    def numbers(text: str) -> list[int]:
        try:
            found = [int(part) for part in text.split(",")]
        except ValueError:
            raise click.BadParameter(f"{text!r} is not N or N,N,...") from None
        if min(found) < least:
            raise click.BadParameter(f"{min(found)} is below {least}.")
        return list(dict.fromkeys(found))

    return numbers


class FiniteRange(click.FloatRange):
    """A range without nan and infinity, which compare as if they were in it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """A float; a usage error for what is none, not finite or out of range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def beside_of(options: dict[str, Any]) -> Any:
    """The files of a command's options that hold for all briefs; they are taken from these."""
    from kdexport.copywriting.copywriter import Beside

    names = {"against": "against", "judge": "judge", "ranker": "ranker"}
    names |= {"channels_folder": "channels", "brand_path": "brand", "audiences_path": "audiences"}
    return Beside(**{name: options.pop(option, None) for option, name in names.items()})


def recipe_of(path: Path, overrides: Sequence[str]) -> Any:
    """The recipe of a file, with the overrides of --set."""
    from kdexport.recipe import load_recipe

    return load_recipe(path, overrides)


def print_report(report: Any, as_json: bool) -> None:
    """Print a bench for a machine or for a person."""
    if as_json:
        click.echo(report.model_dump_json(indent=2))
        return
    from kdexport.verdict.quality_tables import grids, render_grid
    from kdexport.verdict.report import summary
    from kdexport.verdict.table import render_samples, render_table

    console = stdout_console()
    console.print(render_table(report, console.width))
    hero = None if report.hero is None else report.hero.arm
    for grid in grids(report):
        console.print("", render_grid(grid, hero, console.width))
    if report.samples:
        console.print(render_samples(report))
    click.echo(summary(report))
