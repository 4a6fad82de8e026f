"""A bundle's graph under the contract that other tools expect, over the same weights.

What `lengths_as_inputs` and `selected_logits` took out of a graph comes back, made of the attention
mask; what `cache_in_place` put around one goes. Knows those inputs and GroupQueryAttention; no
model family.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from kdexport.errors import InputError
from kdexport.export.draft import Draft
from kdexport.export.passes.cache_in_place import without_buffers

STANDARD = "onnx/model.onnx"
POSITIONS, BIAS = 9, 10  # inputs of GroupQueryAttention
FAR = 1e9  # below any score; finite, so that a row that sees nothing but padding is no NaN
OURS = {"seqlens_k", "total_sequence_length", "logit_rows"}
BATCH, LENGTH, PAST, TOTAL = (
    "batch_size",
    "sequence_length",
    "past_sequence_length",
    "total_sequence_length",
)


def standard_graph(draft: Draft) -> Draft:
    """f(ids, seqlens_k, total_sequence_length, logit_rows, past) -> f(ids, attention_mask, past).

    ``attention_mask``: int64 [B, P + S], 0 for padding, wherever in the row it stands; logits are
    float32 [B, S, vocabulary], of all positions. Every row counts as P + S long, and what the mask
    leaves out is kept from attention by a bias. Rotated positions leave out padding inside of a
    text, and count what stands before it: a rotation tells distances only. Learnt positions are
    asked for as ``position_ids``. The draft is left as it is.
    """
    standard = draft.copy()
    without_buffers(standard)
    rows = next((node for node in standard.graph.node if "logit_rows" in node.input), None)
    if rows is None:
        raise InputError("the graph selects no logits")
    body = [_renamed(node, rows) for node in standard.graph.node if node != rows]
    fused = shares_buffers(standard)  # otherwise the graph reads the mask itself
    made = [*_lengths(standard), *_bias(standard), *_positions(standard)] if fused else []
    standard.set_nodes([*made, *body, *_logits(standard)])
    _declare(standard)
    standard.remove_unused()
    return standard


def shares_buffers(draft: Draft) -> bool:
    """Whether past and present may be one buffer, as they may of fused attention alone."""
    return any(node.op_type == "GroupQueryAttention" for node in draft.graph.node)


def _renamed(node: onnx.NodeProto, rows: onnx.NodeProto) -> onnx.NodeProto:
    """A node that reads all rows where it read the selected ones, and masks in its attention."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for place, name in enumerate(copy.input):
        if name == rows.output[0]:
            copy.input[place] = rows.input[0]
    for place, name in enumerate(copy.output):
        if name == "logits":
            copy.output[place] = "standard.logits"
    if copy.op_type == "GroupQueryAttention":
        copy.input.extend([""] * (BIAS + 1 - len(copy.input)))
        if copy.input[BIAS]:
            raise InputError("the graph's attention has a bias of its own")
        copy.input[BIAS] = "standard.bias"
        if any(attribute.name == "do_rotary" and attribute.i for attribute in copy.attribute):
            copy.input[POSITIONS] = "standard.positions"
    return copy


def _lengths(draft: Draft) -> Iterator[onnx.NodeProto]:
    """total_sequence_length = P + S, seqlens_k = P + S - 1 for each row."""
    draft.weights["standard.one"] = np.asarray(1, dtype=np.int32)
    yield _node("Shape", ["attention_mask"], "standard.total", start=1, end=2)
    yield _node("Cast", ["standard.total"], "total_sequence_length", to=TensorProto.INT32)
    yield _node("Sub", ["total_sequence_length", "standard.one"], "standard.last")
    yield _node("Shape", ["input_ids"], "standard.batch", start=0, end=1)
    yield _node("Expand", ["standard.last", "standard.batch"], "seqlens_k")


def _bias(draft: Draft) -> Iterator[onnx.NodeProto]:
    """(mask - 1) · FAR, float32 [B, 1, S, P + S]."""
    draft.weights["standard.onef"] = np.asarray(1, dtype=np.float32)
    draft.weights["standard.far"] = np.asarray(FAR, dtype=np.float32)
    draft.weights["standard.axes"] = np.asarray([1, 2], dtype=np.int64)
    draft.weights["standard.heads"] = np.asarray([1], dtype=np.int64)
    yield _node("Cast", ["attention_mask"], "standard.mask", to=TensorProto.FLOAT)
    yield _node("Sub", ["standard.mask", "standard.onef"], "standard.hidden")
    yield _node("Mul", ["standard.hidden", "standard.far"], "standard.pushed")
    yield _node("Unsqueeze", ["standard.pushed", "standard.axes"], "standard.row")
    yield _node("Shape", ["input_ids"], "standard.new", start=1, end=2)
    parts = ["standard.batch", "standard.heads", "standard.new", "standard.total"]
    yield _node("Concat", parts, "standard.bias_shape", axis=0)
    yield _node("Expand", ["standard.row", "standard.bias_shape"], "standard.bias")


def _positions(draft: Draft) -> Iterator[onnx.NodeProto]:
    """Places of the new tokens, less zeros of the mask after its first one: int64 [B, S]."""
    constants = {"standard.axis": 1, "standard.one64": 1, "standard.zero": 0}
    for name, value in constants.items():
        draft.weights[name] = np.asarray(value, dtype=np.int64)
    draft.weights["standard.along"] = np.asarray([1], dtype=np.int64)
    draft.weights["standard.end"] = np.asarray([np.iinfo(np.int64).max], dtype=np.int64)
    yield _node("Sub", ["standard.one64", "attention_mask"], "standard.absent")
    yield _node("CumSum", ["attention_mask", "standard.axis"], "standard.seen")
    yield _node("CumSum", ["standard.absent", "standard.axis"], "standard.missed")
    yield _node("Equal", ["standard.seen", "standard.zero"], "standard.before")
    yield _node("Cast", ["standard.before"], "standard.counted", to=TensorProto.INT64)
    yield _node("ReduceSum", ["standard.counted", "standard.along"], "standard.leading")
    yield _node("Sub", ["standard.missed", "standard.leading"], "standard.inside")
    yield _node("Max", ["standard.inside", "standard.zero"], "standard.holes")
    yield _node("Add", ["standard.seen", "standard.missed"], "standard.place")
    yield _node("Sub", ["standard.place", "standard.one64"], "standard.index")
    yield _node("Sub", ["standard.index", "standard.holes"], "standard.all_positions")
    yield _node("Neg", ["standard.new"], "standard.begin")
    cut = ["standard.all_positions", "standard.begin", "standard.end", "standard.along"]
    yield _node("Slice", cut, "standard.positions")


def _logits(draft: Draft) -> Iterator[onnx.NodeProto]:
    """[B · S, vocabulary] -> [B, S, vocabulary]."""
    draft.weights["standard.rest"] = np.asarray([-1], dtype=np.int64)
    yield _node("Shape", ["input_ids"], "standard.ids_shape")
    yield _node("Concat", ["standard.ids_shape", "standard.rest"], "standard.logits_shape", axis=0)
    yield _node("Reshape", ["standard.logits", "standard.logits_shape"], "logits")


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


def _declare(draft: Draft) -> None:
    """Inputs and outputs, their dimensions named as other exporters name them."""
    inputs = []
    for value in draft.graph.input:
        if value.name in OURS or not draft.readers(value.name):
            continue
        past = value.name.startswith("past_key_values.")
        inputs.append(_cache(value, PAST) if past else _typed(value, [BATCH, LENGTH]))
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [BATCH, TOTAL])
    inputs.insert(1, mask)
    outputs = [
        _typed(value, [BATCH, LENGTH, value.type.tensor_type.shape.dim[-1]])
        if value.name == "logits"
        else _cache(value, TOTAL)
        for value in draft.graph.output
    ]
    del draft.graph.input[:], draft.graph.output[:]
    draft.graph.input.extend(inputs)
    draft.graph.output.extend(outputs)


def _cache(value: onnx.ValueInfoProto, length: str) -> onnx.ValueInfoProto:
    dims = value.type.tensor_type.shape.dim
    return _typed(value, [BATCH, dims[1], length, dims[3]])


def _typed(value: onnx.ValueInfoProto, dims: Sequence[Any]) -> onnx.ValueInfoProto:
    shape = [d if isinstance(d, str) else d.dim_param or d.dim_value for d in dims]
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape)
