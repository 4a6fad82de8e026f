"""Around a graph that concatenates: buffers in, buffers out, each row's own tokens in between.

The graph inside is the smallest with a cache: a token's key is its id and its position, and the
logits are sums over the keys that the mask leaves in. The reference is numpy's, row by row.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper

from kdexport.errors import InputError
from kdexport.export.draft import Draft
from kdexport.export.passes.cache_in_place import cache_in_place, without_buffers
from tests.export.passes.test_small_passes import run, value

HEADS, CHANNELS, CAPACITY = 2, 3, 12
NAMES = ("past_key_values.0.key", "past_key_values.0.value")
WEIGHTS = {
    "axis": np.asarray([1, 3], dtype=np.int64),
    "mask_axes": np.asarray([1, 3], dtype=np.int64),
    "spread": np.arange(1, HEADS * CHANNELS + 1, dtype=np.float32).reshape(1, HEADS, 1, CHANNELS),
    "along": np.asarray([1, 2], dtype=np.int64),
    "hundred": np.asarray(100, dtype=np.int64),
}


def concatenating() -> Draft:
    nodes = [
        helper.make_node("Mul", ["input_ids", "hundred"], ["far"]),
        helper.make_node("Add", ["far", "position_ids"], ["told"]),
        helper.make_node("Cast", ["told"], ["token"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["token", "axis"], ["column"]),
        helper.make_node("Mul", ["column", "spread"], ["new"]),
        helper.make_node("Concat", [NAMES[0], "new"], ["present.0.key"], axis=2),
        helper.make_node("Concat", [NAMES[1], "new"], ["present.0.value"], axis=-2),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "mask_axes"], ["mask_column"]),
        helper.make_node("Mul", ["present.0.key", "mask_column"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "along"], ["logits"], keepdims=0),
    ]
    whole = TensorProto.INT64
    past = ["b", HEADS, "p", CHANNELS]
    inputs = [
        value("input_ids", ["b", "s"], whole),
        value("attention_mask", ["b", "t"], whole),
        value("position_ids", ["b", "s"], whole),
        *(value(name, past) for name in NAMES),
    ]
    outputs = [value("logits", ["b", CHANNELS])]
    outputs += [
        value(f"present.0.{part}", ["b", HEADS, "t", CHANNELS]) for part in ("key", "value")
    ]
    return Draft(helper.make_graph(nodes, "g", inputs, outputs), [], dict(WEIGHTS))


def keys(ids: list[int], begin: int = 0) -> np.ndarray:
    """float32 [H, tokens, D] of one row's tokens."""
    told = 100.0 * np.asarray(ids) + begin + np.arange(len(ids))
    return np.asarray(told[None, :, None] * WEIGHTS["spread"][0], dtype=np.float32)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([[]], [[4, 5, 6]]),
        ([[7, 8, 9]], [[4]]),
        ([[], [], []], [[4], [5, 6, 7], [8, 9]]),
        ([[1, 2], [3], [4, 5, 6, 7, 8]], [[9, 8], [7, 6, 5], [4]]),
        ([[], [3, 4]], [[5, 6], [7]]),
        ([[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], [5]], [[6], [7, 8, 9]]),  # to the last place
    ],
)
def test_each_row_goes_on_where_it_is(old: list[list[int]], new: list[list[int]]) -> None:
    draft = concatenating()
    cache_in_place(draft)
    n_rows, width = len(old), max(map(len, new))
    buffer = np.full((n_rows, HEADS, CAPACITY, CHANNELS), -7e4, dtype=np.float32)
    before = np.asarray([len(row) for row in old])
    ids = np.zeros((n_rows, width), dtype=np.int64)
    for row in range(n_rows):
        buffer[row, :, : len(old[row])] = keys(old[row])
        ids[row, : len(new[row])] = new[row]
    total = before + [len(row) for row in new]
    feeds = {
        "input_ids": ids,
        "position_ids": before[:, None] + np.arange(width),
        "seqlens_k": (total - 1).astype(np.int32),
        "total_sequence_length": np.asarray([total.max()], dtype=np.int32),
        **dict.fromkeys(NAMES, buffer),
    }
    logits, *presents = run(draft, feeds)
    for row in range(n_rows):
        expected = buffer[row].copy()
        expected[:, before[row] : total[row]] = keys(new[row], int(before[row]))
        for present in presents:
            np.testing.assert_array_equal(present[row], expected)
        # float32, of sums near a hundred thousand
        summed = expected[:, : total[row]].astype(np.float64).sum((0, 1))
        np.testing.assert_allclose(logits[row], summed, rtol=1e-6)


def test_what_stands_around_the_graph_comes_off() -> None:
    draft, plain = concatenating(), concatenating()
    cache_in_place(draft)
    assert {i.name for i in draft.graph.input} >= {"seqlens_k", "total_sequence_length"}
    without_buffers(draft)
    assert list(draft.graph.node) == list(plain.graph.node)


def test_a_graph_without_ours_stays() -> None:
    draft, plain = concatenating(), concatenating()
    without_buffers(draft)
    assert draft.graph == plain.graph


@pytest.mark.parametrize(
    ("strange", "words"),
    [
        (value("token_type_ids", ["b", "s"], TensorProto.INT64), "asks for token_type_ids"),
        (value("past_key_values.1.key", ["b", HEADS, "p", CHANNELS]), "keys and values of equal"),
        (value("past_key_values.0.scale", ["b", HEADS, "p", 1]), "keys and values of equal"),
    ],
)
def test_what_the_runtime_does_not_feed_is_refused(strange: object, words: str) -> None:
    draft = concatenating()
    draft.graph.input.append(strange)
    with pytest.raises(InputError, match=words):
        cache_in_place(draft)
