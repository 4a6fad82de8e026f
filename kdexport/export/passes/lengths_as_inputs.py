"""The attention mask gives way to the lengths that were computed from it."""

from onnx import TensorProto, helper

from kdexport.errors import InputError
from kdexport.export.draft import Draft

SEQLENS_K, TOTAL_LENGTH = 5, 6  # inputs of GroupQueryAttention


def lengths_as_inputs(draft: Draft) -> None:
    """GroupQueryAttention(…, f(mask), g(mask)) -> (…, seqlens_k, total_sequence_length).

    Both become inputs of the graph: int32 [batch], each row's valid length - 1, and int32 [1], the
    longest. A mask that grows with every token need not be built, and rows of a batch may be padded
    on the right.
    """
    found = False
    for node in draft.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[SEQLENS_K] = "seqlens_k"
            node.input[TOTAL_LENGTH] = "total_sequence_length"
            found = True
    if not found:
        raise InputError("the graph of this model has no GroupQueryAttention to run with a cache")
    inputs = [value for value in draft.graph.input if value.name != "attention_mask"]
    inputs += [
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [1]),
    ]
    del draft.graph.input[:]
    draft.graph.input.extend(inputs)
