"""Rows of a file as models, and what is wrong with those that are none. Knows no kind of record."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from kdexport.content.data_files import field_of, problem_of
from kdexport.data.jsonl import parse_json
from kdexport.data.tables import Row, read_rows
from kdexport.errors import InputError

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row: where, in which field if in one, and what to do."""

    where: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}{': ' if self.field else ''}{self.message}"

    def as_json(self) -> dict[str, str]:
        """The parts by name."""
        return asdict(self)


@dataclass(frozen=True)
class Kind(Generic[Record]):
    """How a row becomes a record. ``key``: the field that tells records apart, once in a file;
    None where records may be equal.

    ``make`` raises pydantic's ValidationError, or InputError with the row's place.
    """

    model: type[Record]
    key: str | None
    make: Callable[[Row], Record]


def load_records(path: Path, kind: Kind[Record]) -> list[Record]:
    """The records of a file that `read_rows` reads. Raises InputError: file, line and field."""
    records = []
    for found in _read(path, kind, tolerant=False):
        if isinstance(found, Problem):
            message = f"{found.field}{': ' if found.field else ''}{found.message}"
            raise InputError(message, where=found.where)
        records.append(found)
    return records


def examine_records(
    path: Path, kind: Kind[Record], most: int | None = None
) -> tuple[list[Record], list[Problem]]:
    """The records of a file, and all that is wrong with it; what cannot be read further is one.

    ``most``: records and problems together; the rest of the file is not read, which is a problem.
    """
    records: list[Record] = []
    problems: list[Problem] = []
    try:
        for found in _read(path, kind, tolerant=True):
            if most is not None and len(records) + len(problems) == most:
                raise InputError(f"goes on after the {most:,} that are read", where=str(path))
            if isinstance(found, Problem):
                problems.append(found)
            else:
                records.append(found)
    except InputError as error:
        problems.append(_problem(error))
    return records, problems


def _read(path: Path, kind: Kind[Record], *, tolerant: bool) -> Iterator[Record | Problem]:
    """Records, and the problems of rows that are none, in the file's order."""
    bad: list[InputError] = []
    places: dict[str | None, str] = {}
    for row in read_rows(path, on_bad=bad.append) if tolerant else read_rows(path):
        yield from map(_problem, bad)
        bad.clear()
        try:
            record = kind.make(row)
        except InputError as error:
            yield _problem(error)
        except ValidationError as error:
            for one in error.errors():
                field = field_of(one).removesuffix(": ")
                yield Problem(row.where, field, problem_of(one, kind.model))
        else:
            name = getattr(record, kind.key) if kind.key else None
            if kind.key and name in places:
                yield Problem(row.where, kind.key, f"{name!r} stands in {places[name]} too")
                continue
            places[name] = row.place
            yield record
    yield from map(_problem, bad)


def _problem(error: InputError) -> Problem:
    return Problem(error.where, "", "; ".join(filter(None, (error.message, error.remedy))))


def listed(cell: str, where: str, name: str) -> Any:
    """The texts of one cell of a table: a JSON list, or texts between semicolons."""
    if cell.lstrip().startswith("["):
        return parse_json(cell, where, name)
    return [text.strip() for text in cell.split(";") if text.strip()]
