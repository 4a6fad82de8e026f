"""The tiny graphs that machines are probed with: one product each, or attention, without weights.

Knows names, types and shapes; the weights are declared as external data that no file holds, so that
kdexport.runtime.probes can hand over its own as constants, which is what ONNX Runtime packs ahead.
Run as `python -m kdexport.export.probe_graphs` it writes the package's data files again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, TensorProto, helper

FOLDER = Path(__file__).parent.parent / "runtime" / "probe_graphs"
SIZES: Mapping[str, tuple[int, int]] = {"small": (512, 256), "large": (2048, 8192)}
"""Name -> K and N of the [K, N] weights."""

BLOCK = 32
ATTENTION = "attention8"
N_HEADS, N_KV_HEADS, HEAD_DIM = 4, 2, 64
MICROSOFT = "com.microsoft"
OPSETS = (("", 21), (MICROSOFT, 1))
IR_VERSION = 10  # what onnxruntime 1.22, the oldest that is meant to work, reads


@dataclass(frozen=True)
class ProbeGraph:
    """One product: its operator, its weights in the order of the operator's inputs, attributes."""

    operator: str
    domain: str
    weights: Mapping[str, tuple[int, Sequence[int]]]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def probe_graph(kernel: str, size: str) -> ModelProto:
    """``x`` float32 [M, K] -> ``y`` float32 [M, N], by one kernel of GRAPHS at one of SIZES."""
    k, n = SIZES[size]
    row = GRAPHS[kernel](k, n)
    rows, out = ("M", k), ("M", n)
    node = helper.make_node(
        row.operator, ["x", *row.weights], ["y"], domain=row.domain, **row.attributes
    )
    graph = helper.make_graph(
        [node],
        f"{kernel}-{size}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, rows)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [_left_out(name, *facts) for name, facts in row.weights.items()],
    )
    return _model(graph)


def attention_graph() -> ModelProto:
    """``x`` and int8 ``key`` and ``value`` -> ``y``: attention over a cache in 8 bits.

    ``x`` float32 [B, S, queries, keys and values side by side]; ``key``, ``value`` [B, kv heads, C,
    head size], bound as ``new_key``, ``new_value`` too; ``last`` int32 [B], ``total`` int32 scalar:
    the places of each row's last token, and how many the longest row has.
    """
    wide, n_scales = (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM, N_KV_HEADS * HEAD_DIM
    scales = ["key_scale", "value_scale"]
    node = helper.make_node(
        "GroupQueryAttention",
        ["x", "", "", "key", "value", "last", "total", *[""] * 5, *scales],
        ["y", "new_key", "new_value"],
        domain=MICROSOFT,
        num_heads=N_HEADS,
        kv_num_heads=N_KV_HEADS,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
        kv_cache_bit_width=8,
    )
    cache = TensorProto.INT8, ("B", N_KV_HEADS, "C", HEAD_DIM)
    inputs = {
        "x": (TensorProto.FLOAT, ("B", "S", wide)),
        "key": cache,
        "value": cache,
        "last": (TensorProto.INT32, ("B",)),
        "total": (TensorProto.INT32, ()),
    }
    outputs = {
        "y": (TensorProto.FLOAT, ("B", "S", N_HEADS * HEAD_DIM)),
        "new_key": cache,
        "new_value": cache,
    }
    graph = helper.make_graph(
        [node],
        ATTENTION,
        [helper.make_tensor_value_info(name, *facts) for name, facts in inputs.items()],
        [helper.make_tensor_value_info(name, *facts) for name, facts in outputs.items()],
        [_left_out(name, TensorProto.FLOAT, (n_scales,)) for name in scales],
    )
    return _model(graph)


def _model(graph: GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="kdexport")
    model.ir_version = IR_VERSION
    return model


def write_probe_graphs(folder: Path = FOLDER) -> list[Path]:
    """Write every kernel at every size as KERNEL-SIZE.onnx, and attention; small files."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {f"{kernel}-{size}": probe_graph(kernel, size) for kernel in GRAPHS for size in SIZES}
    written = []
    for name, model in (graphs | {ATTENTION: attention_graph()}).items():
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        written.append(path)
    return written


def _left_out(name: str, data_type: int, shape: Sequence[int]) -> TensorProto:
    tensor = TensorProto(name=name, data_type=data_type, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="given-by-the-caller")
    return tensor


def _float(k: int, n: int) -> ProbeGraph:
    return ProbeGraph("MatMul", "", {"w": (TensorProto.FLOAT, (k, n))})


def _dynamic(data_type: int, k: int, n: int) -> ProbeGraph:
    weights = {
        "w": (data_type, (k, n)),
        "scale": (TensorProto.FLOAT, (n,)),
        "zero_point": (data_type, (n,)),
    }
    return ProbeGraph("DynamicQuantizeMatMul", MICROSOFT, weights)


def _blocks(bits: int, accuracy: int, zero_points: bool, k: int, n: int) -> ProbeGraph:
    n_blocks = k // BLOCK
    weights = {
        "w": (TensorProto.UINT8, (n, n_blocks, BLOCK * bits // 8)),
        "scale": (TensorProto.FLOAT, (n, n_blocks)),
    }
    if zero_points:
        weights["zero_point"] = (TensorProto.UINT8, (n, n_blocks * bits // 8))
    attributes = {"K": k, "N": n, "bits": bits, "block_size": BLOCK, "accuracy_level": accuracy}
    return ProbeGraph("MatMulNBits", MICROSOFT, weights, attributes)


GRAPHS: Mapping[str, Callable[[int, int], ProbeGraph]] = {
    "float32": _float,
    "dynamic-signed": partial(_dynamic, TensorProto.INT8),
    "dynamic-unsigned": partial(_dynamic, TensorProto.UINT8),
    "block8": partial(_blocks, 8, 4, False),
    "block8-float": partial(_blocks, 8, 0, False),
    "block4": partial(_blocks, 4, 4, False),
    "block4-zero-points": partial(_blocks, 4, 4, True),
}
"""Kernel -> the product at K and N. `-float` has accuracy level 0, the other blocks 4."""


if __name__ == "__main__":
    write_probe_graphs()
