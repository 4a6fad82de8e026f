"""Channels: where copy appears. Each is a data file, in the folder ``channels`` or in a user's."""

import datetime
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import regex
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kdexport.content.counting import COUNTERS
from kdexport.content.data_files import did_you_mean, load_model
from kdexport.content.languages import load_languages
from kdexport.errors import InputError

PLACES = ("article", "tone", "occasion", "label", "audience", "instruction", "product", "details")
"""What a prompt's template may name in braces; `kdexport.content.prompts` fills them."""
OPENING_PLACES = ("product", "greeting", "occasion")


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limit(_Data):
    """How much of something there may be. Beyond ``soft`` is a warning, beyond ``hard`` a fault."""

    min: int | None = Field(default=None, ge=1)
    soft: int | None = Field(default=None, ge=0)
    hard: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _says_something(self) -> "Limit":
        numbers = [n for n in (self.min, self.soft, self.hard) if n is not None]
        if not numbers:
            raise ValueError("name min, soft or hard")
        if numbers != sorted(numbers):
            raise ValueError("min, soft and hard must not fall")
        return self


class _Counted(_Data):
    """``limits``: by the name of a counter, a row of `COUNTERS`."""

    limits: dict[str, Limit] = {}

    @field_validator("limits")
    @classmethod
    def _known_counters(cls, value: dict[str, Limit]) -> dict[str, Limit]:
        for name in value:
            if name not in COUNTERS:
                raise ValueError(f"unknown counter {name!r}{did_you_mean(name, list(COUNTERS))}")
        return value


class Part(_Counted):
    """One kind of line of a copy that is made of several; its lines begin with ``label: ``.

    ``labels``: by language, where it is another word. ``min`` and ``max``: how many lines.
    """

    label: str = Field(min_length=1)
    labels: dict[str, str] = {}
    min: int = Field(default=1, ge=0)
    max: int = Field(default=1, ge=1)

    def label_in(self, language: str) -> str:
        """The label in a language."""
        return self.labels.get(language, self.label)


class Wording(_Data):
    """A channel's words of the prompt in another language than English."""

    label: str = Field(min_length=1)
    instruction: str = ""
    opening: str = ""


class Source(_Data):
    """A public document that a channel's limits are from, and when it was read."""

    title: str = Field(min_length=1)
    url: str = Field(pattern=r"^https?://\S+$")
    date: datetime.date


class Channel(_Counted):
    """One place for copy. ``label`` and ``instruction`` are words of the prompt.

    ``prompt``: a template in place of the language's ``request``, with places of `PLACES`.
    ``opening``: the words that the copy begins with, given to the model instead of asked for;
    ``{product}`` stands for the product, ``{greeting}`` and ``{occasion}`` for the words that
    ``openings.yaml`` has for the brief's tone and campaign. A small model stays on the subject when
    it has begun.
    ``wordings``: these words in other languages.
    ``one_line``: the copy ends where its first line does.
    ``limits``: of the whole copy; ``parts``: the lines that it is made of, with limits of theirs.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)
    label: str = Field(min_length=1)
    instruction: str = ""
    prompt: str = ""
    opening: str = ""
    wordings: dict[str, Wording] = {}
    one_line: bool = True
    parts: dict[str, Part] = {}
    max_new_tokens: int = Field(gt=0)
    sources: tuple[Source, ...] = ()

    @field_validator("prompt", "opening")
    @classmethod
    def _known_places(cls, value: str, info: object) -> str:
        known = PLACES if getattr(info, "field_name", "") == "prompt" else OPENING_PLACES
        for place in regex.findall(r"\{([^{}]*)\}", value):
            if place not in known:
                raise ValueError(f"unknown place {{{place}}}{did_you_mean(place, known)}")
        return value

    @field_validator("wordings")
    @classmethod
    def _known_languages(cls, value: dict[str, Wording]) -> dict[str, Wording]:
        for code in value:
            if code not in load_languages():
                languages = list(load_languages())
                raise ValueError(f"unknown language {code!r}{did_you_mean(code, languages)}")
        return value

    @model_validator(mode="after")
    def _parts_are_told_apart(self) -> "Channel":
        if self.parts and self.one_line:
            raise ValueError("parts take a line each: set one_line: false")
        labels = [part.label.casefold() for part in self.parts.values()]
        if len(set(labels)) < len(labels):
            raise ValueError("two parts have the same label")
        for name, part in self.parts.items():
            if part.max < part.min:
                raise ValueError(f"part {name}: max is below min")
        return self

    def wording_in(self, language: str) -> Wording:
        """The words of the prompt in a language; English ones where it has none of its own."""
        own = Wording(label=self.label, instruction=self.instruction, opening=self.opening)
        if language == "en":
            return own
        return self.wordings.get(language, own.model_copy(update={"opening": ""}))


Channels = Mapping[str, Channel]


def load_channels(folder: Path | None = None) -> Channels:
    """All channels by name; those of a user's folder beside the built-in ones or in their place.

    A file without ``name`` has its own. Raises InputError for a folder without channels, and, with
    the line, for a file that is none.
    """
    if folder is None:
        return _built_in()
    if not folder.is_dir():
        raise InputError("there is no such folder of channels", where=str(folder))
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    if not paths:
        raise InputError("holds no channel (a .yaml file)", where=str(folder))
    channels = dict(_built_in())
    places: dict[str, Path] = {}
    for path in paths:
        channel = load_model(path, Channel, name=path.stem)
        if channel.name in places:
            where = places[channel.name].name
            raise InputError(f"channel {channel.name!r} stands in {where} too", where=str(path))
        places[channel.name] = path
        channels[channel.name] = channel
    return MappingProxyType(channels)


def _known(name: str, info: ValidationInfo) -> str:
    channels = (info.context or {}).get("channels") or load_channels()
    if name not in channels:
        raise ValueError(f"unknown channel {name!r}{did_you_mean(name, list(channels))}")
    return name


ChannelName = Annotated[str, AfterValidator(_known)]
"""A name of the context's ``channels``; of the built-in ones where it has none."""


@cache
def _built_in() -> Channels:
    channels = {}
    for entry in sorted(files("kdexport.content").joinpath("channels").iterdir(), key=str):
        if entry.name.endswith(".yaml"):
            channel = Channel.model_validate(yaml.safe_load(entry.read_text("utf-8")))
            channels[channel.name] = channel
    return MappingProxyType(channels)
