"""Dynamic int8: weights quantized here, once; activations by ONNX Runtime, as they come.

Per output channel for weights. Activations get one scale a call, so the prefill graph first divides
each row by its own largest value: one outlier token would take the range from all others. A single
token is a single row, so the decode graph does without.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from kdexport.bundle import (
    Bundle,
    Graphs,
    Parent,
    check_files,
    commit_bundle,
    staged_bundle,
)
from kdexport.errors import InputError
from kdexport.export.draft import Draft, load_draft, save_drafts
from kdexport.export.parity import check_quantized
from kdexport.machine import machine_facts

Array = np.ndarray[Any, Any]
MICROSOFT = "com.microsoft"
CLIPS = (1.0, 0.95, 0.9, 0.85)  # shares of a channel's range that are tried


@dataclass(frozen=True)
class Matrix:
    """A quantized [K, N] matrix: w ≈ (values - zero_point) · scale, per column of N."""

    values: Array
    scale: Array
    zero_point: Array


def quantize_columns(weights: Array, *, signed: bool) -> Matrix:
    """Round each column to 8 bits; of some clipped ranges the one with the least squared error.

    ``signed``: int8, symmetric, zero point 0. Else uint8 with a zero point.
    """
    best: Matrix | None = None
    best_error = np.full(weights.shape[1], np.inf, dtype=np.float32)
    for clip in CLIPS:
        tried = _round(weights, clip, signed)
        error = np.square(dequantize(tried) - weights).sum(0)
        if best is None:
            best, best_error = tried, error
            continue
        better = error < best_error
        best.values[:, better] = tried.values[:, better]
        best.scale[better] = tried.scale[better]
        best.zero_point[better] = tried.zero_point[better]
        best_error = np.minimum(error, best_error)
    assert best is not None
    return best


def _round(weights: Array, clip: float, signed: bool) -> Matrix:
    if signed:
        scale = np.abs(weights).max(0) * clip / 127
        scale[scale == 0] = 1
        values = np.clip(np.rint(weights / scale), -127, 127).astype(np.int8)
        return Matrix(values, scale.astype(np.float32), np.zeros(len(scale), dtype=np.int8))
    low = np.minimum(weights.min(0), 0) * clip
    high = np.maximum(weights.max(0), 0) * clip
    scale = ((high - low) / 255).astype(np.float32)
    scale[scale == 0] = 1
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    values = np.clip(np.rint(weights / scale) + zero_point, 0, 255).astype(np.uint8)
    return Matrix(values, scale, zero_point.astype(np.uint8))


def dequantize(matrix: Matrix) -> Array:
    """The float32 matrix that the 8-bit one stands for."""
    shifted = matrix.values.astype(np.float32) - matrix.zero_point.astype(np.float32)
    return shifted * matrix.scale


def int8_products(draft: Draft, *, signed: bool) -> None:
    """MatMul(x, W) -> DynamicQuantizeMatMul(x, W8, scale, zero_point), for every constant W."""
    quantized: set[str] = set()
    for node in list(draft.products()):
        name = node.input[1]
        if name not in quantized:
            _store(draft, name, quantize_columns(draft.weights[name], signed=signed))
            quantized.add(name)
        inputs = [node.input[0], f"{name}.int8", f"{name}.scale", f"{name}.zero_point"]
        product = helper.make_node(
            "DynamicQuantizeMatMul", inputs, list(node.output), domain=MICROSOFT
        )
        draft.replace(node, [product])


def int8_look_up(draft: Draft, *, signed: bool) -> None:
    """Gather(E, ids) -> (Cast(Gather(E8, ids)) - zero_point[ids]) · scale[ids].

    A table shared with the head is the head's own 8-bit array, its columns the tokens; one of its
    own is quantized by rows.
    """
    look_up = next(n for n in draft.graph.node if "input_ids" in n.input and n.op_type == "Gather")
    name, ids = look_up.input
    if f"{name}.int8" not in draft.weights:
        matrix = quantize_columns(draft.weights[name].T, signed=signed)
        rows = Matrix(np.ascontiguousarray(matrix.values.T), matrix.scale, matrix.zero_point)
        _store(draft, name, rows)
    axis = next((a.i for a in look_up.attribute if a.name == "axis"), 0)
    # With tokens on axis 1 the look-up gives [H, B, S], and scales [B, S] line up by themselves;
    # with tokens on axis 0 it gives [B, S, H], and they need a last axis.
    (out,) = look_up.output
    nodes = [
        helper.make_node("Gather", [f"{name}.int8", ids], [f"{out}.int8"], axis=axis),
        helper.make_node("Cast", [f"{out}.int8"], [f"{out}.cast"], to=TensorProto.FLOAT),
    ]
    value = f"{out}.cast"
    for part, operation in (("zero_point", "Sub"), ("scale", "Mul")):
        if part == "zero_point" and signed:
            continue
        read = f"{out}.{part}"
        nodes.append(helper.make_node("Gather", [f"{name}.{part}", ids], [read], axis=0))
        if part == "zero_point":
            nodes.append(helper.make_node("Cast", [read], [f"{read}.f"], to=TensorProto.FLOAT))
            read = f"{read}.f"
        if axis == 0:
            draft.weights["kdexport.last"] = np.asarray([-1], dtype=np.int64)
            nodes.append(helper.make_node("Unsqueeze", [read, "kdexport.last"], [f"{read}.u"]))
            read = f"{read}.u"
        result = out if part == "scale" else f"{out}.shifted"
        nodes.append(helper.make_node(operation, [value, read], [result]))
        value = result
    draft.replace(look_up, nodes)


def _store(draft: Draft, name: str, matrix: Matrix) -> None:
    draft.weights[f"{name}.int8"] = matrix.values
    draft.weights[f"{name}.scale"] = matrix.scale
    draft.weights[f"{name}.zero_point"] = matrix.zero_point


def normalized_rows(draft: Draft) -> None:
    """DynamicQuantizeMatMul(x, …) -> m · DynamicQuantizeMatMul(x / m, …), m = max |x| of each row.

    Exact per-token quantization with stock operators.
    """
    draft.weights["kdexport.tiny"] = np.asarray(1e-12, dtype=np.float32)
    draft.weights["kdexport.last"] = np.asarray([-1], dtype=np.int64)
    for number, node in enumerate(list(draft.graph.node)):
        if node.op_type != "DynamicQuantizeMatMul":
            continue
        x, (out,), name = node.input[0], node.output, f"kdexport.row{number}"
        draft.replace(
            node,
            [
                helper.make_node("Abs", [x], [f"{name}.abs"]),
                helper.make_node("ReduceMax", [f"{name}.abs", "kdexport.last"], [f"{name}.max"]),
                helper.make_node("Max", [f"{name}.max", "kdexport.tiny"], [f"{name}.m"]),
                helper.make_node("Div", [x, f"{name}.m"], [f"{name}.x"]),
                helper.make_node(
                    "DynamicQuantizeMatMul",
                    [f"{name}.x", *node.input[1:]],
                    [f"{name}.y"],
                    domain=MICROSOFT,
                ),
                helper.make_node("Mul", [f"{name}.y", f"{name}.m"], [out]),
            ],
        )


def _int8(source: Draft, *, signed: bool) -> tuple[Draft, Draft]:
    """The prefill and the decode graph."""
    decode = source.copy()
    int8_products(decode, signed=signed)
    int8_look_up(decode, signed=signed)
    if all(opset.domain != MICROSOFT for opset in decode.opsets):
        decode.opsets.append(helper.make_opsetid(MICROSOFT, 1))
    decode.remove_unused()
    prefill = decode.copy()
    normalized_rows(prefill)
    return prefill, decode


def _cpu_of_choice() -> list[str]:
    """Signed weights are faster where VNNI multiplies them exactly; without it AVX2 saturates."""
    return ["vnni"] if "vnni" in machine_facts().features else []


@dataclass(frozen=True)
class Scheme:
    """How a bundle is quantized. ``requires_cpu``: what its weights will need of a CPU."""

    describe: str
    requires_cpu: Callable[[], list[str]]


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme("dynamic int8, weights for this CPU", _cpu_of_choice),
    "int8-portable": Scheme("dynamic int8, weights that are right on every CPU", list),
}


def quantize_bundle(bundle: Bundle, scheme: str, out: Path) -> Bundle:
    """Write a quantized bundle made from a float32 one.

    Raises InputError for an unknown scheme and for a bundle that is quantized already or damaged,
    ParityError when the result has lost the model.
    """
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme {scheme!r}", remedy="use " + ", ".join(SCHEMES))
    source = bundle.manifest
    if source.scheme != "fp32":
        raise InputError(f"is quantized already ({source.scheme})", where=str(bundle.path))
    requires = SCHEMES[scheme].requires_cpu()
    graphs = Graphs(prefill="prefill.onnx", decode="decode.onnx")
    with staged_bundle(out, bundle.n_bytes // 2) as staging:  # a quarter, and what is beside it
        check_files(bundle, set(source.files))
        draft = load_draft(bundle.file(source.graphs.decode))
        prefill, decode = _int8(draft, signed="vnni" in requires)
        save_drafts({graphs.prefill: prefill, graphs.decode: decode}, staging, source.weights)
        for name in source.files.keys() - {source.weights, source.graphs.prefill}:
            if name != source.graphs.decode:
                (staging / name).write_bytes(bundle.file(name).read_bytes())
        parity = check_quantized(bundle, staging, graphs)
        manifest = source.model_copy(
            update={
                "scheme": scheme,
                "graphs": graphs,
                "requires_cpu": requires,
                "parity": parity,
                "parent": Parent(name=source.name, manifest_sha256=bundle.manifest_sha256),
            }
        )
        return commit_bundle(staging, out, manifest)
