"""Pairs: a prompt and the copy that answers it, in a file that a person can read.

Knows files and the forms that users keep their data in; nothing of tokenizers or models.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kdexport.data.jsonl import parse_json
from kdexport.data.spans import MOST_WEIGHT, Span, read_spans
from kdexport.data.tables import Row, read_rows
from kdexport.errors import InputError
from kdexport.system.files import write_whole

Message = dict[str, str]
SPLITS = ("train", "validation", "test")
COLUMNS = (
    *("id", "split", "weight", "weights", "language"),
    *("messages", "prompt", "completion", "text"),
)


class HasSplit(Protocol):
    """A pair, or a brief that becomes one."""

    @property
    def split(self) -> str:
        """One of SPLITS."""
        ...


Item = TypeVar("Item", bound=HasSplit)


@dataclass(frozen=True)
class Pair:
    """Chat messages and their completion; without messages, the completion is plain text.

    A last message of the assistant's is the completion's opening, which is not learnt but given.
    ``completion``: "" where the teacher is to answer.
    ``weight``: what a token of it counts in the loss, beside 1 for one of any other pair.
    ``language``: its code; "" where nobody has said.
    ``spans``: characters of the completion that count more or less than that, in their order.
    ``where``: the file and the line that it was read from.
    """

    id: str
    split: str
    messages: tuple[Message, ...]
    completion: str
    weight: float = 1.0
    language: str = ""
    spans: tuple[Span, ...] = ()
    where: str = field(default="", compare=False)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write JSONL, whole or not at all, one pair in memory at a time."""
    write_whole(path, map(_line, pairs))


def _line(pair: Pair) -> str:
    row: dict[str, Any] = {"id": pair.id, "split": pair.split}
    if pair.weight != 1.0:
        row["weight"] = pair.weight
    if pair.language:
        row["language"] = pair.language
    if pair.spans:
        row["weights"] = pair.spans
    asked = {"messages": list(pair.messages), "completion": pair.completion}
    row |= asked if pair.messages else {"text": pair.completion}
    return json.dumps(row, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class PairFile:
    """The pairs of a file, read anew by every loop over it, as `read_pairs` gives them."""

    path: Path
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    seed: int = 0
    unanswered: bool = False

    def __iter__(self) -> Iterator[Pair]:
        shares = self.validation_fraction, self.test_fraction
        return read_pairs(self.path, *shares, self.seed, unanswered=self.unanswered)


def load_pairs(path: Path) -> list[Pair]:
    """All pairs of a file, each with an id of its own."""
    return with_own_ids(read_pairs(path))


def with_own_ids(pairs: Iterable[Pair]) -> list[Pair]:
    """All of some pairs. Raises InputError for an id that was used before."""
    found: list[Pair] = []
    seen: dict[str, str] = {}
    for pair in pairs:
        if pair.id in seen:
            raise InputError(
                f"id {pair.id!r} was used at {seen[pair.id]} already", where=pair.where
            )
        seen[pair.id] = pair.where
        found.append(pair)
    return found


def read_pairs(
    path: Path,
    validation_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 0,
    *,
    unanswered: bool = False,
) -> Iterator[Pair]:
    """Read rows that hold ``messages``, ``prompt`` + ``completion``, or ``text``, one by one.

    The file is one that `read_rows` reads. A row may carry ``id``, ``split``, ``weight``,
    ``weights`` and ``language``; where it has no split, one is drawn from a hash of its prompt and
    the seed, so that equal prompts never stand in two splits. ``unanswered``: a prompt may stand
    alone, and so may messages whose last is the user's. Raises InputError that names file, line and
    column.
    """
    for row in read_rows(path, COLUMNS):
        yield pair_of(row, validation_fraction, test_fraction, seed, unanswered=unanswered)


def pair_of(
    row: Row,
    validation_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 0,
    *,
    unanswered: bool = False,
) -> Pair:
    """The pair that a row holds; see `read_pairs`."""
    asked = _question(row.cells, row.where) if unanswered else []
    messages, completion = (asked, "") if asked else _contents(row.cells, row.where)
    own_name = row.cells.get("id")
    name = f"{row.unit}-{row.number}" if own_name is None else str(own_name)
    split = row.cells.get("split")
    if split is None:
        key = json.dumps(messages) if messages else completion
        split = draw_split(key, seed, validation_fraction, test_fraction)
    if split not in SPLITS:
        raise InputError(f"split is {split!r}", where=row.where, remedy="use " + ", ".join(SPLITS))
    language = row.cells.get("language") or ""
    if not isinstance(language, str):
        raise InputError("language is no text", where=row.where, remedy="use a code, as in de")
    given = row.cells.get("weights")
    spans = () if given is None else read_spans(given, completion, row.where)
    own = _weight(row), language, spans
    return Pair(name, split, tuple(messages), completion, *own, row.where)


def _weight(row: Row) -> float:
    """A row's weight, which a table may hold as text."""
    given = row.cells.get("weight")
    if given is None:
        return 1.0
    try:
        weight = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight <= MOST_WEIGHT:
        raise InputError(
            f"weight is {given!r}",
            where=row.where,
            remedy=f"use a number above 0, at most {MOST_WEIGHT:.0f}; leave the row out for 0",
        )
    return weight


def _question(row: dict[str, Any], where: str) -> list[Message]:
    """The prompt's messages of a row that has no answer to them; none where it has one."""
    if row.get("completion") not in (None, ""):
        return []
    if row.get("messages") is not None:
        messages = _messages(row["messages"], where)
        return messages if messages[-1]["role"] == "user" else []
    if row.get("prompt") is None:
        return []
    return [{"role": "user", "content": _text(row, "prompt", where)}]


def _contents(row: dict[str, Any], where: str) -> tuple[list[Message], str]:
    """The prompt's messages and the completion of one row, whichever form it has."""
    if "messages" in row:
        messages = _messages(row["messages"], where)
        if "completion" in row:
            return messages, _text(row, "completion", where)
        if messages[-1]["role"] != "assistant":
            raise InputError("the last message must be the assistant's", where=where)
        return messages[:-1], messages[-1]["content"]
    if "prompt" in row or "completion" in row:
        prompt = _text(row, "prompt", where)
        return [{"role": "user", "content": prompt}], _text(row, "completion", where)
    if "text" in row:
        return [], _text(row, "text", where)
    raise InputError(
        "holds neither messages, nor prompt and completion, nor text",
        where=where,
        remedy="see docs/recipes.md for the forms of data",
    )


def _messages(value: Any, where: str) -> list[Message]:
    if isinstance(value, str):  # a cell of a table
        value = parse_json(value, where, "messages")
    good = (
        isinstance(value, list)
        and value
        and all(
            isinstance(m, dict)
            and m.get("role") in ("system", "user", "assistant")
            and isinstance(m.get("content"), str)
            for m in value
        )
    )
    if not good:
        raise InputError(
            "messages must be a list of {role: system|user|assistant, content: text}", where=where
        )
    for number, message in enumerate(value, start=1):
        if message["role"] == "assistant" and not message["content"].strip():
            raise InputError(f"message {number}, the assistant's, is empty", where=where)
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key} is no text", where=where)
    if value is None or not value.strip():
        raise InputError(f"{key} is missing or empty", where=where)
    return value


def draw_split(key: str, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """A split by hash: the same key always falls into the same one."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def by_split(items: Sequence[Item], split: str, at_most: int | None = None) -> list[Item]:
    """The items of one split, the first ``at_most`` of them."""
    return [item for item in items if item.split == split][:at_most]


def within_limits(items: Sequence[Item], limits: Mapping[str, int | None]) -> list[Item]:
    """The first items of each split, as many as its limit allows; the splits in their order."""
    return [item for split in SPLITS for item in by_split(items, split, limits[split])]
