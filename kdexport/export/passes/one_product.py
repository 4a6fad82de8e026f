"""Products that read the same activation become one."""

import numpy as np
from onnx import helper

from kdexport.export.draft import Draft


def one_product(draft: Draft) -> None:
    """MatMul(x, A), MatMul(x, B) -> Split(MatMul(x, [A | B])).

    Gate and up projection of a gated feed-forward block: the activation is read, and later
    quantized, once.
    """
    by_input: dict[str, list[str]] = {}
    for node in draft.products():
        by_input.setdefault(node.input[0], []).append(node.output[0])
    for value, outputs in by_input.items():
        if len(outputs) < 2:
            continue
        nodes = [found for name in outputs if (found := draft.writer(name)) is not None]
        names = [node.input[1] for node in nodes]
        parts = [draft.weights[name] for name in names]
        joined, sizes = "+".join(names), f"{names[0]}.widths"
        draft.weights[joined] = np.concatenate(parts, axis=1)
        draft.weights[sizes] = np.asarray([part.shape[1] for part in parts], dtype=np.int64)
        product = helper.make_node("MatMul", [value, joined], [f"{joined}.product"])
        split = helper.make_node("Split", [f"{joined}.product", sizes], outputs, axis=-1)
        first, *others = nodes
        for node in others:
            draft.replace(node, [])
        writer = draft.writer(first.output[0])
        if writer is not None:
            draft.replace(writer, [product, split])
