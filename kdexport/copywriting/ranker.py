"""How likely a text is clicked, by a linear model of its words: a file of named weights.

Needs the standard library only. `kdexport.copywriting.clicks` makes one.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import regex
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdexport.content.checks import WORDS
from kdexport.data.contamination import normalised
from kdexport.errors import InputError
from kdexport.system.files import write_whole

MOST_BYTES = 64 * 2**20
FIGURE = regex.compile(r"\d+(?:[.,]\d+)*")
PRICE = regex.compile(r"[%\p{Sc}]")
EMOJI = regex.compile(r"\p{Emoji_Presentation}|\ufe0f")


def features(text: str, channel: str, segment: str) -> dict[str, float]:
    """What is looked at of a text, by name.

    Words and pairs of words without case, each figure as 0, 1 / √n of n of them; words with the
    segment that reads them; channel and segment; length and signs.
    """
    folded = normalised(text)
    words = WORDS.findall(FIGURE.sub(" 0 ", folded))
    grams = Counter(f"word {word}" for word in words)
    grams.update(f"pair {one} {other}" for one, other in pairwise(words))
    if segment:
        grams.update(f"word {word} for {segment}" for word in words)
    norm = math.sqrt(grams.total())
    letters = [sign for sign in text if sign.isalpha()]
    return {
        **{name: n / norm for name, n in grams.items()},
        f"channel {channel}": 1.0,
        f"segment {segment}": 1.0,
        "length": math.log1p(len(text)),
        "words": math.log1p(len(words)),
        "figures": float(bool(FIGURE.search(text))),
        "price or percentage": float(bool(PRICE.search(text))),
        "exclamation": float("!" in folded),
        "question": float("?" in folded),
        "emoji": float(bool(EMOJI.search(text))),
        "capitals": sum(sign.isupper() for sign in letters) / max(1, len(letters)),
    }


class Ranker(BaseModel):
    """A linear model. ``held_out``: what was measured on texts that it had not learnt."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["kdexport-ranker-1"] = "kdexport-ranker-1"
    intercept: float
    weights: dict[str, float] = Field(max_length=2_000_000)
    held_out: dict[str, Any] = {}

    def logit(self, text: str, channel: str, segment: str = "") -> float:
        """The log-odds that a text is clicked where it is shown."""
        found = features(text, channel, segment)
        return self.intercept + sum(self.weights.get(name, 0.0) * x for name, x in found.items())

    def score(self, text: str, channel: str, segment: str = "") -> float:
        """The probability that a text is clicked where it is shown."""
        return (1 + math.tanh(self.logit(text, channel, segment) / 2)) / 2


def save_ranker(path: Path, ranker: Ranker) -> None:
    """Write a ranker as JSON, whole or not at all."""
    content: Mapping[str, Any] = ranker.model_dump()
    write_whole(path, [json.dumps(content, ensure_ascii=False, indent=1) + "\n"])


def load_ranker(path: Path) -> Ranker:
    """Read a ranker. Raises InputError for a file that is none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError("is too large for a ranker", where=str(path))
        return Ranker.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except ValidationError:
        remedy = "make one by kdexport content learn"
        raise InputError("is no ranker", where=str(path), remedy=remedy) from None
