"""A brief: what a piece of copy is about, for whom, where, when and in which words."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from kdexport.content.channels import Channels, load_channels
from kdexport.content.data_files import did_you_mean, field_of, problem_of
from kdexport.content.languages import load_languages
from kdexport.data.jsonl import parse_json
from kdexport.data.tables import Row, read_rows
from kdexport.errors import InputError

Split = Literal["train", "validation", "test"]
Text = Annotated[str, StringConstraints(min_length=1)]
LISTS = ("facts", "must_include", "banned", "disclosures", "keywords")
"""Fields that a cell of a table holds as a JSON list, or between semicolons."""


class Brief(BaseModel):
    """One piece of copy that is wanted. Only a product is needed.

    ``must_include``: words that the copy has to have, ``banned``: must not have, in any form
    (`kdexport.content.matching.find_phrase`); ``disclosures``: texts that it has to have word for
    word; ``keywords``: words for search, where they fit. ``variants`` and ``seed``: in place of
    those of the command that writes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    id: str = ""
    product: str = Field(min_length=1)
    facts: tuple[str, ...] = Field(default=(), max_length=8)
    audience: str = "everyone"
    channel: str = "social_post"
    campaign: str = "none"
    objective: str = ""
    tone: str = "friendly"
    language: str = "en"
    call_to_action: str = ""
    must_include: tuple[Text, ...] = ()
    banned: tuple[Text, ...] = ()
    disclosures: tuple[Text, ...] = ()
    keywords: tuple[Text, ...] = ()
    variants: int | None = Field(default=None, ge=1, le=64)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    segment: str | tuple[str, ...] = ()  # whose student learns from it; the teacher is not told
    split: Split = "train"

    @field_validator("channel")
    @classmethod
    def _known_channel(cls, value: str, info: ValidationInfo) -> str:
        channels = (info.context or {}).get("channels") or load_channels()
        if value not in channels:
            raise ValueError(f"unknown channel {value!r}{did_you_mean(value, list(channels))}")
        return value

    @field_validator("language")
    @classmethod
    def _known_language(cls, value: str) -> str:
        languages = list(load_languages())
        if value not in languages:
            raise ValueError(f"unknown language {value!r}; known are {', '.join(languages)}")
        return value


@dataclass(frozen=True)
class Problem:
    """What is wrong with a brief: where, in which field if in one, and what to do."""

    where: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}{': ' if self.field else ''}{self.message}"

    def as_json(self) -> dict[str, str]:
        """The parts by name."""
        return asdict(self)


def load_briefs(path: Path, channels: Channels | None = None) -> list[Brief]:
    """Read a file of briefs; a brief without an id is named after its line.

    The file is one that `read_rows` reads; a cell of one of `LISTS` holds a JSON list, or texts
    between semicolons. Raises InputError that names file, line and field.
    """
    briefs = []
    for found in _read(path, channels, tolerant=False):
        if isinstance(found, Problem):
            message = f"{found.field}{': ' if found.field else ''}{found.message}"
            raise InputError(message, where=found.where)
        briefs.append(found)
    return briefs


def examine_briefs(
    path: Path, channels: Channels | None = None
) -> tuple[list[Brief], list[Problem]]:
    """The briefs of a file, and all that is wrong with it; what cannot be read further is one."""
    briefs: list[Brief] = []
    problems: list[Problem] = []
    try:
        for found in _read(path, channels, tolerant=True):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                briefs.append(found)
    except InputError as error:
        problems.append(_problem(error))
    return briefs, problems


def _read(path: Path, channels: Channels | None, *, tolerant: bool) -> Iterator[Brief | Problem]:
    """Briefs, and the problems of rows that are none, in the file's order."""
    bad: list[InputError] = []
    places: dict[str, str] = {}
    for row in read_rows(path, on_bad=bad.append) if tolerant else read_rows(path):
        yield from map(_problem, bad)
        bad.clear()
        try:
            brief = _brief(row, channels)
        except InputError as error:
            yield _problem(error)
        except ValidationError as error:
            for one in error.errors():
                yield Problem(row.where, field_of(one).removesuffix(": "), problem_of(one, Brief))
        else:
            if brief.id in places:
                yield Problem(row.where, "id", f"{brief.id!r} stands in {places[brief.id]} too")
                continue
            places[brief.id] = row.place
            yield brief
    yield from map(_problem, bad)


def _problem(error: InputError) -> Problem:
    return Problem(error.where, "", "; ".join(filter(None, (error.message, error.remedy))))


def _brief(row: Row, channels: Channels | None) -> Brief:
    cells = {"id": f"{row.unit}-{row.number}", **row.cells}
    for name in LISTS:
        if isinstance(cell := cells.get(name), str):
            cells[name] = _list(cell, row.where, name)
    return Brief.model_validate(cells, context={"channels": channels})


def _list(cell: str, where: str, name: str) -> Any:
    """The texts of one cell of a table."""
    if cell.lstrip().startswith("["):
        return parse_json(cell, where, name)
    return [text.strip() for text in cell.split(";") if text.strip()]


def split_of(product: str, validation: float = 0.1, test: float = 0.1) -> Split:
    """The split of all briefs of a product: by a hash of its name, so it never changes."""
    position = int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"
