"""The commands of copy in bulk, and of how often it passes. Everything heavy is imported inside."""

from pathlib import Path
from typing import Any

import click

from kdexport.commands.options import (
    EXISTING,
    FiniteRange,
    audiences_option,
    beside_of,
    brand_option,
    channels_option,
    json_option,
)
from kdexport.errors import InputError
from kdexport.system.streams import print_json, print_rich

judge_option = click.option(
    "--judge", type=EXISTING, help="A bundle (the teacher's) whose likelihood ranks the texts."
)
threads_option = click.option(
    "--threads", "n_threads", type=click.IntRange(1), help="[default: physical cores]"
)
SAMPLING = (  # names, type, default, help
    ("--candidates", click.IntRange(1, 64), 8, "Texts for each brief, of which the best are kept."),
    ("-t --temperature", FiniteRange(0, min_open=True), 0.8, "Of all but a brief's first text."),
    ("--top-p", FiniteRange(0, 1, min_open=True), 0.95, "The likeliest that together reach it."),
    ("--top-k", click.IntRange(0), 50, "The likeliest tokens that are drawn from; 0: all."),
    ("--seed", click.INT, 0, "Of the draws."),
)


def sampling_options(command: Any) -> Any:
    """Give a command the options of SAMPLING."""
    for names, kind, default, words in reversed(SAMPLING):
        command = click.option(*names.split(), type=kind, default=default, help=words)(command)
    return command


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=EXISTING)
@click.argument("briefs", type=EXISTING)
@click.option("-o", "--out", type=EXISTING, required=True, help="CSV, TSV or JSONL.")
@sampling_options
@click.option("--keep", type=click.IntRange(1, 64), default=1, help="Rows for each brief.")
@click.option("--against", type=EXISTING, help="Pairs that were trained on: no copy of those.")
@judge_option
@click.option(
    "--ranker", type=EXISTING, help="Of `content learn`: which of those that pass come first."
)
@click.option("--disclose", default="", metavar="TEXT", help="Stands before each copy.")
@click.option(
    "--google-ads", type=EXISTING, help="Write the ads for Google Ads Editor, too, to this CSV."
)
@click.option(
    "--ad-groups", type=EXISTING, help="Where they go: brief, campaign, ad_group, final_url."
)
@click.option("--overwrite", is_flag=True, help="Replace an output that is there.")
@audiences_option
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

    from kdexport.copywriting.bulk import write_file
    from kdexport.copywriting.copywriter import Asked

    names = ("candidates", "keep", "temperature", "top_p", "top_k", "seed", "disclose")
    asked = Asked(**{name: options.pop(name) for name in names})
    beside = beside_of(options)

    ads = options.pop("google_ads"), options.pop("ad_groups")
    if None in ads and ads != (None, None):
        raise InputError("go together", where="--google-ads and --ad-groups")
    options["ads"] = None if None in ads else ads

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


@click.group()
def content() -> None:
    """Measure what is written, and learn from it."""


@content.command()
@click.argument("copies", type=EXISTING)
@click.argument("briefs", type=EXISTING)
@click.option("-o", "--out", type=EXISTING, required=True, help="JSONL of pairs.")
@click.option("--disclose", default="", metavar="TEXT", help="What was put before each copy.")
@audiences_option
@channels_option
@brand_option
@json_option
def pairs(
    copies: Path, briefs: Path, out: Path, disclose: str, as_json: bool, **options: Any
) -> None:
    """Make pairs to train on of the copies that people approved.

    COPIES is a table of `kdexport write` with yes in the column "approved"; what was edited is
    taken as it is now. BRIEFS are those that it was written for.
    """
    from kdexport.copywriting.approved import approved_pairs
    from kdexport.data.pairs import write_pairs

    found = approved_pairs(copies, briefs, beside_of(options), disclose)
    write_pairs(out, found)
    print_json({"out": str(out), "pairs": len(found)}) if as_json else click.echo(
        f"{out}: {len(found):,} pairs"
    )


@content.command()
@click.argument("clicks", type=EXISTING)
@click.option("-o", "--out", type=EXISTING, required=True, help="The ranker, JSON.")
@channels_option
@json_option
def learn(clicks: Path, out: Path, channels_folder: Path | None, as_json: bool) -> None:
    """Learn from how often copy was clicked which is clicked more, for `kdexport write --ranker`.

    CLICKS is a table: text, channel, impressions, clicks, and if known segment and group (texts
    that were tried for one purpose: their brief). What was learnt is measured on texts held out
    with all that are like them. Needs kdexport[ranking]; using the ranker does not.
    """
    from dataclasses import asdict

    from kdexport.content.channels import load_channels
    from kdexport.content.clicks import load_clicks
    from kdexport.copywriting.clicks import learn_clicks
    from kdexport.copywriting.describe import describe_held_out
    from kdexport.copywriting.ranker import save_ranker
    from kdexport.system.console import tracked

    rows = load_clicks(clicks, load_channels(channels_folder))
    with tracked("ranker learns", "parts") as progress:
        ranker, found = learn_clicks(rows, str(clicks), progress)
    save_ranker(out, ranker)
    if as_json:
        print_json(asdict(found))
        return
    print_rich(describe_held_out(found))
    click.echo(out)


@content.command("eval", context_settings={"show_default": True})
@click.argument("bundle", type=EXISTING)
@click.argument("briefs", type=EXISTING)
@click.option("--teacher", type=EXISTING, help="A bundle that writes as many texts beside.")
@sampling_options
@click.option("--briefs", "n_briefs", type=click.IntRange(1), help="So many at most, evenly apart.")
@click.option("--against", type=EXISTING, help="Pairs that were trained on: no copy of those.")
@audiences_option
@channels_option
@brand_option
@threads_option
@json_option
def evaluate(bundle: Path, briefs: Path, as_json: bool, **options: Any) -> None:
    """Count how often copy passes its checks, by channel and language. Needs no torch.

    For each of BRIEFS several texts are written, by --teacher too; the brief passes where one of
    them does. Differences have 95 % intervals of briefs drawn anew, the same for both.
    """
    from dataclasses import asdict

    from kdexport.copywriting.copywriter import Asked
    from kdexport.copywriting.passing import evaluate_content

    names = ("candidates", "temperature", "top_p", "top_k", "seed")
    asked = Asked(**{name: options.pop(name) for name in names})
    found = evaluate_content(bundle, briefs, asked, beside_of(options), **options)
    if as_json:
        print_json(asdict(found))
        return
    from kdexport.copywriting.describe import describe_passing

    print_rich(describe_passing(found))
    for name, faults in zip(found.models, found.faults, strict=True):
        told = ", ".join(f"{n:,} {check}" for check, n in faults.items())
        click.echo(f"faults of {name}: {told or 'none'}")
