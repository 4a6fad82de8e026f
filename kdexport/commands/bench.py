"""The commands that measure and decide. Everything heavy is imported inside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kdexport.commands.options import (
    EXISTING,
    audiences_option,
    beside_of,
    brand_option,
    channels_option,
    fail_on,
    json_option,
    numbers_from,
    print_report,
    refusing,
)
from kdexport.errors import InputError
from kdexport.system.streams import print_json, print_rich

N_COPIES = 16
QUICK_NEW = 32  # tokens of a run that is only to choose
LIST: Any = {"type": numbers_from(1), "metavar": "N[,N...]", "show_default": True}


@click.command()
@click.argument("bundles", type=EXISTING, nargs=-1)
@click.option(
    "--teacher",
    metavar="SOURCE",
    help="Also measure this model, in PyTorch and as its own int8 bundle.",
)
@click.option(
    "--no-teacher-int8",
    is_flag=True,
    help="Of the teacher measure no int8 bundle, which is made once and kept in the cache.",
)
@click.option("--threads", help="Threads [default: physical cores].", **LIST)
@click.option("--batch", default="1", help="Texts at a time.", **LIST)
@click.option("--prompt", default="128", help="Tokens of the prompt.", **LIST)
@click.option("--new", type=click.IntRange(2), default=64, show_default=True, help="New tokens.")
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--briefs", type=EXISTING, help="Also score copy that every arm writes for these.")
@click.option("--copies", type=click.IntRange(1), help=f"So many briefs [default: {N_COPIES}].")
@audiences_option
@channels_option
@brand_option
@click.option("--out", type=EXISTING, help="Also write bench.json and report.html to this folder.")
@click.option("--csv", type=EXISTING, help="Also write the numbers to this file, a row an arm.")
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="MEASURE>LIMIT",
    help="Exit with 1 where this is so, as in 'kl_p99>1.0' or 'speedup<8'. May be repeated.",
)
@click.option(
    "--card", is_flag=True, help="Also write it into each bundle's model card, README.md."
)
@click.option(
    "--compare",
    nargs=2,
    type=EXISTING,
    metavar="OLD NEW",
    help="Measure nothing; tell what changed from one bench.json to another.",
)
@json_option
def bench(
    bundles: Sequence[Path],
    briefs: Path | None,
    copies: int | None,
    out: Path | None,
    csv: Path | None,
    fail_if: Sequence[str],
    card: bool,
    compare: tuple[Path, Path] | None,
    as_json: bool,
    teacher: str | None,
    no_teacher_int8: bool,
    **asked: Any,
) -> None:
    """Measure latency, memory and, where a bundle has a reference, quality; with briefs, copy too.

    Each bundle runs in a process of its own and they take turns. Timed is what `generate` does:
    tokenizing, sampling and detokenizing included. Of --threads, --batch and --prompt several
    values may be given, as in 1,2: the first of each is the report's own case, and all others are
    measured beside it.

    --fail-if is of the arm in bold, the last bundle, unless another is named: 'NAME:kl_mean>0.5'.
    docs/verdict.md has the names of all measures. Of --compare it is 'regressions>0': measures that
    got worse beyond noise.
    """
    if compare is not None:
        if bundles or briefs or out or csv or card:
            raise InputError("reads two reports and takes nothing else", where="--compare")
        _compare(*compare, fail_if, as_json)
        return
    if not bundles:
        raise click.MissingParameter(param_hint="'BUNDLES...'", param_type="argument")
    bundles = _folders(bundles)
    from kdexport.measuring.arms import arm_names, bench_bundles
    from kdexport.measuring.cards import write_cards
    from kdexport.system.files import write_whole
    from kdexport.system.machine import make_folder
    from kdexport.verdict.conditions import check_arms, parse_threshold, report_failures
    from kdexport.verdict.report import INT8_TEACHER, REFERENCE_ARM, write_report
    from kdexport.verdict.table import csv_table

    of_teacher = [REFERENCE_ARM] if no_teacher_int8 else [REFERENCE_ARM, INT8_TEACHER]
    names = [*arm_names(bundles), *(of_teacher if teacher else [])]
    with refusing("--fail-if"):
        thresholds = [parse_threshold(text) for text in fail_if]
        check_arms(thresholds, names)
    _check_csv(csv)
    requests = _requests(briefs, copies, asked)
    if out:
        make_folder(out)
    settings = _settings(**asked)
    report = bench_bundles(list(bundles), teacher, settings, not no_teacher_int8, requests)
    if out:
        write_report(report, out)
    if csv:
        write_whole(csv, csv_table(report))
    if card:
        write_cards(report, dict(zip(arm_names(bundles), bundles, strict=True)))
    print_report(report, as_json)
    fail_on(report_failures(report, thresholds))


@click.command()
@click.argument("sources", type=EXISTING, nargs=-1, required=True)
@click.option(
    "--need",
    "needs",
    multiple=True,
    metavar="MEASURE>=NUMBER",
    help="What it must have, as in 'decode_tok_s>=60'. May be repeated.",
)
@click.option("--smallest", metavar="MEASURE", help="What decides then [default: kl_mean].")
@click.option("--largest", metavar="MEASURE", help="The same, for what is better when larger.")
@click.option("--threads", type=click.IntRange(1), help="Threads [default: physical cores].")
@json_option
def choose(
    sources: Sequence[Path],
    needs: Sequence[str],
    smallest: str | None,
    largest: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Say which bundles are worth having, and which to take.

    \b
    kdexport choose exported/* --need 'decode_tok_s>=60' --smallest kl_mean
    kdexport choose bench.json                 of a bench with --out, or of a run's folder

    Bundles are measured quickly: two runs each. A bundle is on the front where no other is as
    small, as fast and as near to the teacher. Exit code 1 where nothing meets the need.
    """
    from kdexport.verdict.choose import choose as choose_from
    from kdexport.verdict.choose import render_choice
    from kdexport.verdict.conditions import parse_measure, parse_need

    with refusing("--need"):
        asked = [parse_need(text) for text in needs]
    if smallest and largest:
        raise InputError("one measure decides, --smallest or --largest", where="--largest")
    with refusing("--smallest" if smallest else "--largest"):
        best = parse_measure(smallest or largest, "less" if smallest else "more")
    report = _report_of(sources, threads)
    found = choose_from(report, asked, best)
    if as_json:
        print_json({"settings": report.settings.model_dump(mode="json"), **found.as_json()})
    else:
        print_rich(render_choice(found))
        if found.pick:
            click.echo(f"{found.pick}: {found.why}")
    if (asked or best) and not found.pick:
        fail_on([found.why])


def _report_of(sources: Sequence[Path], threads: int | None) -> Any:
    """The report that is named, or a quick one of the bundles that are."""
    from kdexport.bundle import MANIFEST
    from kdexport.verdict.report import load_report

    [first, *others] = sources
    is_report = first.suffix == ".json" or (
        (first / "bench.json").is_file() and not (first / MANIFEST).exists()
    )
    if is_report:
        if others or threads:
            raise InputError("is a report: it stands alone, measured as it was", where=str(first))
        return load_report(first)
    from kdexport.measuring.arms import bench_bundles

    asked = [threads] if threads else None
    return bench_bundles(_folders(sources), None, _settings(asked, [1], [128], QUICK_NEW, 2))


def _folders(paths: Sequence[Path]) -> list[Path]:
    """Of several paths, as a shell makes them of ``exported/*``, without plain files."""
    files = [path for path in paths if path.is_file()]
    if not files or len(files) == len(paths):
        return list(paths)
    click.echo(f"left out, being no folder: {', '.join(map(str, files))}", err=True)
    return [path for path in paths if path not in files]


def _compare(old: Path, new: Path, fail_if: Sequence[str], as_json: bool) -> None:
    from kdexport.verdict.compare import (
        REGRESSIONS,
        compare_reports,
        comparison_lines,
        render_comparison,
    )
    from kdexport.verdict.conditions import check_arms, failures, parse_threshold
    from kdexport.verdict.report import load_report

    with refusing("--fail-if"):
        thresholds = [parse_threshold(text, REGRESSIONS) for text in fail_if]
    found = compare_reports(load_report(old), load_report(new))
    with refusing("--fail-if"):
        check_arms(thresholds, found.arms)
    if as_json:
        print_json(found.as_json())
    else:
        print_rich(render_comparison(found))
        click.echo("\n".join(comparison_lines(found)))
    fail_on(failures(thresholds, found.arms, found.hero, lambda arm, _: found.regressions(arm)))


def _settings(
    threads: Sequence[int] | None, batch: Sequence[int], prompt: Sequence[int], new: int, runs: int
) -> Any:
    from kdexport.system.machine import physical_cores
    from kdexport.verdict.report import BenchSettings
    from kdexport.verdict.timing import Case

    own, *others = (
        Case(n_threads=n_threads, batch_size=n_texts, prompt_tokens=n_read, new_tokens=new)
        for n_threads in threads or [physical_cores()]
        for n_texts in batch
        for n_read in prompt
    )
    return BenchSettings(**own.model_dump(), n_runs=runs, others=others)


def _requests(briefs: Path | None, copies: int | None, asked: dict[str, Any]) -> Any:
    """What copy is wanted for; the files beside --briefs are taken from what was ``asked``."""
    from kdexport.measuring.asking import NOTHING, ask_for

    named = {"--copies": copies, "--audiences": asked["audiences_path"]}
    named |= {"--channels": asked["channels_folder"], "--brand": asked["brand_path"]}
    for option, given in named.items():
        if briefs is None and given is not None:
            raise InputError("is of --briefs, which is not given", where=option)
    beside = beside_of(asked)
    return ask_for(briefs, beside, copies or N_COPIES) if briefs else NOTHING


def _check_csv(path: Path | None) -> None:
    """Refuse a place for a file before minutes are spent on what it is to hold."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError("cannot be written: its folder is missing or it is one", where=str(path))
