"""Passes of a few lines: what they leave of a graph, run by ONNX Runtime."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from kdexport.export.draft import Draft
from kdexport.export.passes.folded_weights import folded_weights
from kdexport.export.passes.one_head_norm import one_head_norm
from kdexport.export.passes.own_embedding import own_embedding
from kdexport.export.passes.stated_widths import stated_widths

N_Q, N_KV, D = 3, 2, 8
RNG = np.random.default_rng(0)


def run(draft: Draft, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    graph = draft.copy().graph
    graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in draft.weights.items())
    opset = [helper.make_opsetid("", 24)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(found) for found in session.run(None, feeds)]


def value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> object:
    return helper.make_tensor_value_info(name, kind, shape)


def test_sums_of_weights_are_done_once() -> None:
    weight = RNG.normal(size=4).astype(np.float32)
    nodes = [
        helper.make_node("Add", ["w", "one"], ["w1"]),
        helper.make_node("Add", ["x", "w1"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", [4])], [value("y", [4])])
    draft = Draft(graph, [], {"w": weight, "one": np.float32(1) * np.ones((), dtype=np.float32)})
    folded_weights(draft)
    assert [node.op_type for node in draft.graph.node] == ["Add"]
    draft.remove_unused()
    assert set(draft.weights) == {"w1"}
    x = RNG.normal(size=4).astype(np.float32)
    np.testing.assert_allclose(run(draft, {"x": x})[0], x + (weight + 1), rtol=1e-6)


def embedding_draft() -> Draft:
    nodes = [
        helper.make_node("Gather", ["E", "input_ids"], ["e"]),
        helper.make_node("Mul", ["e", "rounded"], ["y"]),
    ]
    ids = value("input_ids", [2], TensorProto.INT64)
    graph = helper.make_graph(nodes, "g", [ids], [value("y", [2, 4])])
    table = np.ones((3, 4), dtype=np.float32)
    return Draft(graph, [], {"E": table, "rounded": np.asarray(9.8, dtype=np.float32)})


def test_embeddings_are_scaled_as_the_model_says() -> None:
    draft = embedding_draft()
    own_embedding(draft, 96**0.5)
    (found,) = run(draft, {"input_ids": np.array([0, 2])})
    np.testing.assert_allclose(found, 96**0.5, rtol=1e-7)
    unsaid = embedding_draft()
    own_embedding(unsaid, None)
    np.testing.assert_allclose(run(unsaid, {"input_ids": np.array([0, 2])})[0], 9.8, rtol=1e-7)


def heads_draft(*, epsilons: tuple[float, float]) -> Draft:
    """q, k and v of one product, q and k normed by heads; Concat stands in for their reading."""
    nodes = [helper.make_node("Split", ["x", "sizes"], ["q", "k", "v"], axis=-1)]
    for name, epsilon in zip("qk", epsilons, strict=True):
        nodes += [
            helper.make_node("Reshape", [name, "to_heads"], [f"{name}4"]),
            helper.make_node(
                "RMSNormalization", [f"{name}4", f"w{name}"], [f"{name}n"], epsilon=epsilon, axis=-1
            ),
            helper.make_node("Reshape", [f"{name}n", "flat"], [f"{name}3"]),
        ]
    nodes.append(helper.make_node("GroupQueryAttention", ["q3", "k3", "v"], ["y"]))
    width = (N_Q + 2 * N_KV) * D
    graph = helper.make_graph(
        nodes, "g", [value("x", [1, "s", width])], [value("y", [1, "s", width])]
    )
    weights = {
        "sizes": np.array([N_Q * D, N_KV * D, N_KV * D]),
        "to_heads": np.array([0, 0, -1, D]),
        "flat": np.array([0, 0, -1]),
        "wq": RNG.normal(size=D).astype(np.float32),
        "wk": RNG.normal(size=D).astype(np.float32),
    }
    return Draft(graph, [], weights)


def joined(draft: Draft) -> Draft:
    """The draft with a Concat in the place of its attention, which can be run."""
    for node in draft.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.op_type = "Concat"
            node.attribute.append(helper.make_attribute("axis", -1))
    return draft


def test_one_norm_of_the_heads_is_both() -> None:
    draft = heads_draft(epsilons=(1e-3, 1e-3))
    x = RNG.normal(size=(1, 4, (N_Q + 2 * N_KV) * D)).astype(np.float32)
    (expected,) = run(joined(draft.copy()), {"x": x})
    one_head_norm(draft)
    kinds = [node.op_type for node in draft.graph.node]
    assert kinds == ["Split", "Reshape", "RMSNormalization", "Reshape", "Split", kinds[-1]]
    draft.remove_unused()
    np.testing.assert_allclose(run(joined(draft), {"x": x})[0], expected, rtol=1e-6)


def test_norms_that_differ_stay_apart() -> None:
    draft = heads_draft(epsilons=(1e-3, 1e-5))
    before = len(draft.graph.node)
    one_head_norm(draft)
    assert len(draft.graph.node) == before


def test_splits_of_products_state_their_widths() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["xw"]),
        helper.make_node("Split", ["xw"], ["a", "b"], axis=-1, num_outputs=2),
    ]
    outputs = [value(name, [2, 3]) for name in "ab"]
    graph = helper.make_graph(nodes, "g", [value("x", [2, 4])], outputs)
    weight = RNG.normal(size=(4, 6)).astype(np.float32)
    draft = Draft(graph, [], {"W": weight})
    stated_widths(draft)
    split = draft.graph.node[1]
    assert draft.weights[split.input[1]].tolist() == [3, 3]
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    for found, columns in zip(run(draft, {"x": x}), (slice(0, 3), slice(3, 6)), strict=True):
        np.testing.assert_allclose(found, x @ weight[:, columns], rtol=1e-5, atol=1e-6)
