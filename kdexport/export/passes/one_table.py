"""A tied vocabulary head and embedding read one and the same array."""

import numpy as np
from onnx import helper

from kdexport.export.draft import Draft


def one_table(draft: Draft) -> None:
    """Gather(E, ids), MatMul(x, Transpose(E)) -> Transpose(Gather(Eᵀ, ids, axis=1)), MatMul(x, Eᵀ).

    Also where the head is a copy of Eᵀ. The product wants the [H, V] layout, the look-up of a few
    columns does not mind it.
    """
    head = draft.writer("logits")
    look_up = next((n for n in draft.graph.node if "input_ids" in n.input), None)
    if head is None or look_up is None or look_up.op_type != "Gather":
        return
    table = look_up.input[0]
    embedding = draft.weights[table]
    transpose = draft.writer(head.input[1])
    if transpose is not None and transpose.input[0] == table:
        columns = np.ascontiguousarray(embedding.T)
    elif _is_transposed(draft.weights.get(head.input[1]), embedding):
        columns = draft.weights[head.input[1]]
    else:
        return
    name = f"{table}.columns"
    draft.weights[name] = columns
    (embedded,) = look_up.output
    head.input[1] = name
    draft.replace(
        look_up,
        [
            helper.make_node("Gather", [name, "input_ids"], [f"{embedded}.columns"], axis=1),
            helper.make_node("Transpose", [f"{embedded}.columns"], [embedded], perm=[1, 2, 0]),
        ],
    )


def _is_transposed(head: np.ndarray | None, embedding: np.ndarray) -> bool:
    return (
        head is not None and head.shape == embedding.T.shape and np.array_equal(head, embedding.T)
    )
