"""Weights stand where the other passes look for them, however an exporter wrote them."""

import numpy as np
import onnx
from onnx import helper

from kdexport.export.draft import Draft

ONES = ("alpha", "beta")
TURN = [1, 0]


def plain_weights(draft: Draft) -> None:
    """Identity(w), Transpose(W) -> a weight; Gemm(x, W, b) -> Add(MatMul(x, W), b).

    The look-up of the embedding comes first, and reads ``input_ids`` themselves where it read a
    reshaped view of what has two axes already.
    """
    _fold(draft)
    for node in list(draft.graph.node):
        if node.op_type == "Gemm":
            _split(draft, node)
    _look_up_first(draft)


def _fold(draft: Draft) -> None:
    """What is made of a weight alone by Identity or Transpose is that weight, or another."""
    same: dict[str, str] = {}
    kept = []
    for node in draft.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
        source = node.input[0] if node.input else ""
        if source in draft.weights and node.op_type == "Identity":
            same[node.output[0]] = source
        elif source in draft.weights and node.op_type == "Transpose" and _turns(draft, node):
            draft.weights[node.output[0]] = np.ascontiguousarray(draft.weights[source].T)
        else:
            kept.append(node)
    draft.set_nodes(kept)


def _turns(draft: Draft, node: onnx.NodeProto) -> bool:
    """Whether a matrix is transposed, which is what Transpose does unasked."""
    stated = [list(a.ints) for a in node.attribute if a.name == "perm"]
    return draft.weights[node.input[0]].ndim == 2 and stated in ([], [TURN])


def _split(draft: Draft, node: onnx.NodeProto) -> None:
    """Gemm without factors, of an activation that is not transposed, into product and sum."""
    stated = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = all(stated.get(name, 1.0) == 1.0 for name in ONES) and not stated.get("transA", 0)
    name, (out,) = node.input[1], node.output
    if not plain or name not in draft.weights:
        return
    if stated.get("transB", 0):
        turned = f"{name}.columns"
        draft.weights[turned] = np.ascontiguousarray(draft.weights[name].T)
        name = turned
    has_bias = len(node.input) > 2 and bool(node.input[2])
    product = f"{out}.product" if has_bias else out
    made = [helper.make_node("MatMul", [node.input[0], name], [product])]
    if has_bias:
        made.append(helper.make_node("Add", [product, node.input[2]], [out]))
    draft.replace(node, made)


def _look_up_first(draft: Draft) -> None:
    views = {"input_ids"}
    for node in draft.graph.node:
        if node.op_type == "Reshape" and node.input[0] == "input_ids":
            views.add(node.output[0])
    nodes = list(draft.graph.node)
    for node in nodes:
        if node.op_type == "Gather" and node.input[0] in draft.weights and node.input[1] in views:
            node.input[1] = "input_ids"
            draft.set_nodes([node, *(other for other in nodes if other.output != node.output)])
            return
