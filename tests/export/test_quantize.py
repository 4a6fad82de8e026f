"""Rounding against its definition, and the graph against numpy's integer arithmetic."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from kdexport.export.draft import Draft, save_drafts
from kdexport.export.quantize import (
    dequantize,
    int8_products,
    normalized_rows,
    quantize_columns,
)


def random_matrix(seed: int, k: int = 24, n: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(k, n)) * rng.uniform(0.01, 10, n)).astype(np.float32)


@given(seed=st.integers(0, 10_000), signed=st.booleans())
def test_no_weight_moves_further_than_its_channel_allows(seed: int, signed: bool) -> None:
    weights = random_matrix(seed)
    matrix = quantize_columns(weights, signed=signed)
    assert matrix.values.dtype == (np.int8 if signed else np.uint8)
    clipped = 0.15 * np.abs(weights).max(0)  # the narrowest range tried is 0.85 of the whole
    error = np.abs(dequantize(matrix) - weights)
    assert (error <= np.maximum(clipped, 0) + matrix.scale).all()


@given(seed=st.integers(0, 10_000), signed=st.booleans())
def test_clipping_never_costs_more_than_not_clipping(seed: int, signed: bool) -> None:
    from kdexport.export.quantize import _round

    weights = random_matrix(seed)
    chosen = np.square(dequantize(quantize_columns(weights, signed=signed)) - weights).sum(0)
    plain = np.square(dequantize(_round(weights, 1.0, signed)) - weights).sum(0)
    assert (chosen <= plain + 1e-6).all()


def test_zero_stays_zero() -> None:
    weights = np.zeros((8, 3), dtype=np.float32)
    weights[0] = [5, 0, -2]
    for signed in (True, False):
        assert (dequantize(quantize_columns(weights, signed=signed))[1:] == 0).all()


def product_draft(weights: np.ndarray) -> Draft:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weights.shape[1]])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return Draft(graph, opsets, {"w": weights})


def run(draft: Draft, folder: object, x: np.ndarray) -> np.ndarray:
    draft.remove_unused()
    save_drafts({"m.onnx": draft}, folder, "w.bin")  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (y,) = onnxruntime.InferenceSession(str(folder / "m.onnx"), options).run(None, {"x": x})  # type: ignore[operator]
    return np.asarray(y)


def numpy_int8(x: np.ndarray, weights: np.ndarray, signed: bool) -> np.ndarray:
    """One asymmetric uint8 scale for all of x, integers multiplied exactly."""
    matrix = quantize_columns(weights, signed=signed)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    q = np.clip(np.rint(x / scale) + zero, 0, 255)
    shifted = matrix.values.astype(np.int64) - matrix.zero_point.astype(np.int64)
    return ((q - zero).astype(np.int64) @ shifted) * (scale * matrix.scale)


# Signed weights are exact only where the CPU multiplies them so (VNNI); unsigned ones everywhere.
@pytest.mark.parametrize("rows", [1, 7])
def test_the_portable_product_is_numpys(tmp_path: object, rows: int) -> None:
    weights = random_matrix(3, k=64, n=40)
    x = np.random.default_rng(0).normal(size=(rows, 64)).astype(np.float32) * 3
    draft = product_draft(weights)
    int8_products(draft, signed=False)
    expected = numpy_int8(x, weights, signed=False)
    np.testing.assert_allclose(run(draft, tmp_path, x), expected, rtol=1e-4, atol=1e-3)


def test_normalised_rows_do_not_disturb_each_other(tmp_path: object) -> None:
    weights = random_matrix(4, k=64, n=40)
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    x[2] *= 1000  # an outlier row
    plain = product_draft(weights)
    int8_products(plain, signed=False)
    spoiled = np.abs(run(plain, tmp_path, x) - x @ weights)[[0, 1, 3, 4]].max()
    careful = product_draft(weights)
    int8_products(careful, signed=False)
    normalized_rows(careful)
    kept = np.abs(run(careful, tmp_path, x) - x @ weights)[[0, 1, 3, 4]].max()
    assert kept < spoiled / 20
