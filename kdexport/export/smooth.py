"""Channels of activations are evened out, and the weights around them take the difference.

SmoothQuant (Xiao et al. 2023, section 4): a product computes the same from X / s and s W, and s is
chosen so that both are easier to round. What makes X takes the 1 / s. Knows norms and gated
products; no model family.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from kdexport.export.calibrate import Observed
from kdexport.export.draft import Draft
from kdexport.export.rounding import Grid, round_matrix, rounded_rows

Array = np.ndarray[Any, Any]
STRENGTHS = (0.0, 0.3, 0.45, 0.6, 0.75, 0.9)  # at 0 the activations stay as they are
FEW_STEPS = 16
Fold = Callable[[Array], None]


def smooth(draft: Draft, observed: Mapping[str, Observed], grid: Grid) -> dict[str, Observed]:
    """Replace x by x / s and W by s W, for every product whose x can take it.

    ``grid``: what the weights will be rounded to. The draft computes the same function as before;
    returned is what would now be observed.
    """
    after = dict(observed)
    for node in list(draft.products()):
        value, name = node.input
        fold = _fold(draft, node)
        if fold is None or len(draft.readers(name)) != 1:
            continue
        scale = best_scale(draft.weights[name], observed[value], grid)
        draft.weights[name] = draft.weights[name] * scale[:, None]
        fold(scale)
        after[value] = observed[value].scaled(scale)
    return after


def best_scale(weights: Array, observed: Observed, grid: Grid) -> Array:
    """s, float32 [K]: of some strengths, the one under which X W errs least on the samples.

    s = |x|^strength / max|w|^(1 - strength) per channel, its geometric mean 1. |x| is the largest,
    which the rounding of activations goes by, or, for weights of few bits, whose rounding is most
    of the error, the root of the mean square. Activations are rounded as the product will read
    them, row by row or block by block; by row where both are (`many_tokens_graph`).
    """
    exact = observed.samples @ weights
    block = None if grid.by_column else grid.block(len(weights))
    best, least = np.ones(len(weights), dtype=np.float32), np.inf
    sizes = [observed.largest]
    if grid.high - grid.low < FEW_STEPS:
        sizes.append(np.sqrt(np.diag(observed.gram)))
    for size, strength in itertools.product(sizes, STRENGTHS):
        scale = _scale(weights, size, strength)
        rounded = round_matrix(weights * scale[:, None], grid).matrix()
        activations = rounded_rows(observed.samples / scale, block)
        error = float(np.square(activations @ rounded - exact).sum())
        if error < least:
            best, least = scale, error
    return best


def _scale(weights: Array, size: Array, strength: float) -> Array:
    if strength == 0:
        return np.ones(len(weights), dtype=np.float32)
    x = np.maximum(size, size.max() * 1e-5 + 1e-12)
    w = np.abs(weights).max(1)
    w = np.maximum(w, w.max() * 1e-5 + 1e-12)
    scale = strength * np.log(x) - (1 - strength) * np.log(w)
    return np.asarray(np.exp(scale - scale.mean()), dtype=np.float32)


def _fold(draft: Draft, product: onnx.NodeProto) -> Fold | None:
    """How what makes a product's input takes a division of its channels; None where it cannot."""
    value = product.input[0]
    maker = draft.writer(value)
    if maker is None or len(draft.readers(value)) != 1:
        return None
    if maker.op_type in NORM_WEIGHTS:
        return _into_norm(draft, maker) if value == maker.output[0] else None
    if maker.op_type == "Mul":
        return next(filter(None, (_into_columns(draft, name) for name in maker.input)), None)
    return None


NORM_WEIGHTS: Mapping[str, Sequence[int]] = {
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipSimplifiedLayerNormalization": (2,),
    "LayerNormalization": (1, 2),
    "SkipLayerNormalization": (2, 3),
}
"""Operator -> which of its inputs multiply or shift its output, channel by channel."""


def _into_norm(draft: Draft, norm: onnx.NodeProto) -> Fold | None:
    names = [norm.input[place] for place in NORM_WEIGHTS[norm.op_type] if place < len(norm.input)]
    names = [name for name in names if name]
    if any(name not in draft.weights or len(draft.readers(name)) != 1 for name in names):
        return None

    def fold(scale: Array) -> None:
        for name in names:
            draft.weights[name] = draft.weights[name] / scale

    return fold


def _into_columns(draft: Draft, value: str) -> Fold | None:
    """Into the weights of the product, or of the part of a product, that makes ``value``."""
    if len(draft.readers(value)) != 1:
        return None
    maker = draft.writer(value)
    begin = 0
    if maker is not None and maker.op_type == "Split":
        widths = draft.weights[maker.input[1]]
        begin = int(widths[: list(maker.output).index(value)].sum())
        maker = draft.writer(maker.input[0])
    if maker is None or maker.op_type != "MatMul" or maker.input[1] not in draft.weights:
        return None
    name = maker.input[1]
    if len(draft.readers(name)) != 1:
        return None

    def fold(scale: Array) -> None:
        weights = draft.weights[name].copy()
        weights[:, begin : begin + len(scale)] /= scale
        draft.weights[name] = weights

    return fold
