"""What a sweep searches: `KEY=LOW..HIGH` and `KEY=A,B,C`, and one value of each for a trial.

Knows recipes and their fields; not how values are chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.errors import InputError
from kdexport.recipe import Recipe, field_kinds, load_recipe

SEARCHED = ("train", "student")  # sections; data and teacher are every trial's
UNLIKE = ("student.vocab_size", "train.max_length", "train.quantize_aware")
"""Fields that change what is judged: other tokens, other texts, other arithmetic."""
WIDE = 10.0  # of a range whose ends are that far apart, logarithms are drawn from


@dataclass(frozen=True)
class Search:
    """One searched field: either ``choices``, as they are written, or a range.

    ``is_whole``: of whole numbers. ``in_logs``: equal factors count alike, not equal differences.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False
    in_logs: bool = False

    def written(self, value: Any) -> str:
        """A value as an override of the recipe."""
        return f"{self.key}={value:.4g}" if isinstance(value, float) else f"{self.key}={value}"

    def holds(self, value: Any) -> bool:
        """Whether a value of a recipe is one that is searched."""
        if self.choices:
            return str(value) in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def ends(self) -> tuple[str, ...]:
        """What a recipe must take for all else to be taken."""
        if self.choices:
            return tuple(f"{self.key}={choice}" for choice in self.choices)
        return self.written(self._typed(self.low)), self.written(self._typed(self.high))

    def _typed(self, value: float) -> float | int:
        return int(value) if self.is_whole else value


def parse_search(text: str) -> Search:
    """A search as it is written on the command line. Raises InputError."""
    where = f"--search {text}"
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not values.strip():
        raise InputError("is not KEY=LOW..HIGH or KEY=A,B,C", where=where)
    if key.partition(".")[0] not in SEARCHED or "." not in key:
        raise InputError(
            "cannot be searched: all trials share teacher and data",
            where=where,
            remedy="search a field of " + " or ".join(SEARCHED),
        )
    if key in UNLIKE:
        raise InputError(
            "cannot be searched: the KL of its values is not of the same thing", where=where
        )
    if ".." not in values:
        return Search(key, tuple(value.strip() for value in values.split(",")))
    kinds = field_kinds(key)
    low, high = (_number(end, where) for end in values.split("..", 1))
    if not low < high:
        raise InputError("its range is empty", where=where, remedy="write LOW..HIGH")
    is_whole = int in kinds and float not in kinds
    if is_whole and not (low.is_integer() and high.is_integer()):
        raise InputError("is a field of whole numbers", where=where)
    in_logs = low > 0 and high / low >= WIDE
    return Search(key, (), low, high, is_whole, in_logs)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{text.strip()!r} is no number", where=where)
    return value


def check_searches(path: Path, overrides: Sequence[str], searches: Sequence[Search]) -> None:
    """Refuse what no recipe can hold, before there is any trial."""
    keys = [search.key for search in searches]
    for key in {key for key in keys if keys.count(key) > 1}:
        raise InputError("is searched twice", where=f"--search {key}")
    for search in searches:
        for end in search.ends():
            try:
                _check_ranked(load_recipe(path, [*overrides, end]))
            except InputError as error:
                where = f"--search {search.key}" if search.key in error.where else error.where
                raise InputError(error.message, where=where, remedy=error.remedy) from None


def _check_ranked(recipe: Recipe) -> None:
    """Refuse what has no KL to rank trials by."""
    if recipe.train.across_tokens:
        raise InputError(
            "no KL is measured with uld, and trials are ranked by it", where="train.loss"
        )


def value_of(recipe: Recipe, key: str) -> Any:
    """What a recipe says of a key; a schedule that stays is its number."""
    value: Any = recipe.model_dump(mode="json", by_alias=True)
    for part in key.split("."):
        value = value[part]
    if isinstance(value, dict) and value.get("start") == value.get("end"):
        return value.get("start")
    return value
