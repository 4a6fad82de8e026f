"""Commands for copy in bulk, and for how often it passes. Everything heavy is imported inside."""

from pathlib import Path
from typing import Any

import click

from kdexport.cli_options import EXISTING, FiniteRange, channels_option, json_option
from kdexport.streams import print_json

judge_option = click.option(
    "--judge", type=EXISTING, help="A bundle (the teacher's) whose likelihood ranks the texts."
)
brand_option = click.option(
    "--brand", "brand_path", type=EXISTING, help="A brand's style pack: its rules hold, too."
)
threads_option = click.option(
    "--threads", "n_threads", type=click.IntRange(1), help="[default: physical cores]"
)
SAMPLING = (  # names, type, default, help
    ("--candidates", click.IntRange(1, 64), 8, "Texts for each brief, of which the best are kept."),
    ("-t --temperature", FiniteRange(0, min_open=True), 0.8, "Of all but a brief's first text."),
    ("--top-p", FiniteRange(0, 1, min_open=True), 0.95, "The likeliest that together reach it."),
    ("--seed", click.INT, 0, "Of the draws."),
)


def sampling_options(command: Any) -> Any:
    """Give a command the options of SAMPLING."""
    for names, kind, default, words in reversed(SAMPLING):
        command = click.option(*names.split(), type=kind, default=default, help=words)(command)
    return command


def beside_of(options: dict[str, Any]) -> Any:
    """The files of a command's options, which are taken from them."""
    from kdexport.copywriter import Beside

    names = {"against": "against", "judge": "judge"}
    names |= {"channels_folder": "channels", "brand_path": "brand"}
    return Beside(**{name: options.pop(option, None) for option, name in names.items()})


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=EXISTING)
@click.argument("briefs", type=EXISTING)
@click.option("-o", "--out", type=EXISTING, required=True, help="CSV, TSV or JSONL.")
@sampling_options
@click.option("--keep", type=click.IntRange(1, 64), default=1, help="Rows for each brief.")
@click.option("--against", type=EXISTING, help="Pairs that were trained on: no copy of those.")
@judge_option
@click.option("--disclose", default="", metavar="TEXT", help="Stands before each copy.")
@click.option("--overwrite", is_flag=True, help="Replace an output that is there.")
@channels_option
@brand_option
@threads_option
@json_option
def write(bundle: Path, briefs: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Write copy for a file of briefs into a table. Needs no torch.

    For each brief several texts are written, checked (length in the channel's own counting,
    words of brief and brand, figures, repetition, likeness to one another) and ranked; the best
    are kept. Where too few pass, the row says what the nearest one violates; nothing is cut.
    Rows are in the order of BRIEFS (JSONL, CSV, TSV, YAML or Parquet). What is done stands in
    OUT.journal.jsonl until the end: after a kill, the same command goes on.
    """
    from dataclasses import asdict

    from kdexport.bulk import write_file
    from kdexport.copywriter import Asked

    names = ("candidates", "keep", "temperature", "top_p", "seed", "disclose")
    asked = Asked(**{name: options.pop(name) for name in names})
    beside = beside_of(options)

    def warn(line: str) -> None:
        click.echo(line, err=True)

    summary = write_file(bundle, briefs, out, asked, beside, warn=warn, **options)
    if as_json:
        print_json(asdict(summary) | {"copies_per_minute": summary.copies_per_minute})
        return
    counts = ", ".join(f"{n:,} {status}" for status, n in summary.statuses.items() if n)
    click.echo(f"{out}: {summary.n_briefs:,} briefs, rows: {counts}")
    if summary.copies_per_minute is not None:
        click.echo(
            f"{summary.n_candidates:,} texts in {summary.seconds:.0f} s,"
            f" {summary.copies_per_minute:,.0f} a minute"
        )
