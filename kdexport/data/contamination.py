"""Training texts that stand among those a student is judged by, or nearly do.

A text is a prompt (but for its system message) and its completion. Knows no files and no models.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdexport.data.pairs import Pair

N_WORDS = 3  # of an n-gram
COMMON_SHARE = 0.1  # n-grams in more of the held-out texts are a template's
COMMON_LEAST = 20  # texts that an n-gram stands in before it can be a template's
N_NAMED = 5  # training texts that stand for all that are held out too
ROUNDING = 1e-9  # of a product of floats
WORD = re.compile(r"[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")
"""A word, or one sign of a script without spaces (Thai to Burmese, Khmer, kana, Han)."""


@dataclass(frozen=True)
class Match:
    """A held-out text that a training text is too near to: its id, how near, and whether equal."""

    held_out: str
    likeness: float
    is_equal: bool

    @property
    def reason(self) -> str:
        """Why the training text is dropped."""
        return f"{'equal to' if self.is_equal else 'nearly'} a held-out text"


class Overlap:
    """Training texts that are held out too, or nearly: how many, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[tuple[str, Match]] = []

    def add(self, training: str, match: Match) -> None:
        """Count a training text, by its id."""
        self.count += 1
        if len(self._first) < N_NAMED:
            self._first.append((training, match))

    @property
    def example(self) -> str:
        """The first of them, in words."""
        training, match = self._first[0]
        how = "equal" if match.is_equal else f"likeness {match.likeness:.2f}"
        return f"{training!r} is like {match.held_out!r} ({how})"

    def as_json(self) -> dict[str, Any]:
        """``{count, examples}``; likeness is 1 for texts that are equal."""
        examples = [
            {"training": name, "held_out": match.held_out, "likeness": round(match.likeness, 3)}
            for name, match in self._first
        ]
        return {"count": self.count, "examples": examples}


class HeldOut:
    """Held-out texts, by which training texts are looked up one by one.

    Texts are compared after NFKC, case folding and collapsing white space. Nearness is the Jaccard
    index of their sets of three words in a row (Broder 1997, section 2), computed exactly: with no
    sketch of the sets, but only against those that share a rare enough row of words to be near
    (prefix filtering, Chaudhuri et al. 2006, section 4). Rows of words that stand in more than a
    tenth of the held-out texts belong to a template and count for neither side.
    """

    def __init__(self, pairs: Iterable[Pair], threshold: float) -> None:
        self._threshold = threshold
        self._whole: dict[str, str] = {}
        self._names: list[str] = []
        self._sets: list[set[str]] = []
        for pair in pairs:
            text = normalised(text_of(pair))
            self._whole.setdefault(text, pair.id)
            self._names.append(pair.id)
            self._sets.append(n_grams(text))
        held = Counter(gram for grams in self._sets for gram in grams)
        common = max(COMMON_LEAST, COMMON_SHARE * len(self._names))
        self._template = {gram for gram, n in held.items() if n > common}
        self._holders: dict[str, list[int]] = {}
        for number, grams in enumerate(self._sets):
            grams -= self._template
            for gram in grams:
                self._holders.setdefault(gram, []).append(number)

    def match(self, pair: Pair) -> Match | None:
        """The held-out text that a pair equals or is nearest to, where it is near enough."""
        text = normalised(text_of(pair))
        if text in self._whole:
            return Match(self._whole[text], 1.0, True)
        own = n_grams(text) - self._template
        best, nearest = 0.0, -1
        for number in sorted(self._candidates(own)):
            n_shared = len(own & self._sets[number])
            likeness = n_shared / (len(own) + len(self._sets[number]) - n_shared)
            if likeness > best:
                best, nearest = likeness, number
        if nearest < 0 or best < self._threshold:
            return None
        return Match(self._names[nearest], best, False)

    def _candidates(self, own: set[str]) -> set[int]:
        """The held-out texts that can be near enough.

        One that is shares at least threshold · |own| rows of words. Of those that any text holds,
        all but so many less one may be missing from it, so it holds one of the rarest others.
        """
        least = max(1, math.ceil(self._threshold * len(own) - ROUNDING))
        there = sorted((gram for gram in own if gram in self._holders), key=self._n_holders)
        rarest = there[: max(0, len(there) - least + 1)]
        return {number for gram in rarest for number in self._holders[gram]}

    def _n_holders(self, gram: str) -> int:
        return len(self._holders[gram])


def text_of(pair: Pair) -> str:
    """A pair as one text."""
    asked = [m["content"] for m in pair.messages if m["role"] != "system"]
    return "\n".join([*asked, pair.completion])


def normalised(text: str) -> str:
    """NFKC, folded case, one space in place of any white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def n_grams(text: str) -> set[str]:
    """The rows of `N_WORDS` words of a normalised text."""
    words = WORD.findall(text)
    return {" ".join(words[i : i + N_WORDS]) for i in range(len(words) - N_WORDS + 1)}
