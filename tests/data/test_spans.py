"""Spans of characters with weights: how they are read, refused, and carried over to tokens."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.data.spans import Span, read_spans, token_weights
from kdexport.errors import InputError

TEXT = "Fresh bread!"


def test_spans_are_read_in_their_order() -> None:
    found = read_spans([[6, 11, 0], [0, 5, 2.5]], TEXT, "data.jsonl:3")
    assert found == (Span(0, 5, 2.5), Span(6, 11, 0.0))
    assert read_spans([[0.0, 12.0, 1000]], TEXT, "") == (Span(0, 12, 1000.0),)  # as Parquet has it
    assert read_spans("[[0, 5, 2.5], [6, 11, 0]]", TEXT, "") == found  # a cell of a table
    assert read_spans([], TEXT, "") == ()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"0": 1}, "weights must be a list"),
        (0.5, "weights must be a list"),
        ("[[0, 1", "weights is not JSON"),
        ([0, 5, 2], r"weights: 0 is not \[begin, end, weight\]"),
        ([[0, 5]], r"weights: \[0, 5\] is not \[begin"),
        ([[0, "5", 2]], r"weights: \[0, '5', 2\] is not"),
        ([[0, True, 2]], "is not"),
        ([[0, 5, None]], "is not"),
        ([[0, 5, -1]], r"weights: -1 in \[0, 5, -1\] is no weight; use a number from 0 to 1000"),
        ([[0, 5, 1001]], "is no weight"),
        ([[0, 5, float("nan")]], "is no weight"),
        ([[0, 5, float("inf")]], "is no weight"),
        ([[-1, 5, 2]], r"weights: \[-1, 5, 2\] is not within the text of 12 characters; count"),
        ([[0, 13, 2]], "is not within"),
        ([[5, 5, 2]], "is not within"),
        ([[6, 5, 2]], "is not within"),
        ([[0.5, 5, 2]], "is not within"),
        ([[0, float("nan"), 2]], "is not within"),
        ([[4, 8, 2], [0, 5, 2]], r"weights: \[0, 5, 2\.0\] and \[4, 8, 2\.0\] overlap"),
        ([[0, 5, 0], [5, 12, 0]], "all characters have a weight of 0; leave the row out"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(weights: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_spans(weights, TEXT, "data.jsonl:3")
    assert caught.value.where == "data.jsonl:3"
    assert "\n" not in str(caught.value)


@given(st.data())
def test_a_token_has_the_weight_of_the_span_that_it_touches(data: st.DataObject) -> None:
    """Against a look at every character; of two spans the later one counts."""
    cuts = data.draw(st.lists(st.integers(0, 30), unique=True, min_size=2, max_size=9).map(sorted))
    spans = [
        Span(begin, end, weight)
        for begin, end in pairwise(cuts)
        if (weight := data.draw(st.sampled_from([None, 0.0, 0.5, 7.0]))) is not None
    ]
    ends = data.draw(st.lists(st.integers(1, 30), unique=True, min_size=1).map(sorted))
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    expected = []
    for begin, end in offsets:
        touched = [s.weight for s in spans if {*range(begin, end)} & {*range(s.begin, s.end)}]
        expected.append(touched[-1] if touched else 1.0)
    assert token_weights(spans, offsets) == expected


def test_spaces_without_a_token_s_offsets_belong_to_the_token_that_follows() -> None:
    """As byte-level tokenizers tell ' bread' where they trim offsets: without its space."""
    spans = read_spans([[5, 6, 3]], TEXT, "")
    assert token_weights(spans, [(0, 5), (6, 11), (11, 12)]) == [1, 3, 1]


def test_the_parts_of_one_character_have_its_weight() -> None:
    spans = read_spans([[1, 2, 3]], "aß!", "")
    assert token_weights(spans, [(0, 1), (1, 2), (1, 2), (2, 3)]) == [1, 3, 3, 1]


def test_spans_are_written_as_they_are_read() -> None:
    spans = read_spans([[0, 5, 2.5], [6, 11, 0]], TEXT, "")
    assert read_spans(json.loads(json.dumps(spans)), TEXT, "") == spans
