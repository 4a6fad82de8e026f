"""Keys and values of a graph's fused attention in 8 bits, a scale a channel.

Knows GroupQueryAttention and the inputs of its cache; no model family, and nothing of how the
products around it are computed.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.export.calibrate import feeds
from kdexport.export.draft import Array, Draft
from kdexport.runtime.session import open_graph

PAST, PRESENT = "past_key_values.", "present."
PAST_KEY, PAST_VALUE, COS = 3, 4, 7  # inputs of GroupQueryAttention
KEY_SCALE, VALUE_SCALE = 12, 13
LARGEST = 127
MARGIN = 1.25
"""How far a scale reaches, as a multiple of what was seen."""
SMALLEST = 1e-6  # of a scale, for channels in which nothing but zeros was seen


def has_attention(draft: Draft) -> bool:
    """Whether a graph has the attention whose cache can be kept in 8 bits."""
    return any(_attentions(draft))


def check_attention(draft: Draft) -> None:
    """Refuse a graph whose cache cannot be kept in 8 bits."""
    if not has_attention(draft):
        raise InputError(
            "the graph has no fused attention, whose keys and values alone can be in 8 bits",
            where="kv_cache",
            remedy="keep them in float32",
        )


def cache_scales(bundle: Bundle, draft: Draft, texts: Sequence[Array]) -> dict[str, Array]:
    """A step of 8 bits for every channel of a float32 bundle's cache, seen over texts.

    Symmetric: value = int8 · scale, scale = MARGIN · max |value| / 127, float32 [kv heads · head
    size], by the names ``past_key_values.{i}.key`` and ``.value``. A rotation turns two channels of
    a key into each other, by an angle that depends on the place; so both get the scale of the
    larger, for places that no text reached. ``texts``: int64 [tokens] each; ``draft``: a graph of
    the bundle.
    """
    session = open_graph(bundle.file(bundle.manifest.graphs.decode))
    pasts = [name for node in _attentions(draft) for name in _pasts(node)]
    names = [PRESENT + past.removeprefix(PAST) for past in pasts]
    largest: dict[str, Array] = {}
    for ids in texts:
        made = session.run(names, feeds(bundle, session, ids))
        for past, values in zip(pasts, made, strict=True):
            top = np.abs(values).max((0, 2))
            largest[past] = np.maximum(largest[past], top) if past in largest else top
    for node in _attentions(draft):
        key = node.input[PAST_KEY]
        partner = rotated_with(draft, node, largest[key].shape[1])
        largest[key] = np.maximum(largest[key], largest[key][:, partner])
    return {past: scale_for(top).ravel() for past, top in largest.items()}


def scale_for(largest: Array) -> Array:
    """The step of 8 bits that reaches MARGIN times as far as ``largest``; float32."""
    return np.maximum(MARGIN / LARGEST * largest, SMALLEST).astype(np.float32)


def rotated_with(draft: Draft, node: onnx.NodeProto, head_dim: int) -> Array:
    """The channel that each channel of a head is rotated with, or itself; int [head_dim]."""
    facts = {attribute.name: attribute.i for attribute in node.attribute}
    channels = np.arange(head_dim)
    if not facts.get("do_rotary"):
        return channels
    half = _rotated_channels(draft, node.input[COS], head_dim) // 2
    if facts.get("rotary_interleaved"):
        partner = channels ^ 1
    else:
        partner = np.where(channels < half, channels + half, channels - half)
    return np.where(channels < 2 * half, partner, channels)


def _rotated_channels(draft: Draft, table: str, head_dim: int) -> int:
    """How many channels of a head a table of cosines, [positions, channels / 2], rotates.

    All, for a table that the graph computes.
    """
    made = f"{table}.shape"  # of one that `small_rotations` took apart
    if made in draft.weights:
        return 2 * int(draft.weights[made][1])
    return 2 * draft.weights[table].shape[1] if table in draft.weights else head_dim


def cache_in_8_bits(draft: Draft, scales: Mapping[str, Array]) -> None:
    """GroupQueryAttention(…, past: float32) -> GroupQueryAttention(…, past: int8, scales).

    ``scales``: `cache_scales`. Inputs and outputs of the cache become int8; the attention rounds
    what it adds, and takes what lies beyond its scales' reach for their ends.
    """
    for node in _attentions(draft):
        node.input.extend([""] * (VALUE_SCALE + 1 - len(node.input)))
        for place, past in zip((KEY_SCALE, VALUE_SCALE), _pasts(node), strict=True):
            node.input[place] = f"{past}.scale"
            draft.weights[f"{past}.scale"] = scales[past]
        stated = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        node.attribute.extend(helper.make_attribute(k, v) for k, v in stated.items())
        node.attribute.append(helper.make_attribute("kv_cache_bit_width", 8))
    for value in (*draft.graph.input, *draft.graph.output):
        if value.name.startswith((PAST, PRESENT)):
            value.type.tensor_type.elem_type = TensorProto.INT8


def _attentions(draft: Draft) -> Iterator[onnx.NodeProto]:
    return (node for node in draft.graph.node if node.op_type == "GroupQueryAttention")


def _pasts(node: onnx.NodeProto) -> tuple[str, str]:
    return node.input[PAST_KEY], node.input[PAST_VALUE]
