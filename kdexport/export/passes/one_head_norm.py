"""The norms of query and key heads become one."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from kdexport.export.draft import Draft

Chain = Sequence[onnx.NodeProto]


def one_head_norm(draft: Draft) -> None:
    """q, k, v = Split(x), heads of q and k normed apart -> qk, v = Split(x), heads of qk normed.

    Each head keeps the weights of its norm, in a row of a matrix. Attention gets q and k from a
    second Split.
    """
    for node in [n for n in draft.graph.node if n.op_type == "GroupQueryAttention"]:
        chains = [_chain(draft, name) for name in node.input[:2]]
        if not all(chains):
            continue
        ends = [chain[0].input[0] for chain in chains]
        split = draft.writer(ends[0])
        if split is None or list(split.output) != [*ends, node.input[2]]:
            continue
        norms = [chain[1] for chain in chains]
        if len({helper.get_node_attr_value(norm, "epsilon") for norm in norms}) == 1:
            _join(draft, split, chains)


def _chain(draft: Draft, name: str) -> Chain:
    """The Reshape to heads, RMSNormalization and Reshape that make a value; empty for others."""
    found: list[onnx.NodeProto] = []
    for kind in ("Reshape", "RMSNormalization", "Reshape"):
        node = draft.writer(name) if name else None
        if node is None or node.op_type != kind or len(draft.readers(node.output[0])) != 1:
            return []
        found.insert(0, node)
        name = node.input[0]
    return found


def _join(draft: Draft, split: onnx.NodeProto, chains: Sequence[Chain]) -> None:
    """Put one chain in the place of the first of the two."""
    to_heads, norm, from_heads = chains[0]
    weights = [draft.weights[chain[1].input[1]] for chain in chains]
    sizes = draft.weights[split.input[1]]
    heads = [size // weight.shape[0] for size, weight in zip(sizes[:2], weights, strict=True)]
    name = f"{norm.input[1]}.heads"
    draft.weights[name] = np.concatenate(
        [np.tile(weight, (n, 1)) for n, weight in zip(heads, weights, strict=True)]
    )
    draft.weights[f"{name}.widths"] = np.asarray([sizes[:2].sum(), sizes[2]], dtype=np.int64)
    draft.weights[f"{name}.parts"] = sizes[:2].copy()
    values = [f"{name}.{stage}" for stage in ("flat", "in", "out", "normed")]
    joined = [
        helper.make_node(
            "Split",
            [split.input[0], f"{name}.widths"],
            [values[0], split.output[2]],
            axis=-1,
        ),
        helper.make_node("Reshape", [values[0], to_heads.input[1]], [values[1]]),
        helper.make_node("RMSNormalization", [values[1], name], [values[2]]),
        helper.make_node("Reshape", [values[2], from_heads.input[1]], [values[3]]),
        helper.make_node(
            "Split",
            [values[3], f"{name}.parts"],
            [chain[2].output[0] for chain in chains],
            axis=-1,
        ),
    ]
    joined[2].attribute.extend(norm.attribute)
    for chain in chains:
        for node in chain:
            draft.replace(node, [])
    draft.replace(split, joined)
