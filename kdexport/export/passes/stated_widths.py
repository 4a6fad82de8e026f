"""Every Split of a product says how wide its parts are."""

import numpy as np
from onnx import helper

from kdexport.export.draft import Draft


def stated_widths(draft: Draft) -> None:
    """Split(MatMul(x, W), num_outputs = n) -> Split(MatMul(x, W), widths).

    As `one_product` leaves it, so that a gate and an up projection look alike in every family.
    """
    for node in list(draft.graph.node):
        if node.op_type != "Split" or len(node.input) > 1:
            continue
        product = draft.writer(node.input[0])
        weight = draft.weights.get(product.input[1]) if product and len(product.input) > 1 else None
        if product is None or product.op_type != "MatMul" or weight is None:
            continue
        width, rest = divmod(weight.shape[1], len(node.output))
        if rest:
            continue
        name = f"{product.input[1]}.widths"
        draft.weights[name] = np.full(len(node.output), width, dtype=np.int64)
        stated = helper.make_node("Split", [node.input[0], name], list(node.output), axis=-1)
        draft.replace(node, [stated])
