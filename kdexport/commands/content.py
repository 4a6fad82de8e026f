"""The commands of briefs and copy. Everything heavy is imported inside them."""

from pathlib import Path
from typing import Any

import click

from kdexport.commands.options import EXISTING, audiences_option, channels_option, json_option
from kdexport.system.streams import print_json


@click.group()
def briefs() -> None:
    """Work with files of briefs."""


@briefs.command()
@click.argument("file", type=EXISTING)
@channels_option
@audiences_option
@json_option
def check(
    file: Path, channels_folder: Path | None, audiences_path: Path | None, as_json: bool
) -> None:
    """Name everything that is wrong with a file of briefs: line, field, what to do.

    FILE is JSONL, CSV, TSV, YAML or Parquet. Exit code 2 where a brief is bad. With --audiences
    the segments are checked too, and whether briefs name others.
    """
    from kdexport.content.audiences import examine_segments, personalised
    from kdexport.content.briefs import examine_briefs, names_of
    from kdexport.content.channels import load_channels

    segments, of_segments = examine_segments(audiences_path) if audiences_path else (None, [])
    known = None if of_segments else segments  # else what names a bad one would be told, too
    good, problems = examine_briefs(file, load_channels(channels_folder), known)
    counts: dict[str, Any] = {
        name: _counted(getattr(brief, name) for brief in good)
        for name in ("channel", "language", "split")
    }
    if known is not None:
        counts["segment"] = _counted(
            ", ".join(names_of(one.brief.segment)) for one in personalised(good, known)
        )
    bad = {problem.where for problem in problems}
    problems = of_segments + problems
    if as_json:
        told = [problem.as_json() for problem in problems]
        print_json({"good": len(good), "bad": len(bad), **counts, "problems": told})
    else:
        for problem in problems:
            click.echo(str(problem))
        many = ", ".join(f"{n} {name}" for name, n in counts["channel"].items())
        click.echo(f"{file}: {len(good)} good, {len(bad)} bad" + (f" ({many})" if many else ""))
        if "segment" in counts:
            many = ", ".join(f"{n} {name or 'no segment'}" for name, n in counts["segment"].items())
            click.echo(f"{audiences_path}: copy for {many}")
    if problems:
        raise SystemExit(2)


def _counted(values: Any) -> dict[str, int]:
    """How often each value comes, by name."""
    from collections import Counter

    return dict(sorted(Counter(values).items()))
