"""`kdexport run --matrix COLUMN=A,B,C`: a student for each value of a column, from one teacher.

The teacher's bundle and texts, the untrained student and the teacher's targets are made once, in
the recipe's own run folder; each student learns from the rows of its value and from those that
name none.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdexport.bundle import open_bundle
from kdexport.content.audiences import load_personal
from kdexport.content.channels import load_channels
from kdexport.data.pairs import SPLITS, read_pairs
from kdexport.data.tables import Row, read_rows
from kdexport.errors import InputError
from kdexport.measuring.arms import settings_of
from kdexport.measuring.cards import write_cards, write_first_card
from kdexport.measuring.side_by_side import bench_students, own_report
from kdexport.pipeline.preflight import BESIDE, check_bench, check_training
from kdexport.pipeline.run import Run, open_run, plan, run_stages
from kdexport.pipeline.variants import variant_stages
from kdexport.recipe import Recipe
from kdexport.system.console import say
from kdexport.system.files import write_whole
from kdexport.system.journal import fingerprint
from kdexport.verdict.page import render_html
from kdexport.verdict.report import BenchReport, write_report

MATRIX, PAGE = "matrix.json", "matrix.html"
TAKEN = ("teacher", "control")  # names of bundles beside a recipe's own


@dataclass(frozen=True)
class Matrix:
    """The students of a matrix, side by side. ``rows``: one each, as `matrix.json` has them."""

    rows: list[dict[str, Any]]
    report: BenchReport


@dataclass(frozen=True)
class Member:
    """One student to be. ``pair_ids``: of the pairs that are its own."""

    value: str
    run: Run
    pair_ids: frozenset[str]


def run_matrix(recipe: Recipe, wish: str, *, allow: bool = False) -> Matrix:
    """Train, export and measure a student for each value; a second call skips what is whole.

    ``allow``: bundles that fail the recipe's thresholds are kept.
    """
    column, values = parse_matrix(wish)
    if recipe.data.stream:
        raise InputError(
            "a matrix tells pairs by their ids, which are not kept where pairs are streamed",
            where="data.stream",
            remedy="set it to false",
        )
    belongs = rows_by_value(recipe, column, values)
    base = open_run(recipe, allow=allow)
    check_training(base)
    check_bench(base)
    members = [_member(base, column, value, belongs[value]) for value in values]
    run_stages(base, until="student")
    stages = [variant_stages(member.run, member.pair_ids) for member in members]
    for member, own in zip(members, stages, strict=True):
        plan(member.run, stages=own)  # refuses what cannot be done before the first is trained
    for member, own in zip(members, stages, strict=True):
        say(f"{column}={member.value}")
        run_stages(member.run, stages=own)
    return _side_by_side(base, column, members)


def parse_matrix(text: str) -> tuple[str, list[str]]:
    """Column and values of ``COLUMN=A,B,C``. Raises InputError."""
    column, equals, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",")]
    if not column.strip() or not equals or not all(values):
        raise InputError("is not COLUMN=A,B,C", where=f"--matrix {text}")
    slugs = Counter(slug(value) for value in values)
    for value in values:
        if not slug(value) or slugs[slug(value)] > 1 or slug(value) in TAKEN:
            raise InputError(
                f"{value!r} gives no name of its own for a folder ({slug(value)!r})",
                where=f"--matrix {text}",
            )
    return column.strip(), values


def slug(value: str) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^a-z0-9._-]+", "-", value.lower()).strip("-.")


def rows_by_value(recipe: Recipe, column: str, values: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each value the ids of its rows, and of those that name none, in the recipe's data.

    A row may name several values in a list. Raises InputError for a column or a value that no row
    has.
    """
    path = Path(recipe.data.pairs or recipe.data.briefs or "")
    found: dict[str, set[str]] = {value: set() for value in values}
    shared: set[str] = set()
    seen: Counter[str] = Counter()
    columns: set[str] = set()
    for name, row in _rows(recipe, path):
        columns |= row.keys()
        cell = row.get(column)
        cells = cell if isinstance(cell, list) else [cell]
        named = [str(one) for one in cells if one is not None]
        seen.update(named)
        for value in named:
            if value in found:
                found[value].add(name)
        if not named:
            shared.add(name)
    if not seen:
        known = sorted(columns)
        near = difflib.get_close_matches(column, known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(known)}"
        raise InputError(
            f"no row has a column {column!r}", where=f"--matrix, {path}", remedy=advice
        )
    for value in values:
        if not found[value]:
            most = ", ".join(f"{name} ({n})" for name, n in seen.most_common(8))
            raise InputError(
                f"no row has {column} {value!r}",
                where=f"--matrix, {path}",
                remedy=f"the most common are {most}",
            )
    return {value: frozenset(ids | shared) for value, ids in found.items()}


def _rows(recipe: Recipe, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the data by id; briefs for segments as they are for each."""
    if recipe.data.own is not None:
        for row in read_rows(recipe.data.own):
            yield f"{BESIDE}{_id_of(row)}", row.cells
    if recipe.data.audiences is not None:
        channels = load_channels(recipe.data.channels)
        for one in load_personal(path, channels, recipe.data.audiences):
            cells = one.brief.model_dump(mode="json")
            yield one.brief.id, {name: cell for name, cell in cells.items() if cell}
        return
    for row in read_rows(path):
        yield _id_of(row), row.cells


def _id_of(row: Row) -> str:
    given = row.cells.get("id")
    return f"{row.unit}-{row.number}" if given is None else str(given)


def _member(base: Run, column: str, value: str, row_ids: frozenset[str]) -> Member:
    name = f"{base.recipe.name}-{slug(value)}"
    recipe = base.recipe.model_copy(update={"name": name})
    folder = base.folder / f"{column}={slug(value)}"
    return Member(
        value,
        replace(base, recipe=recipe, folder=folder, base=base),
        _pair_ids(base.recipe, row_ids),
    )


def _pair_ids(recipe: Recipe, row_ids: frozenset[str]) -> frozenset[str]:
    """The pairs of rows: of a brief there may be several."""
    variants = recipe.data.generate.variants
    if recipe.data.briefs is None or variants == 1:
        return row_ids
    given = frozenset(n for n in row_ids if recipe.data.own is not None and n.startswith(BESIDE))
    return given | {f"{name}-{n}" for name in row_ids - given for n in range(variants)}


def _side_by_side(base: Run, column: str, members: Sequence[Member]) -> Matrix:
    """One bench of the teacher and all students, taking turns; `matrix.json` keeps it.

    Beside it a page of all, and in each student's folder its own report; in its bundle, its card.
    """
    bench = base.recipe.bench
    runs = {member.value: member.run for member in members}
    bundles = [run.quantized_bundle for run in runs.values()]
    if base.recipe.opens_teacher:
        bundles.insert(0, base.teacher_bundle)
    hashes = [open_bundle(bundle).manifest_sha256 for bundle in bundles]
    asked = [settings_of(bench).model_dump(), bench.n_samples, bench.n_copies]
    key = fingerprint(column, [str(bundle) for bundle in bundles], hashes, asked)
    path = base.folder / MATRIX
    known = _known(path, key)
    if known is not None and (base.folder / PAGE).is_file():
        say("side by side: measured before")
        return known
    pairs = {member.value: _n_pairs(member.run) for member in members}
    report = bench_students(base, column, runs, pairs)
    arms = {arm.arm: arm for arm in report.arms}
    rows = [_row(column, member, pairs[member.value], arms) for member in members]
    for member in members:
        own = own_report(report, member.value, member.run)
        write_report(own, member.run.folder)
        bundle = member.run.quantized_bundle
        write_cards(own, {bundle.name: bundle})
    _write_other_cards(base, report, members)
    write_whole(base.folder / PAGE, [render_html(report, numbers=MATRIX)])
    content = {"key": key, "students": rows, "bench": report.model_dump(mode="json")}
    write_whole(path, [json.dumps(content, indent=1, ensure_ascii=False)])
    return Matrix(rows, report)


def _write_other_cards(base: Run, report: BenchReport, members: Sequence[Member]) -> None:
    """Of the teacher's bundle, which was measured, and of the float32 ones, which were not."""
    bare = report.model_copy(update={"recipe": {}, "training": [], "data": {}, "matrix": None})
    write_cards(bare, {base.teacher_bundle.name: base.teacher_bundle})
    for run in (member.run for member in members):
        if run.student_bundle != run.quantized_bundle:
            write_first_card(open_bundle(run.student_bundle))


def _n_pairs(run: Run) -> dict[str, int]:
    splits = Counter(pair.split for pair in read_pairs(run.pairs))
    return {split: splits[split] for split in SPLITS}


def _row(
    column: str, member: Member, pairs: Mapping[str, int], arms: Mapping[str, Any]
) -> dict[str, Any]:
    arm = arms[member.run.quantized_bundle.name]
    return {
        column: member.value,
        "run": str(member.run.folder),
        "bundle": str(member.run.quantized_bundle),
        "pairs": dict(pairs),
        "kl_mean": arm.kl_mean,
        "top1": arm.top1,
        "perplexity": arm.perplexity,
        "size_mb": arm.size_mb,
    }


def _known(path: Path, key: str) -> Matrix | None:
    """What was measured of the same bundles before."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["key"] != key:
            return None
        return Matrix(content["students"], BenchReport.model_validate(content["bench"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
