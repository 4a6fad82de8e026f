"""The data card of a run: what was kept and what it is like, what was dropped and why.

Counts what it is told of, one pair after another; knows no data files, tokenizers or models.
"""

import importlib.util
import json
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.data.pairs import SPLITS, Pair
from kdexport.system.files import write_whole

CARD = "data_card.json"
N_NAMED = 5  # ids that stand for all that were dropped for a reason
N_IDENTIFIED = 10_000  # completions of each split whose language is looked at
N_CHARACTERS = 1000  # of each
N_LANGUAGES = 3  # that a line names
LEAST_SURE = 0.5  # probability below which a language is "und", ISO 639's undetermined
NOT_IDENTIFIED = "the language of copy is not checked: pip install 'kdexport[languages]'"
Identify = Callable[[str], str]


class Drops:
    """What was dropped: how many for each reason, and the first ids."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._named: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one."""
        self.counts[reason] += 1
        named = self._named.setdefault(reason, [])
        if len(named) < N_NAMED:
            named.append(name)

    def __str__(self) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in self.counts.most_common()) or "none"

    def as_json(self) -> dict[str, Any]:
        """``{reason: {count, examples}}``."""
        return {
            reason: {"count": n, "examples": self._named[reason]}
            for reason, n in self.counts.most_common()
        }


class DataCard:
    """Counts and lengths of each split, its languages and channels.

    ``identify``: the language of a text, None where nothing here can tell.
    """

    def __init__(self, identify: Identify | None) -> None:
        self._identify = identify
        self._splits = {split: _Split() for split in SPLITS}

    def add(
        self, pair: Pair, prompt_tokens: int, completion_tokens: int, channel: str | None = None
    ) -> None:
        """Count one pair that is kept."""
        split = self._splits[pair.split]
        split.characters.append(len(pair.completion))
        split.prompt_tokens.append(prompt_tokens)
        split.completion_tokens.append(completion_tokens)
        split.weighted += pair.weight != 1.0
        split.with_spans += bool(pair.spans)
        if channel is not None:
            split.channels[channel] += 1
        if self._identify and len(split.characters) <= N_IDENTIFIED:
            split.languages[self._identify(pair.completion[:N_CHARACTERS])] += 1

    def n_pairs(self, *splits: str) -> int:
        """How many are kept in some splits."""
        return sum(len(self._splits[split].characters) for split in splits)

    def as_json(self) -> dict[str, Any]:
        """One entry a split."""
        return {name: split.as_json() for name, split in self._splits.items()}


class _Split:
    """The numbers of one split, four bytes each."""

    def __init__(self) -> None:
        self.characters = array("I")
        self.prompt_tokens = array("I")
        self.completion_tokens = array("I")
        self.languages: Counter[str] = Counter()
        self.channels: Counter[str] = Counter()
        self.weighted = 0
        self.with_spans = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "pairs": len(self.characters),
            "weighted_pairs": self.weighted,
            "pairs_with_weighted_spans": self.with_spans,
            "completion_characters": spread_of(self.characters),
            "prompt_tokens": spread_of(self.prompt_tokens),
            "completion_tokens": spread_of(self.completion_tokens),
            "languages": dict(self.languages.most_common()),
            "channels": dict(self.channels.most_common()),
        }


def spread_of(numbers: "array[int]") -> Mapping[str, float] | None:
    """Sum, mean, median, 90th percentile (values that occur, rounded up) and maximum."""
    if not numbers:
        return None
    values = np.asarray(numbers)
    half, most = np.percentile(values, [50, 90], method="inverted_cdf")
    return {
        "total": int(values.sum(dtype=np.int64)),
        "mean": round(float(values.mean()), 1),
        "p50": int(half),
        "p90": int(most),
        "max": int(values.max()),
    }


def language_identifier() -> Identify | None:
    """Language codes of texts (Lui & Baldwin 2012, langid.py), where py3langid is installed."""
    if importlib.util.find_spec("py3langid") is None:
        return None
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(text: str) -> str:
        code, probability = identifier.classify(text)
        return str(code) if probability >= LEAST_SURE else "und"

    return identify


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a run's folder; empty where there is none."""
    path = folder / CARD
    card: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return card


def amend_card(folder: Path, content: Mapping[str, Any]) -> None:
    """Put keys into the card of a run's folder; others stay. A value of None takes its key away."""
    card = {**read_card(folder), **content}
    card = {name: value for name, value in card.items() if value is not None}
    write_whole(folder / CARD, [json.dumps(card, indent=1, ensure_ascii=False)])


def in_words(card: Mapping[str, Any]) -> dict[str, str]:
    """A line for each split that has pairs, each reason to drop some, each fault of those kept."""
    told: dict[str, str] = {}
    for name, split in card.get("splits", {}).items():
        if split["pairs"]:
            tokens = [split[part]["mean"] for part in ("prompt_tokens", "completion_tokens")]
            lengths = " + ".join(f"{mean:.0f}" for mean in tokens)
            languages = sum(split["languages"].values())
            shares = [
                f", {100 * n / languages:.0f} % {language}"
                for language, n in list(split["languages"].items())[:N_LANGUAGES]
            ]
            told[name] = f"{split['pairs']:,} pairs, {lengths} tokens on average{''.join(shares)}"
    for reason, found in {
        **card.get("dropped", {}),
        **card.get("left_out_of_training", {}),
    }.items():
        told[reason] = f"{found['count']:,} dropped"
    for fault, found in card.get("review", {}).get("kept", {}).items():
        told[f"fails by {fault}"] = f"{found['count']:,} kept"
    return told
