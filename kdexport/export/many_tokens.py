"""A quantized bundle's graph for many tokens at once, of a prompt or of a batch, over its weights.

Blocks (MatMulNBits) are quick at one token. AMX multiplies whole columns of 8-bit weights several
times as fast, once there are rows enough to pay for handing rows over. Knows both kernels' nodes.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from kdexport.export.draft import Draft
from kdexport.export.kernels import product_by_rows

MANY_TOKENS = "onnx/many_tokens.onnx"


def many_tokens_graph(draft: Draft) -> Draft | None:
    """The same function with MatMulIntegerToFloat for each product whose columns have one scale.

    Weights and scales are the draft's own, brought into the other kernel's layout by nodes that
    ONNX Runtime computes once, as it opens the graph. The head stays, which reads a token a text.
    None where there is no such product; the draft is left as it is.
    """
    made = draft.copy()
    products = [node for node in draft.graph.node if _is_by_column(draft, node)]
    for node in products:
        laid_out = list(_laid_out(made, node))
        weights, scale = laid_out[-1].output[0], f"{node.input[1]}.column_scale"
        made.replace(node, [*laid_out, *product_by_rows(made, node, weights, scale)])
    made.remove_unused()
    return made if products else None


def _is_by_column(draft: Draft, node: onnx.NodeProto) -> bool:
    if node.op_type != "MatMulNBits" or "logits" in node.output or _fact(node, "bits") != 8:
        return False
    scales = draft.weights[_halves(node)]
    return bool((scales == scales[:, :1]).all())


def _laid_out(draft: Draft, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """uint8 [N, K / block, block] about 128 -> int8 [K, N] about 0, and a scale a column.

    The same bytes as int8 [N, K] are the values with the other sign bit.
    """
    blocks, halves = node.input[1], _halves(node)
    rows, signed, scale = f"{blocks}.rows", f"{blocks}.signed", f"{blocks}.column_scale"
    n_rows = _fact(node, "N")
    draft.weights[rows] = draft.weights[blocks].reshape(n_rows, -1).view(np.int8)
    draft.weights["kdexport.sign"] = np.asarray(-128, dtype=np.int8)
    draft.weights["kdexport.first"] = np.asarray(0, dtype=np.int64)
    yield helper.make_node("Gather", [halves, "kdexport.first"], [f"{scale}.half"], axis=1)
    yield helper.make_node("Cast", [f"{scale}.half"], [scale], to=TensorProto.FLOAT)
    yield helper.make_node("BitwiseXor", [rows, "kdexport.sign"], [signed])
    yield helper.make_node("Transpose", [signed], [f"{blocks}.int8"], perm=[1, 0])


def _halves(node: onnx.NodeProto) -> str:
    """Where `in_blocks` keeps the scales, float16 [N, K / block]."""
    return f"{node.input[2]}.half"


def _fact(node: onnx.NodeProto, name: str) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == name)
