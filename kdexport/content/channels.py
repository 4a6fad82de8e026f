"""Channels: where copy appears. Each is a data file in the folder ``channels``."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import yaml
from pydantic import BaseModel, ConfigDict, Field


class Channel(BaseModel):
    """One place for copy. ``label`` and ``instruction`` are words of the prompt.

    ``opening``: the words that the copy begins with, given to the model instead of asked for;
    ``{product}`` stands for the product, ``{greeting}`` and ``{occasion}`` for the words that
    ``openings.yaml`` has for the brief's tone and campaign. A small model stays on the subject when
    it has begun.
    ``one_line``: the copy ends where its first line does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    label: str
    instruction: str
    opening: str = ""
    one_line: bool = True
    max_characters: int | None = Field(default=None, gt=0)
    max_new_tokens: int = Field(gt=0)
    source: str = ""


@cache
def load_channels() -> Mapping[str, Channel]:
    """All channels by name; read once."""
    channels = {}
    for entry in sorted(files("kdexport.content").joinpath("channels").iterdir(), key=str):
        if entry.name.endswith(".yaml"):
            channel = Channel.model_validate(yaml.safe_load(entry.read_text("utf-8")))
            channels[channel.name] = channel
    return MappingProxyType(channels)
