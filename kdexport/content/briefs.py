"""A brief: what a piece of copy is about, for whom, where, when and in which words."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from kdexport.content.channels import ChannelName, Channels
from kdexport.content.data_files import did_you_mean
from kdexport.content.languages import load_languages
from kdexport.content.records import Kind, Problem, examine_records, listed, load_records
from kdexport.data.tables import Row

Split = Literal["train", "validation", "test"]
Text = Annotated[str, StringConstraints(min_length=1)]
LISTS = ("facts", "must_include", "banned", "disclosures", "keywords")
"""Fields that a cell of a table holds as a JSON list, or between semicolons."""
EVERY = "all"
"""In place of segments' names: each of them."""


class Brief(BaseModel):
    """One piece of copy that is wanted. Only a product is needed.

    ``must_include``: words that the copy has to have, ``banned``: must not have, in any form
    (`kdexport.content.matching.find_phrase`); ``disclosures``: texts that it has to have word for
    word; ``keywords``: words for search, where they fit. ``variants`` and ``seed``: in place of
    those of the command that writes. ``segment``: names of segments, whose student learns from
    it; a model is told of them where their attributes are given (`kdexport.content.audiences`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    id: str = ""
    product: str = Field(min_length=1)
    facts: tuple[str, ...] = Field(default=(), max_length=8)
    audience: str = "everyone"
    channel: ChannelName = "social_post"
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
    segment: str | tuple[str, ...] = ()
    split: Split = "train"

    @field_validator("language")
    @classmethod
    def _known_language(cls, value: str) -> str:
        languages = list(load_languages())
        if value not in languages:
            raise ValueError(f"unknown language {value!r}; known are {', '.join(languages)}")
        return value

    @field_validator("segment")
    @classmethod
    def _known_segments(cls, value: str | tuple[str, ...], info: ValidationInfo) -> object:
        known: Collection[str] | None = (info.context or {}).get("segments")
        if known is None:
            return value
        for name in names_of(value):
            if name not in known and name != EVERY:
                raise ValueError(f"unknown segment {name!r}{did_you_mean(name, sorted(known))}")
        return value


def names_of(segment: str | tuple[str, ...]) -> list[str]:
    """The names in a brief's ``segment``: a list, or a text with semicolons between."""
    names = segment.split(";") if isinstance(segment, str) else segment
    return [name.strip() for name in names if name.strip()]


def load_briefs(
    path: Path, channels: Channels | None = None, segments: Collection[str] | None = None
) -> list[Brief]:
    """Read a file of briefs; a brief without an id is named after its line.

    The file is one that `read_rows` reads; a cell of one of `LISTS` holds a JSON list, or texts
    between semicolons. ``segments``: those that a brief may name; None: any. Raises InputError
    that names file, line and field.
    """
    return load_records(path, _kind(channels, segments))


def examine_briefs(
    path: Path,
    channels: Channels | None = None,
    segments: Collection[str] | None = None,
    most: int | None = None,
) -> tuple[list[Brief], list[Problem]]:
    """The briefs of a file, and all that is wrong with it; what cannot be read further is one.

    ``most``: as in `examine_records`.
    """
    return examine_records(path, _kind(channels, segments), most)


def _kind(channels: Channels | None, segments: Collection[str] | None) -> Kind[Brief]:
    def make(row: Row) -> Brief:
        cells = {"id": f"{row.unit}-{row.number}", **row.cells}
        for name in LISTS:
            if isinstance(cell := cells.get(name), str):
                cells[name] = listed(cell, row.where, name)
        return Brief.model_validate(cells, context={"channels": channels, "segments": segments})

    return Kind(Brief, "id", make)


def split_of(product: str, validation: float = 0.1, test: float = 0.1) -> Split:
    """The split of all briefs of a product: by a hash of its name, so it never changes."""
    position = int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"
