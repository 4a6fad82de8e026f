"""Spans of a text's characters that have weights of their own: as they are given, and by tokens.

Knows no files and no tokenizers: which characters a token has, a tokenizer's offsets tell.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from kdexport.data.jsonl import parse_json
from kdexport.errors import InputError

MOST_WEIGHT = 1000.0


class Span(NamedTuple):
    """Characters from ``begin`` up to ``end``, as Python counts them, and what they count."""

    begin: int
    end: int
    weight: float


def read_spans(value: Any, text: str, where: str) -> tuple[Span, ...]:
    """The spans of a text in their order, from ``weights``: ``[[begin, end, weight], ...]``.

    A table may hold it as text. Raises InputError for spans that are not within the text, overlap,
    or leave nothing of it to learn.
    """
    if isinstance(value, str):
        value = parse_json(value, where, "weights")
    if not isinstance(value, list):
        raise InputError("weights must be a list of [begin, end, weight]", where=where)
    spans = sorted(_span(one, text, where) for one in value)
    for one, other in pairwise(spans):
        if other.begin < one.end:
            raise InputError(f"weights: {[*one]} and {[*other]} overlap", where=where)
    n_silenced = sum(span.end - span.begin for span in spans if span.weight == 0)
    if n_silenced == len(text):
        raise InputError(
            "weights: all characters have a weight of 0", where=where, remedy="leave the row out"
        )
    return tuple(spans)


def _span(value: Any, text: str, where: str) -> Span:
    numbers = value if isinstance(value, list) and len(value) == 3 else ()
    if not numbers or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise InputError(f"weights: {value!r} is not [begin, end, weight]", where=where)
    begin, end, weight = numbers
    if not 0 <= weight <= MOST_WEIGHT:
        raise InputError(
            f"weights: {weight!r} in {value!r} is no weight",
            where=where,
            remedy=f"use a number from 0 to {MOST_WEIGHT:.0f}",
        )
    if not (0 <= begin < end <= len(text) and begin == int(begin) and end == int(end)):
        raise InputError(
            f"weights: {value!r} is not within the text of {len(text)} characters",
            where=where,
            remedy="count from 0; the end is the first character after the span",
        )
    return Span(int(begin), int(end), float(weight))


def token_weights(spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[float]:
    """What each token counts: as the last span says that touches it, else 1.

    ``spans``: in their order. ``offsets``: where each token's characters begin and end. Spaces that
    a tokenizer leaves out of them belong to the token that follows.
    """
    begins = [span.begin for span in spans]
    weights = [1.0] * len(offsets)
    reached = 0
    for number, (begin, end) in enumerate(offsets):
        last = bisect_left(begins, end) - 1  # that begins before the token ends
        if last >= 0 and spans[last].end > min(begin, reached):
            weights[number] = spans[last].weight
        reached = max(reached, end)
    return weights
