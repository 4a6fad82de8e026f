"""Rows of data files: JSONL, CSV, TSV, YAML and Parquet, also gzipped, one row after another.

Knows cells and their places, nothing of what a row means. An empty cell of a table is none.
"""

import csv
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.data.jsonl import opened, raise_it, read_jsonl, read_lines
from kdexport.data.yaml_lines import MAX_BYTES, yaml_rows
from kdexport.errors import InputError, first_words, require_extras

ROWS_AT_ONCE = 1024  # of Parquet
LONGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131,072


@dataclass(frozen=True)
class Row:
    """One row. ``number`` counts from 1: lines of a text, a row's first one; rows of Parquet."""

    file: Path
    number: int
    cells: dict[str, Any]
    unit: str = "line"

    @property
    def place(self) -> str:
        """Where in its file."""
        return f"{self.unit} {self.number}"

    @property
    def where(self) -> str:
        """File and place, as errors name them."""
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file}, {self.place}"


Columns = Collection[str] | None


OnBad = Callable[[InputError], None]


def read_rows(path: Path, columns: Columns = None, on_bad: OnBad = raise_it) -> Iterator[Row]:
    """The rows of a file, read as its name ends.

    ``columns``: those that are wanted, None for all; others of a Parquet file are not read.
    ``on_bad`` is told of a row that cannot be read; where it returns, the next one is.
    Raises InputError, with the place, for what cannot be read, and for a file without rows.
    """
    kind = format_of(path)
    if kind is None:
        raise InputError(
            f"its name does not tell what it is ({path.suffix or 'no suffix'})",
            where=str(path),
            remedy=f"use one of {', '.join(FORMATS)}; .gz may follow",
        )
    return FORMATS[kind](path, columns, on_bad)


def format_of(path: Path) -> str | None:
    """The key of `FORMATS` that a file's name ends with, ``.gz`` apart; None: none of them."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def _jsonl_rows(path: Path, columns: Columns, on_bad: OnBad) -> Iterator[Row]:
    for number, cells in read_jsonl(path, on_bad):
        yield Row(path, number, cells)


def _yaml_rows(path: Path, columns: Columns, on_bad: OnBad) -> Iterator[Row]:
    """A list of mappings; small files only, since all of it is in memory."""
    with opened(path) as file:
        content = file.read(MAX_BYTES + 1)
    for number, cells in yaml_rows(content, path):
        if isinstance(cells, dict):
            yield Row(
                path, number, {name: cell for name, cell in cells.items() if cell is not None}
            )
        else:
            on_bad(InputError("is no mapping of keys to values", where=f"{path}:{number}"))


def _comma_rows(path: Path, columns: Columns, on_bad: OnBad) -> Iterator[Row]:
    return _delimited_rows(path, ",", on_bad)


def _tab_rows(path: Path, columns: Columns, on_bad: OnBad) -> Iterator[Row]:
    return _delimited_rows(path, "\t", on_bad)


def _delimited_rows(path: Path, delimiter: str, on_bad: OnBad) -> Iterator[Row]:
    """RFC 4180 with a header: a cell in quotes may hold delimiters, line ends, doubled quotes."""
    csv.field_size_limit(LONGEST_CELL)
    lines = (text for _, text in read_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    n_rows = 0
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"is no whole row ({error})", where=f"{path}:{number}") from None
        if cells is None:
            break
        if not cells:
            continue
        if header is None:
            header = _header(cells, f"{path}:{number}")
            continue
        n_rows += 1
        if len(cells) != len(header):
            on_bad(
                InputError(
                    f"has {len(cells)} cells under a header of {len(header)}",
                    where=f"{path}:{number}",
                    remedy="put a cell that holds delimiters in quotes",
                )
            )
            continue
        named = zip(header, cells, strict=True)
        yield Row(path, number, {name: cell for name, cell in named if name and cell})
    if not n_rows:
        raise InputError("has no rows" if header else "is empty", where=str(path))


def _header(cells: list[str], where: str) -> list[str]:
    """The names of columns; one without a name is passed over."""
    names = [cell.strip() for cell in cells]
    for name in names:
        if name and names.count(name) > 1:
            raise InputError(f"column {name!r} stands there twice", where=where)
    if not any(names):
        raise InputError("names no column", where=where)
    return names


def _parquet_rows(path: Path, columns: Columns, on_bad: OnBad) -> Iterator[Row]:
    """Rows as Python values; a packed file is unpacked in memory: Parquet begins at its end."""
    require_extras("parquet")
    import pyarrow
    from pyarrow import parquet

    number = 0
    with opened(path) as file:
        try:
            whole = io.BytesIO(file.read()) if path.suffix.lower() == ".gz" else file
            table = parquet.ParquetFile(whole)
            names = table.schema_arrow.names
            wanted = names if columns is None else [name for name in names if name in columns]
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=wanted):
                for cells in batch.to_pylist():
                    number += 1
                    kept = {name: cell for name, cell in cells.items() if cell not in (None, "")}
                    yield Row(path, number, kept, "row")
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            after = f" after row {number}" if number else ""
            raise InputError(
                f"is no whole Parquet file{after} ({first_words(error)})", where=str(path)
            ) from None
    if not number:
        raise InputError("has no rows", where=str(path))


FORMATS: Mapping[str, Callable[[Path, Columns, OnBad], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".csv": _comma_rows,
    ".tsv": _tab_rows,
    ".yaml": _yaml_rows,
    ".yml": _yaml_rows,
    ".parquet": _parquet_rows,
}
