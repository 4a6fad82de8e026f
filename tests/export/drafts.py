"""Small graphs for the tests of quantization, and how they are run."""

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from kdexport.bundle import Bundle
from kdexport.export.calibrate import feeds
from kdexport.export.draft import Draft, graph_bytes
from kdexport.export.rounding import Rounded

Array = np.ndarray[Any, Any]


def product_draft(weights: Array) -> Draft:
    """y = MatMul(x, w)."""
    n_rows, n_columns = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", n_rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", n_columns])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return Draft(graph, opsets, {"w": weights})


def opened(draft: Draft) -> Any:
    """An ONNX Runtime session of a draft, its weights inside; one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    content = graph_bytes(draft, {}, "")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(draft: Draft, **inputs: Array) -> list[Array]:
    """The outputs of a draft."""
    return [np.asarray(found) for found in opened(draft).run(None, inputs)]


def logits(bundle: Bundle, draft: Draft, ids: Array) -> Array:
    """What a bundle's draft computes of one text, float32 [S, V]."""
    session = opened(draft)
    return np.asarray(session.run(["logits"], feeds(bundle, session, ids))[0])


def correlated(n_rows: int, n_channels: int, seed: int = 0) -> Array:
    """Activations as models have them: channels that go together, some of them large."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n_rows, n_channels)) @ rng.normal(size=(n_channels, n_channels))
    return np.asarray(mixed * rng.lognormal(sigma=1.0, size=n_channels), dtype=np.float32)


def matrix(n_rows: int, n_columns: int, seed: int = 0) -> Array:
    """Weights whose columns differ in size."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(size=(n_rows, n_columns)) * rng.uniform(0.01, 10, n_columns)
    return np.asarray(wide, dtype=np.float32)


def some_rows(n: int, n_channels: int) -> Array:
    """Activations of which the third is an outlier and the last is all zeros."""
    x = np.random.default_rng(0).normal(size=(n, n_channels)).astype(np.float32)
    x[2 % n] *= 1000
    x[-1] = 0
    return x


def integer_product(x: Array, rounded: Rounded) -> Array:
    """Each row in 255 steps of its own largest value; whole numbers multiplied exactly."""
    step = np.float32(1 / 127)
    largest = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-12))
    whole = np.rint(x / largest / step).astype(np.int64)
    weights = (rounded.values - rounded.zero_point).astype(np.int64)
    return np.asarray((whole @ weights) * (step * rounded.scale.astype(np.float64)) * largest)
