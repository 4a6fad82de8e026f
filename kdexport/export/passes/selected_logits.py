"""Logits only where they are asked for: the vocabulary head is a small model's widest product."""

import numpy as np
from onnx import TensorProto, helper

from kdexport.errors import InputError
from kdexport.export.draft import Draft


def selected_logits(draft: Draft) -> None:
    """MatMul(hidden, head) -> MatMul(Gather(Reshape(hidden, [-1, H]), logit_rows), head).

    ``logit_rows``, int64 [K], counts positions in the flattened [batch * sequence]. The output is
    [K, vocabulary].
    """
    head = draft.writer("logits")
    if head is None or head.op_type != "MatMul":
        raise InputError("the graph of this model does not end in a product with its head")
    hidden = head.input[0]
    draft.weights["kdexport.flat"] = np.asarray([-1, _width(draft, head.input[1])], dtype=np.int64)
    rows = [
        helper.make_node("Reshape", [hidden, "kdexport.flat"], ["kdexport.hidden_rows"]),
        helper.make_node(
            "Gather", ["kdexport.hidden_rows", "logit_rows"], ["kdexport.selected"], axis=0
        ),
    ]
    product = helper.make_node("MatMul", ["kdexport.selected", head.input[1]], ["logits"])
    draft.replace(head, [*rows, product])
    draft.graph.input.append(helper.make_tensor_value_info("logit_rows", TensorProto.INT64, ["k"]))
    outputs = [value for value in draft.graph.output if value.name != "logits"]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["k", "vocabulary"])
    del draft.graph.output[:]
    draft.graph.output.extend([logits, *outputs])


def _width(draft: Draft, head_weight: str) -> int:
    """Rows of the head's matrix [H, V], which may be a transposed embedding [V, H]."""
    if head_weight in draft.weights:
        return int(draft.weights[head_weight].shape[0])
    transpose = draft.writer(head_weight)
    if transpose is None or transpose.input[0] not in draft.weights:
        raise InputError("the vocabulary head of this model is no constant matrix")
    return int(draft.weights[transpose.input[0]].shape[1])
