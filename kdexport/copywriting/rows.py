"""The table of copies that were written: its columns, as CSV, TSV and JSONL, and its journal.

Knows rows and files; nothing of models or checks.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kdexport.errors import InputError
from kdexport.system.files import write_whole

Row = dict[str, Any]
COLUMNS = (
    "brief",
    "place",
    "product",
    "channel",
    "language",
    "segment",
    "because",
    "status",
    "copy",
    "approved",
    "violations",
    "nearest",
    "lengths",
    "mean_logprob",
    "judge_logprob",
    "click_score",
    "sentiment",
    "n_passed",
    "bundle",
    "manifest_sha256",
    "recipe_fingerprint",
    "seed",
    "candidate",
    "kdexport",
    "date",
)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*DELIMITERS, ".jsonl")


def check_format(path: Path) -> None:
    """Refuse an output whose name does not tell its format, or whose folder is not there."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            "does not tell the format", where=str(path), remedy=f"use {', '.join(FORMATS)}"
        )
    if not path.resolve().parent.is_dir():
        raise InputError("there is no such folder", where=str(path.parent))


def write_copies(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write the rows, whole or not at all. Raises InputError as `check_format`."""
    check_format(path)
    delimiter = DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        write_whole(path, (json_line({name: row[name] for name in columns}) for row in rows))
    else:
        write_whole(path, _delimited(rows, columns, delimiter))


def _delimited(rows: Sequence[Row], columns: Sequence[str], delimiter: str) -> Iterator[str]:
    """RFC 4180 but for line feeds as line ends; lists with semicolons between, None as nothing."""
    line = io.StringIO(newline="")
    writer = csv.writer(line, delimiter=delimiter)  # quotes whatever its line end is made of
    for cells in (columns, *([_cell(row[name]) for name in columns] for row in rows)):
        line.seek(0)
        line.truncate()
        writer.writerow(cells)
        yield line.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any) -> Any:
    return "; ".join(value) if isinstance(value, list | tuple) else value


def json_line(value: Mapping[str, Any]) -> str:
    """A line of JSONL."""
    return json.dumps(value, ensure_ascii=False) + "\n"


class CopyJournal:
    """What is written so far, a line a brief, appended beside the output; `open_journal` opens it.

    ``date``: of the beginning. ``rows``: of each brief that is done, by its place in the input.
    """

    def __init__(self, file: BinaryIO, date: str, rows: dict[int, list[Row]]) -> None:
        self.date = date
        self.rows = rows
        self._file = file

    def add(self, number: int, rows: list[Row]) -> None:
        """Append a brief's rows, at once; those of one that is done already are the same."""
        if number not in self.rows:
            self.rows[number] = rows
            self._file.write(json_line({"number": number, "rows": rows}).encode())

    def sync(self) -> None:
        """Have the disk keep it."""
        os.fsync(self._file.fileno())


def journal_path(out: Path) -> Path:
    """Where the journal of an output stands."""
    return out.with_name(f"{out.name}.journal.jsonl")


@contextmanager
def open_journal(out: Path, asked: Mapping[str, Any], date: str) -> Iterator[CopyJournal]:
    """Go on with the journal of an output, or begin one; nobody else can meanwhile.

    A last line that a kill has cut is dropped. Raises InputError where the journal is of other
    work (``asked``: what its rows depend on), or at work in another process.
    """
    path = journal_path(out)
    with path.open("a+b", buffering=0) as file:
        _lock(file, path)
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            file.write(json_line({"date": date, "asked": dict(asked)}).encode())
            yield CopyJournal(file, date, {})
            return
        try:
            head, *found = map(json.loads, lines)
            rows = {line["number"]: line["rows"] for line in found}
            date, before = head["date"], head["asked"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                "is no journal of copies", where=str(path), remedy="remove it"
            ) from None
        changed = sorted(name for name in {*asked, *before} if asked.get(name) != before.get(name))
        if changed:
            raise InputError(
                f"was begun with another {', '.join(changed)}",
                where=str(path),
                remedy="remove it to begin anew, or give another -o",
            )
        yield CopyJournal(file, date, rows)


def _lock(file: BinaryIO, path: Path) -> None:
    """The system's lock: it ends with its process, however that ends. Windows goes without."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                "another kdexport is at work here",
                where=str(path),
                remedy="wait until it has ended",
            ) from None
