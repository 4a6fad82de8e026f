"""How a product with constant weights is computed: a row a kernel, each a rewrite of one MatMul.

Knows nodes and their weights; not which kernel suits which product.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from kdexport.export.draft import Draft
from kdexport.export.rounding import Grid, Rounded

Array = np.ndarray[Any, Any]
MICROSOFT = "com.microsoft"
ACCURACY_INT8 = 4  # MatMulNBits: activations in 8 bits, a scale a block of each row
HALF_RANGE = 127
Write = Callable[[Draft, onnx.NodeProto, Rounded], None]


@dataclass(frozen=True)
class Kernel:
    """``bits`` a weight; ``grid``: what weights are rounded to; ``write``: the rewrite."""

    bits: int
    grid: Grid
    write: Write


def rows_in_8_bits(kind: type[np.int8] | type[np.uint8]) -> Write:
    """MatMul(x, W) -> m · MatMulIntegerToFloat(Quantize(x / m), W8), m = max |x| of each row.

    Dynamic per-token quantization with stock operators. The grid of the rows is fixed, so that a
    token's result does not depend on the tokens that are read with it.
    """

    def write(draft: Draft, node: onnx.NodeProto, rounded: Rounded) -> None:
        name = node.input[1]
        draft.weights[f"{name}.int8"] = rounded.values.astype(kind)
        draft.weights[f"{name}.scale"] = rounded.scale[0]
        weights = [f"{name}.int8", f"{name}.scale"]
        if kind is np.uint8:
            draft.weights[f"{name}.zero_point"] = rounded.zero_point[0].astype(kind)
            weights.append(f"{name}.zero_point")
        draft.replace(node, product_by_rows(draft, node, *weights))

    return write


def product_by_rows(
    draft: Draft, node: onnx.NodeProto, weights: str, scale: str, *zero_point: str
) -> list[onnx.NodeProto]:
    """The nodes of `rows_in_8_bits` in the place of a product, for weights that are there."""
    x, (out,) = node.input[0], node.output
    draft.weights["kdexport.tiny"] = np.asarray(1e-12, dtype=np.float32)
    draft.weights["kdexport.last"] = np.asarray([-1], dtype=np.int64)
    draft.weights["kdexport.step"] = np.asarray(1 / HALF_RANGE, dtype=np.float32)
    draft.weights["kdexport.middle"] = np.asarray(HALF_RANGE + 1, dtype=np.uint8)
    quantized = [f"{out}.steps", weights, "kdexport.step", scale, "kdexport.middle", *zero_point]
    nodes = [
        ("Abs", [x], f"{out}.abs"),
        ("ReduceMax", [f"{out}.abs", "kdexport.last"], f"{out}.largest"),
        ("Max", [f"{out}.largest", "kdexport.tiny"], f"{out}.row"),
        ("Div", [x, f"{out}.row"], f"{out}.unit"),
        ("QuantizeLinear", [f"{out}.unit", "kdexport.step", "kdexport.middle"], quantized[0]),
        ("MatMulIntegerToFloat", quantized, f"{out}.product"),
        ("Mul", [f"{out}.product", f"{out}.row"], out),
    ]
    return [_node(kind, inputs, made) for kind, inputs, made in nodes]


def _node(kind: str, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    domain = MICROSOFT if kind == "MatMulIntegerToFloat" else ""
    return helper.make_node(kind, inputs, [output], domain=domain)


def in_blocks(bits: int) -> Write:
    """MatMul(x, W) -> MatMulNBits(x, blocks of W), the scales kept in half precision."""

    def write(draft: Draft, node: onnx.NodeProto, rounded: Rounded) -> None:
        x, name = node.input
        n_rows, n_columns = rounded.values.shape
        if f"{name}.blocks" not in draft.weights:  # which a look-up may have put there
            draft.weights[f"{name}.blocks"] = packed(rounded, bits)
        product = helper.make_node(
            "MatMulNBits",
            [x, f"{name}.blocks", f"{name}.scales"],
            list(node.output),
            domain=MICROSOFT,
            K=n_rows,
            N=n_columns,
            bits=bits,
            block_size=n_rows // len(rounded.scale),
            accuracy_level=ACCURACY_INT8,
        )
        draft.replace(node, [*_scales(draft, name, rounded), product])

    return write


def _scales(draft: Draft, name: str, rounded: Rounded) -> list[onnx.NodeProto]:
    """The node that makes ``NAME.scales``, [N, K / block], in float32; ONNX Runtime folds it."""
    if f"{name}.scales.half" in draft.weights:
        return []
    draft.weights[f"{name}.scales.half"] = np.ascontiguousarray(rounded.scale.T).astype(np.float16)
    half, whole = [f"{name}.scales.half"], [f"{name}.scales"]
    return [helper.make_node("Cast", half, whole, to=TensorProto.FLOAT)]


def packed(rounded: Rounded, bits: int) -> Array:
    """MatMulNBits' layout, uint8 [N, K / block, block · bits / 8]: two 4-bit values a byte."""
    n_blocks = len(rounded.scale)
    middle = 2 ** (bits - 1)
    values = (rounded.values.T + middle).astype(np.uint8)
    values = np.ascontiguousarray(values).reshape(len(values), n_blocks, -1)
    return values if bits == 8 else values[..., 0::2] | (values[..., 1::2] << 4)


WIDE = (128, 64, 32)
FLOAT32 = "float32"  # no kernel of ours: the product stays as it is
KERNELS: Mapping[str, Kernel] = {
    "rows8": Kernel(8, Grid(-HALF_RANGE, HALF_RANGE), rows_in_8_bits(np.int8)),
    "rows8u": Kernel(8, Grid(0, 255, whole_range=True), rows_in_8_bits(np.uint8)),
    "wide8": Kernel(8, Grid(-128, 127, WIDE), in_blocks(8)),
    "column8": Kernel(8, Grid(-128, 127, WIDE, by_column=True), in_blocks(8)),
    "block8": Kernel(8, Grid(-128, 127, (32,)), in_blocks(8)),
    "block4": Kernel(4, Grid(-8, 7, (32,)), in_blocks(4)),
}
"""``rows8u``: unsigned weights, which every CPU multiplies exactly. ``wide8``: in blocks as wide as
divide the rows; fewer scales are quicker where the CPU has VNNI. ``column8``: the same with one
scale a column, so that `many_tokens_graph` can read the weights, too."""


def table_in_blocks(
    draft: Draft, look_up: Sequence[onnx.NodeProto], name: str, rounded: Rounded
) -> None:
    """Gather(E, ids) -> GatherBlockQuantized(E8, ids), E8 the array that the head reads.

    ``look_up``: the Gather, and the Transpose after it where the table's columns are the tokens.
    """
    ids = look_up[0].input[1]
    n_channels, n_tokens = rounded.values.shape
    blocks = draft.weights[f"{name}.blocks"] = packed(rounded, 8)
    draft.weights[f"{name}.table"] = blocks.reshape(n_tokens, n_channels)
    node = helper.make_node(
        "GatherBlockQuantized",
        [f"{name}.table", ids, f"{name}.scales"],
        list(look_up[-1].output),
        domain=MICROSOFT,
        bits=8,
        block_size=n_channels // len(rounded.scale),
        gather_axis=0,
        quantize_axis=1,
    )
    for other in look_up[1:]:
        draft.replace(other, [])
    draft.replace(look_up[0], [*_scales(draft, name, rounded), node])
