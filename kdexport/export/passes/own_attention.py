"""Attention as the model itself says that its layers attend."""

from collections.abc import Sequence

import onnx
from onnx import helper

from kdexport.errors import InputError
from kdexport.export.draft import Draft
from kdexport.export.layers import LayerAttention

PAST_KEY, COS, SIN = 3, 7, 8  # inputs of GroupQueryAttention
TABLE_STEP = 8  # what ONNX Runtime asks of the tables' width
FROM_TABLES = "rotary_embedding_dim"  # ONNX Runtime reads it off the tables' width


def own_attention(draft: Draft, layers: Sequence[LayerAttention]) -> None:
    """GroupQueryAttention(…, cos, sin) -> the same with the layer's tables, window, scale, softcap.

    Layers with the same tables share them.
    """
    nodes = [node for node in draft.graph.node if node.op_type == "GroupQueryAttention"]
    if len(nodes) != len(layers):
        raise InputError(f"{len(nodes)} of {len(layers)} layers run with a cache of keys")
    names: dict[int, str] = {}
    for node in nodes:
        layer = layers[int(node.input[PAST_KEY].split(".")[1])]
        _check_width(layer)
        for place, table in zip((COS, SIN), layer.rotary or (), strict=False):
            name = names.setdefault(id(table), f"rotary.{len(names)}_cache")
            draft.weights[name] = table
            node.input[place] = name
        _state(node, layer)


def _check_width(layer: LayerAttention) -> None:
    """Refuse what ONNX Runtime's rotation cannot be given."""
    width = layer.rotary[0].shape[1] if layer.rotary else TABLE_STEP
    if width % TABLE_STEP:
        raise InputError(
            f"{2 * width} channels of a head are rotated",
            remedy=f"choose n_heads so that they are a multiple of {2 * TABLE_STEP}",
        )


def _state(node: onnx.NodeProto, layer: LayerAttention) -> None:
    """Give the node the layer's attributes in place of its own."""
    stated: dict[str, float | int | None] = {
        "local_window_size": layer.window or -1,
        "softcap": layer.softcap,
        FROM_TABLES: None,
    }
    if layer.scale is not None:
        stated["scale"] = layer.scale
    kept = [attribute for attribute in node.attribute if attribute.name not in stated]
    made = [helper.make_attribute(k, v) for k, v in stated.items() if v is not None]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])
