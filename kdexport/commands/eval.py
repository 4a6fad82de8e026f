"""The command that scores a bundle on someone's own texts. Everything heavy is imported inside."""

from pathlib import Path
from typing import Any

import click

from kdexport.commands.options import EXISTING, json_option
from kdexport.system.streams import stdout_console


@click.command("eval", context_settings={"show_default": True})
@click.argument("bundle", type=EXISTING)
@click.argument("file", type=EXISTING)
@click.option(
    "--teacher", metavar="SOURCE", help="A bundle or a model in PyTorch: KL, and its copy beside."
)
@click.option("--texts", "n_texts", type=click.IntRange(1), help="So many at most, evenly apart.")
@click.option(
    "--copies", "n_copies", type=click.IntRange(0), default=16, help="Prompts to write copy for."
)
@click.option("--new", "new_tokens", type=click.IntRange(1), default=96, help="Tokens of a copy.")
@click.option("--threads", "n_threads", type=click.IntRange(1), help="[default: physical cores]")
@json_option
def evaluate(bundle: Path, file: Path, as_json: bool, **asked: Any) -> None:
    """Score a bundle on texts of your own. Needs no torch, unless the teacher is in PyTorch.

    FILE has rows of prompt and completion, of messages, or of text, as for training: JSONL, CSV,
    TSV or Parquet. Measured are perplexity and calibration on the completions (of a text without a
    prompt, on all of it), and how near copy that the bundle writes is to them; with --teacher also
    the KL to it. All rows are read, whatever their split.
    """
    from kdexport.measuring import evaluating
    from kdexport.verdict.quality_tables import evaluation_grids, render_grid

    found = evaluating.evaluate(bundle, file, **asked)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    console = stdout_console()
    for grid in evaluation_grids(found):
        console.print("", render_grid(grid, found.judged[0].model, console.width))
