"""A graph that concatenates its cache reads and writes the buffers of our contract instead.

The nodes that do so stand around the exporter's own, and are known by their names;
`without_buffers` takes them off again. Knows the usual contract of exporters; no model family.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from kdexport.errors import InputError
from kdexport.export.draft import Draft

OURS = "kdexport.cache."
PAST, PRESENT = "past_key_values.", "present."
INSIDE = {PAST: f"{OURS}{PAST}", PRESENT: f"{OURS}{PRESENT}", "position_ids": f"{OURS}new_places"}
"""Names of the contract -> those of the same in the graph inside; positions end with the row."""
KNOWN = {"input_ids", "attention_mask", "position_ids"}
Nodes = Iterator[onnx.NodeProto]


def cache_in_place(draft: Draft) -> None:
    """f(ids, attention_mask, past) -> (logits, past | new), with its past taken out of buffers.

    Buffers are float32 [B, H, C, D], each row's tokens from place 0; the graph inside gets them as
    [B, H, P, D], P the longest row, the shorter ones padded on the left as it is used to. What it
    adds is written behind each row's tokens, by a ScatterND whose input and output are one buffer:
    all reading is done before, since what it writes depends on it. Padding among the new tokens
    writes the row's last real token once more, so that nothing is written beyond the capacity.
    Raises InputError for inputs that the runtime does not know, and for caches of another shape.
    """
    names = [value.name for value in draft.graph.input if value.name.startswith(PAST)]
    strange = {value.name for value in draft.graph.input} - KNOWN - set(names)
    if strange:
        raise InputError(f"their graph asks for {sorted(strange)[0]}")
    n_heads = _heads(draft, names)
    body = [_renamed(node, INSIDE) for node in draft.graph.node]
    read = [_made("GatherND", [name, f"{OURS}from"], f"{OURS}{name}") for name in names]
    before = [*_lengths(draft), *_mask(), *_places(draft, n_heads), *read]
    written = [node for name in names for node in _write(name)]
    draft.set_nodes([*before, *body, *written])
    _declare(draft, names)


def without_buffers(draft: Draft) -> None:
    """The graph as its exporter had it, but for what is no matter of the cache."""
    if not any(node.name.startswith(OURS) for node in draft.graph.node):
        return
    outside = {inner: outer for outer, inner in INSIDE.items()}
    body = [node for node in draft.graph.node if not node.name.startswith(OURS)]
    draft.set_nodes([_renamed(node, outside) for node in body])


def _heads(draft: Draft, names: Sequence[str]) -> int:
    """How many heads the caches have; all the same, and their channels too."""
    shapes = {
        tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in draft.graph.input
        if value.name in names
    }
    n_layers, odd = divmod(len(names), 2)
    expected = {f"{PAST}{n}.{part}" for n in range(n_layers) for part in ("key", "value")}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or odd or set(names) != expected or len(shape) != 4 or not shape[1]:
        raise InputError("their cache is not one of keys and values of equal size in every layer")
    return int(shape[1])


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy that reads and makes values of other names, by what the names begin with."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for values in (copy.input, copy.output):
        for place, name in enumerate(values):
            begin = next((begin for begin in names if name.startswith(begin)), None)
            if begin is not None:
                values[place] = names[begin] + name.removeprefix(begin)
    return copy


def _made(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{OURS}to.{output}", **attributes)


def _own(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node among ours: names without a dot are of values that are ours, too."""
    own = [name if "." in name or name in FED else OURS + name for name in inputs]
    return _made(kind, own, output if output in KNOWN else OURS + output, **attributes)


FED = {"input_ids", "position_ids", "seqlens_k"}


def _lengths(draft: Draft) -> Nodes:
    """Of each row: tokens before and new ones, int64 [B, 1]; P and S, scalars; 0 … P and 0 … S."""
    for name, value in {"zero": 0, "one": 1}.items():
        draft.weights[OURS + name] = np.asarray(value, dtype=np.int64)
    draft.weights[f"{OURS}first"] = np.asarray([0], dtype=np.int64)
    draft.weights[f"{OURS}second"] = np.asarray([1], dtype=np.int64)
    yield _own("Gather", ["position_ids", "first"], "before", axis=1)
    yield _own("Cast", ["seqlens_k"], "last", to=TensorProto.INT64)
    yield _own("Unsqueeze", ["last", "second"], "lasts")
    yield _own("Sub", ["lasts", "before"], "last_new")
    yield _own("ReduceMax", ["before"], "longest", keepdims=0)
    yield _own("Shape", ["input_ids"], "shape")
    yield _own("Gather", ["shape", "one"], "width")
    yield _own("Gather", ["shape", "zero"], "height")
    yield _own("Range", ["zero", "longest", "one"], "old")
    yield _own("Range", ["zero", "width", "one"], "new")
    yield _own("Range", ["zero", "height", "one"], "rows")


def _mask() -> Nodes:
    """1 for tokens, 0 for padding: on the left of those before, on the right of new ones."""
    yield _own("Sub", ["longest", "before"], "padding")
    yield _own("GreaterOrEqual", ["old", "padding"], "old_mask")
    yield _own("LessOrEqual", ["new", "last_new"], "new_mask")
    yield _own("Concat", ["old_mask", "new_mask"], "whole_mask", axis=1)
    yield _own("Cast", ["whole_mask"], "attention_mask", to=TensorProto.INT64)


def _places(draft: Draft, n_heads: int) -> Nodes:
    """Where tokens lie: of those before, in the buffers; of new ones, in present and in buffers."""
    yield _own("Sub", ["old", "padding"], "shifted")
    yield _own("Max", ["shifted", "zero"], "old_places")
    yield _own("Min", ["new", "last_new"], "real")
    yield _own("Add", ["real", "longest"], "made_places")
    yield _own("Add", ["real", "before"], "new_places")
    parts = np.eye(3, dtype=np.int64)
    draft.weights[f"{OURS}of_row"], draft.weights[f"{OURS}of_place"] = parts[0], parts[2]
    heads = np.arange(n_heads, dtype=np.int64)[None, :, None, None] * parts[1]
    draft.weights[f"{OURS}heads"] = heads
    draft.weights[f"{OURS}row_axes"] = np.asarray([1, 2, 3], dtype=np.int64)
    draft.weights[f"{OURS}place_axes"] = np.asarray([1, 3], dtype=np.int64)
    yield _own("Unsqueeze", ["rows", "row_axes"], "row_column")
    yield _own("Mul", ["row_column", "of_row"], "row_part")
    yield _own("Add", ["row_part", "heads"], "row_and_head")
    for places, index in (("old_places", "from"), ("made_places", "made"), ("new_places", "to")):
        yield _own("Unsqueeze", [places, "place_axes"], f"{places}_column")
        yield _own("Mul", [f"{places}_column", "of_place"], f"{places}_part")
        yield _own("Add", ["row_and_head", f"{places}_part"], index)


def _write(past: str) -> Nodes:
    """What was made of the new tokens, into the buffer of ``past``."""
    present = PRESENT + past.removeprefix(PAST)
    new = f"{OURS}new_{present}"
    yield _made("GatherND", [f"{OURS}{present}", f"{OURS}made"], new)
    yield _made("ScatterND", [past, f"{OURS}to", new], present)


def _declare(draft: Draft, names: Sequence[str]) -> None:
    """Inputs and outputs of the contract of docs/architecture.md."""
    caches = [value for value in draft.graph.input if value.name in names]
    logits = next(value for value in draft.graph.output if value.name == "logits")
    sizes = [d.dim_value for d in caches[0].type.tensor_type.shape.dim]
    shape = ["batch", sizes[1], "capacity", sizes[3]]
    floats, whole = TensorProto.FLOAT, TensorProto.INT64
    inputs = [
        helper.make_tensor_value_info("input_ids", whole, ["batch", "sequence"]),
        helper.make_tensor_value_info("position_ids", whole, ["batch", "sequence"]),
        *(helper.make_tensor_value_info(name, floats, shape) for name in names),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [1]),
    ]
    presents = [PRESENT + name.removeprefix(PAST) for name in names]
    outputs = [logits, *(helper.make_tensor_value_info(n, floats, shape) for n in presents)]
    del draft.graph.input[:], draft.graph.output[:]
    draft.graph.input.extend(inputs)
    draft.graph.output.extend(outputs)
