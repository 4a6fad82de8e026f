"""However an exporter wrote its weights: they are plain afterwards, for the same function."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from kdexport.export.draft import Draft
from kdexport.export.passes.plain_weights import plain_weights
from tests.export.passes.test_small_passes import run, value

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4)).astype(np.float32)
W = RNG.normal(size=(4, 5)).astype(np.float32)
B = RNG.normal(size=5).astype(np.float32)


def draft_of(nodes: list[object], weights: dict[str, np.ndarray]) -> Draft:
    graph = helper.make_graph(nodes, "g", [value("x", [3, 4])], [value("y", [3, 5])])
    return Draft(graph, [], weights)


@pytest.mark.parametrize(
    ("weight", "inputs", "attributes", "expected"),
    [
        (W, ["x", "w", "b"], {}, X @ W + B),
        (W, ["x", "w"], {"alpha": 1.0, "transA": 0}, X @ W),
        (W.T, ["x", "w", "b"], {"transB": 1, "beta": 1.0}, X @ W + B),
    ],
)
def test_gemm_becomes_a_product(
    weight: np.ndarray, inputs: list[str], attributes: dict[str, float], expected: np.ndarray
) -> None:
    nodes = [helper.make_node("Gemm", inputs, ["y"], **attributes)]
    draft = draft_of(nodes, {"w": weight, "b": B})
    plain_weights(draft)
    draft.remove_unused()
    assert [node.op_type for node in draft.graph.node] == ["MatMul", "Add"][: len(inputs) - 1]
    assert len(list(draft.products())) == 1
    np.testing.assert_allclose(run(draft, {"x": X})[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_gemm_with_factors_stays(attributes: dict[str, float]) -> None:
    draft = draft_of([helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)], {"w": W})
    plain_weights(draft)
    assert [node.op_type for node in draft.graph.node] == ["Gemm"]


@pytest.mark.parametrize("attributes", [{}, {"perm": [1, 0]}])
def test_what_is_made_of_a_weight_alone_is_one(attributes: dict[str, list[int]]) -> None:
    nodes = [
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("Transpose", ["same"], ["turned"], **attributes),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    draft = draft_of(nodes, {"w": W.T.copy()})
    plain_weights(draft)
    draft.remove_unused()
    assert [node.op_type for node in draft.graph.node] == ["MatMul"]
    np.testing.assert_allclose(run(draft, {"x": X})[0], X @ W, rtol=1e-5, atol=1e-6)


def test_the_look_up_comes_first_and_reads_the_ids_themselves() -> None:
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Reshape", ["input_ids", "shape"], ["view"]),
        helper.make_node("Gather", ["table", "view"], ["y"]),
    ]
    ids = np.asarray([[1, 0, 3]])
    graph = helper.make_graph(
        nodes, "g", [value("input_ids", [1, 3], TensorProto.INT64)], [value("y", [1, 3, 5])]
    )
    draft = Draft(graph, [], {"table": W})
    plain_weights(draft)
    first = draft.graph.node[0]
    assert (first.op_type, list(first.input)) == ("Gather", ["table", "input_ids"])
    draft.remove_unused()
    np.testing.assert_array_equal(run(draft, {"input_ids": ids})[0], W[ids])
