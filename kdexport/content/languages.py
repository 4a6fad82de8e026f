"""Languages of copy: how a model is asked in each, and what its words and figures look like.

Each is a data file in the folder ``languages``, named by its code (ISO 639-1).
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import yaml
from pydantic import BaseModel, ConfigDict, Field


class Language(BaseModel):
    """A language. ``{words}`` in ``occasion``, ``details`` and ``asks`` is what a brief says.

    ``request``: the words of a prompt; `kdexport.content.prompts` says what its places are.
    ``words``: tones, audiences and campaigns that a brief names in English.
    ``inflections``: ``ending>base``, by which forms of a word are known as one (`words_match`);
    ``undouble``: what a rule leaves may end in a letter twice; ``irregular``: forms that no rule
    finds; ``uninflected``: words that rules would take for a form of another.
    ``leads`` and ``labels``: what a model begins with before its copy ("Here is …:", "Subject:").
    ``elisions``: what stands before an apostrophe as a word of its own.
    ``numbers``: in words; ``ones``: words that are numbers beside others only, as an article is;
    ``tens_and_ones``: how the two are put together. ``numerals``: characters by their values, which
    are a number before one of ``counted``. ``discounts``: what follows the tenths that are left to
    pay; ``percents``: phrases that say a percentage.
    ``months``: twelve, each with its abbreviations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    name: str
    request: str
    system: str
    between: str = ", "
    occasion: str
    details: str
    asks: dict[str, str]
    words: dict[str, str] = {}
    inflections: tuple[str, ...] = ()
    undouble: bool = False
    leads: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    irregular: tuple[tuple[str, ...], ...] = ()
    uninflected: tuple[str, ...] = ()
    elisions: tuple[str, ...] = ()
    percent: tuple[str, ...] = ()
    currencies: dict[str, str] = {}
    multipliers: dict[str, int] = {}
    numbers: dict[str, int] = {}
    ones: dict[str, int] = {}
    tens_and_ones: tuple[str, ...] = ()
    numerals: dict[str, int] = {}
    counted: tuple[str, ...] = ()
    discounts: tuple[str, ...] = ()
    percents: dict[str, int] = {}
    months: tuple[tuple[str, ...], ...] = Field(default=(), max_length=12)

    @property
    def rules(self) -> list[tuple[str, str]]:
        """The inflections as pairs of an ending and what stands in its place."""
        pairs = (rule.partition(">") for rule in self.inflections)
        return [(ending, base) for ending, _, base in pairs]


@cache
def load_languages() -> Mapping[str, Language]:
    """All languages by code; read once."""
    languages = {}
    for entry in sorted(files("kdexport.content").joinpath("languages").iterdir(), key=str):
        code, _, kind = entry.name.rpartition(".")
        if kind == "yaml":
            content = yaml.safe_load(entry.read_text("utf-8"))
            languages[code] = Language.model_validate({"code": code, **content})
    return MappingProxyType(languages)
