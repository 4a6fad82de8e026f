"""A brief: what a piece of copy is about, for whom, where, and when."""

import difflib
import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kdexport.content.channels import load_channels
from kdexport.errors import InputError
from kdexport.jsonl import parse_json
from kdexport.tables import read_rows

Split = Literal["train", "validation", "test"]


class Brief(BaseModel):
    """One piece of copy that is wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    id: str = ""
    product: str = Field(min_length=1)
    facts: tuple[str, ...] = Field(default=(), max_length=8)
    audience: str = "everyone"
    channel: str = "social_post"
    campaign: str = "none"
    tone: str = "friendly"
    language: Literal["en"] = "en"
    segment: str | tuple[str, ...] = ()  # whose student learns from it; the teacher is not told
    split: Split = "train"

    @field_validator("channel")
    @classmethod
    def _known(cls, value: str) -> str:
        channels = load_channels()
        if value not in channels:
            raise ValueError(f"unknown channel {value!r}{did_you_mean(value, list(channels))}")
        return value


def load_briefs(path: Path) -> list[Brief]:
    """Read a file of briefs; a brief without an id is named after its line.

    The file is one that `read_rows` reads; a cell of ``facts`` holds a JSON list, or facts between
    semicolons. Raises InputError that names file, line and field.
    """
    briefs: list[Brief] = []
    places: dict[str, str] = {}
    for row in read_rows(path):
        cells = {"id": f"{row.unit}-{row.number}", **row.cells}
        if isinstance(facts := cells.get("facts"), str):
            cells["facts"] = _facts(facts, row.where)
        try:
            brief = Brief.model_validate(cells)
        except ValidationError as error:
            raise InputError(_first_problem(error), where=row.where) from None
        if brief.id in places:
            raise InputError(f"id {brief.id!r} stands in {places[brief.id]} too", where=row.where)
        places[brief.id] = row.place
        briefs.append(brief)
    return briefs


def _facts(cell: str, where: str) -> Any:
    """The facts of one cell of a table."""
    if cell.lstrip().startswith("["):
        return parse_json(cell, where, "facts")
    return [fact.strip() for fact in cell.split(";") if fact.strip()]


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"the brief has no {field}"
    if first["type"] == "string_too_short":
        return f"the brief's {field} is empty"
    if first["type"] == "extra_forbidden":
        return f"unknown key {field!r}{did_you_mean(field, list(Brief.model_fields))}"
    return f"{field}: {first['msg'].removeprefix('Value error, ')}"


def did_you_mean(word: str, known: list[str]) -> str:
    """The nearest known word as a question, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def split_of(product: str, validation: float = 0.1, test: float = 0.1) -> Split:
    """The split of all briefs of a product: by a hash of its name, so it never changes."""
    position = int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"
