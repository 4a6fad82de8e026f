"""Weights to few bits: by column or by block, to the nearest step or with errors made up for.

Knows matrices; neither graphs nor models.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
CLIPS = (1.0, 0.95, 0.9, 0.85)  # shares of a column's range that are tried
BLOCK_CLIPS = (1.1, 1.0, 0.9, 0.8, 0.7)  # of a block's
DAMPING = 0.01  # of the mean of the Gram matrix's diagonal
LARGEST_SCALE = float(np.finfo(np.float16).max)
PANEL = 128  # rows that `compensated` rounds before it updates those below
OFF_GRID = 1e-2  # of a step, up to which a number is a whole multiple of it
N_TRIED = 64  # blocks by which most matrices are known to lie on no grid
N_REFITS = 2  # times that scales are fitted to the whole numbers, and these found anew


@dataclass(frozen=True)
class Rounded:
    """A [K, N] matrix in whole steps: w ≈ (values - zero_point) · scale.

    ``values``: float32 [K, N], whole numbers; ``scale``: float32 [B, N], each row of it for K / B
    rows of values; ``zero_point``: the same shape, whole numbers.
    """

    values: Array
    scale: Array
    zero_point: Array

    def matrix(self) -> Array:
        """The float32 matrix that it stands for, [K, N]."""
        shifted = self.values - _expand(self.zero_point, self.values)
        return np.asarray(shifted * _expand(self.scale, self.values))


@dataclass(frozen=True)
class Grid:
    """The whole numbers that a value may take, ``low`` to ``high``, and what shares a scale.

    ``blocks``: how many rows of K may share a scale, of which the first that divides K is taken;
    without, a whole column does. ``by_column``: the blocks of a column have the same scale.
    ``whole_range``: the zero point is chosen with the scale, else it is 0 (the range is symmetric).
    """

    low: int
    high: int
    blocks: tuple[int, ...] = ()
    by_column: bool = False
    whole_range: bool = False

    def block(self, n_rows: int) -> int | None:
        """Rows that share a scale in a matrix of ``n_rows``; None where no block divides them."""
        return next((b for b in self.blocks or (n_rows,) if n_rows % b == 0), None)

    def sharing(self, n_rows: int) -> tuple[int, int]:
        """Rows that share a scale, and for how many blocks one after another that is so."""
        block = self.block(n_rows)
        if block is None:
            raise ValueError(f"no block divides {n_rows} rows")
        n_alike = n_rows // block if self.by_column else 1
        return block * n_alike, n_alike


@dataclass(frozen=True)
class Factors:
    """What every rounding by one Gram matrix needs of it.

    ``damped``: its diagonal raised so that it can be inverted, float64 [K, K]; ``order``: its
    channels, the largest first, int64 [K]; ``upper``: the Cholesky factor of its inverse in that
    order, float32 [K, K].
    """

    damped: Array
    order: Array
    upper: Array


def factored(gram: Array) -> Factors:
    """Damp, order, invert and factor Xᵀ X: most of the time that rounding a small matrix takes."""
    damped = gram.astype(np.float64)
    diagonal = np.einsum("ii->i", damped)
    diagonal += DAMPING * max(float(diagonal.mean()), 1e-12)
    order = np.argsort(-diagonal, kind="stable")
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    return Factors(damped, order, upper)


def round_matrix(weights: Array, grid: Grid, gram: Array | None = None) -> Rounded:
    """Round float32 [K, N] to ``grid``.

    ``gram``: Xᵀ X of the activations X [tokens, K] that meet the weights. With it, clipping is
    chosen for the error of X W, and each row's rounding error is made up for by the rows still to
    come (GPTQ, Frantar et al. 2023, section 3); the scales of blocks are then fitted to the whole
    numbers and these rounded anew. Without it, rounding is to the nearest step.
    """
    importance = None if gram is None else np.diag(gram).astype(np.float32)
    scale, zero_point = _scales(weights, grid, importance)
    if gram is None:
        scales, zeros = _expand(scale, weights), _expand(zero_point, weights)
        return Rounded(_to_grid(weights, scales, zeros, grid), scale, zero_point)
    factors = factored(gram)
    found = Rounded(compensated(weights, scale, zero_point, grid, factors), scale, zero_point)
    if not grid.blocks or grid.by_column:
        return found
    return _refined(weights, found, grid, gram, factors)


def found_again(weights: Array, grid: Grid) -> Rounded | None:
    """The whole numbers and scales that a float32 matrix [K, N] was made of; None where it was not.

    Of each block or column a step of which all its numbers are whole multiples, to OFF_GRID of it,
    and which the grid has room for.
    """
    n_rows, n_alike = grid.sharing(len(weights))
    blocks = _blocks(weights, n_rows)
    columns = blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])
    steps = None if _steps(columns[:N_TRIED], grid) is None else _steps(columns, grid)
    if steps is None:
        return None
    scale = steps.reshape(len(blocks), -1)
    values = np.rint(blocks / scale[:, None])
    zero_point = np.zeros_like(scale)
    if grid.whole_range:
        zero_point = grid.low - np.minimum(values.min(1), 0)
        values += zero_point[:, None]
    if grid.blocks:
        scale = _no_zeros(scale.astype(np.float16))  # as they are kept on disk
    each = np.repeat(scale, n_alike, axis=0), np.repeat(zero_point, n_alike, axis=0)
    return Rounded(values.reshape(weights.shape), *each)


def _steps(columns: Array, grid: Grid) -> Array | None:
    """The step of each of [B, rows], [B]; None where one has none.

    Many a column reaches the end of the grid, so the finest steps are tried first. Where the grid
    has one number more on one side, that side is the largest number's.
    """
    places = np.abs(columns).argmax(1)
    top = np.take_along_axis(columns, places[:, None], 1)[:, 0]
    steps = np.ones(len(columns), dtype=np.float32)
    left = np.flatnonzero(top)
    most = grid.high - grid.low if grid.whole_range else -grid.low
    for n_steps in range(most, 0, -1):
        step = top[left] / np.float32(-n_steps)
        multiples = columns[left] / step[:, None]
        whole = np.rint(multiples)
        fits = np.abs(multiples - whole).max(1) < OFF_GRID
        low, high = whole.min(1), whole.max(1)
        if grid.whole_range:
            fits &= np.maximum(high, 0) - np.minimum(low, 0) <= grid.high - grid.low
        else:
            fits &= (low >= grid.low) & (high <= grid.high)
        steps[left[fits]] = step[fits]
        left = left[~fits]
    steps = np.abs(steps) if grid.whole_range else steps
    return None if len(left) else steps


def _refined(weights: Array, first: Rounded, grid: Grid, gram: Array, factors: Factors) -> Rounded:
    """Scales and whole numbers by turns, each found for the other; of each column the best kept."""
    best, least = first, _errors(weights, first, gram)
    values, scale = first.values, first.scale
    for _ in range(N_REFITS):
        scale = fitted_scales(weights, values, scale, factors)
        fitted = Rounded(values, scale, first.zero_point)
        values = compensated(weights, scale, first.zero_point, grid, factors)
        for tried in (fitted, Rounded(values, scale, first.zero_point)):
            errors = _errors(weights, tried, gram)
            better = errors < least
            least = np.where(better, errors, least)
            best = Rounded(
                np.where(better, tried.values, best.values),
                np.where(better, tried.scale, best.scale),
                first.zero_point,
            )
    return best


def _errors(weights: Array, rounded: Rounded, gram: Array) -> Array:
    """|X (Ŵ - W)|² of each column, [N]."""
    difference = rounded.matrix() - weights
    return np.asarray(np.einsum("kn,kn->n", difference, gram @ difference))


def fitted_scales(weights: Array, values: Array, scale: Array, factors: Factors) -> Array:
    """The scales of blocks, [B, N], under which X (values · scale) is nearest to X W.

    Least squares, column by column: (Vᵀ G V) s = Vᵀ G w, V the values [K, B] of each block in a
    column of its own. Zero points are 0. Where no scale is found that can be kept, ``scale`` stays.
    """
    n_blocks, n_columns = scale.shape
    damped = factors.damped
    blocks = values.astype(np.float64).reshape(n_blocks, -1, n_columns)
    wanted = (blocks * (damped @ weights).reshape(blocks.shape)).sum(1)
    met = np.empty((n_columns, n_blocks, n_blocks))
    for number, columns in enumerate(np.split(damped, n_blocks, axis=1)):
        met[:, :, number] = (blocks * (columns @ blocks[number]).reshape(blocks.shape)).sum(1).T
    trace = np.einsum("nii->n", met)[:, None, None]
    met += np.eye(n_blocks) * np.maximum(1e-9 * trace, 1e-30)
    fitted = np.linalg.solve(met, wanted.T[..., None])[..., 0].T
    kept = np.clip(fitted, -LARGEST_SCALE, LARGEST_SCALE).astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(kept) & (kept != 0), kept, scale)


def compensated(
    weights: Array, scale: Array, zero_point: Array, grid: Grid, factors: Factors
) -> Array:
    """GPTQ's rounding: rows of ``weights`` in the order of their importance, errors passed on.

    Whole numbers, float32 [K, N]; the scales are given and stay.
    """
    n_rows, order, upper = len(weights), factors.order, factors.upper
    rest = weights[order].astype(np.float32)
    scales = _expand(scale, weights)[order]
    zeros = _expand(zero_point, weights)[order]
    values = np.empty_like(rest)
    for begin in range(0, n_rows, PANEL):
        end = min(begin + PANEL, n_rows)
        errors = np.empty((end - begin, rest.shape[1]), dtype=np.float32)
        for row in range(begin, end):
            values[row] = _to_grid(rest[row], scales[row], zeros[row], grid)
            error = (rest[row] - (values[row] - zeros[row]) * scales[row]) / upper[row, row]
            rest[row + 1 : end] -= upper[row, row + 1 : end, None] * error
            errors[row - begin] = error
        rest[end:] -= upper[begin:end, end:].T @ errors
    back = np.empty_like(values)
    back[order] = values
    return back


def rounded_rows(x: Array, block: int | None) -> Array:
    """Activations [tokens, K] in 8 bits, a scale a block of each row; None: a scale a row."""
    blocks = x.reshape(len(x), -1, block or x.shape[-1])
    step = np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-12) / 127
    return np.asarray(np.rint(blocks / step) * step).reshape(x.shape)


def _to_grid(weights: Array, scale: Array, zero_point: Array, grid: Grid) -> Array:
    return np.asarray(np.clip(np.rint(weights / scale) + zero_point, grid.low, grid.high))


def _scales(weights: Array, grid: Grid, importance: Array | None) -> tuple[Array, Array]:
    """Scale and zero point of each column or block: of some ranges the one that errs least."""
    n_rows, n_alike = grid.sharing(len(weights))
    blocks = _blocks(weights, n_rows)
    weight = np.ones(len(weights), dtype=np.float32) if importance is None else importance
    weight = _blocks(weight[:, None], n_rows)
    best: tuple[Array, Array, Array] | None = None
    for scale, zero_point in _ranges(blocks, grid):
        rounded = _to_grid(blocks, scale[:, None], zero_point[:, None], grid)
        back = (rounded - zero_point[:, None]) * scale[:, None]
        error = (np.square(back - blocks) * weight).sum(1)
        if best is None:
            best = (scale.copy(), zero_point.copy(), error)
            continue
        better = error < best[2]
        for kept, tried in zip(best, (scale, zero_point, error), strict=True):
            kept[better] = tried[better]
    assert best is not None
    return np.repeat(best[0], n_alike, axis=0), np.repeat(best[1], n_alike, axis=0)


def _ranges(blocks: Array, grid: Grid) -> Iterator[tuple[Array, Array]]:
    """Scales and zero points to try for [blocks, rows, N].

    A grid with one number more on one side is tried both ways round: its end can then meet the
    largest weight, whichever sign that has.
    """
    low, high = np.minimum(blocks.min(1), 0), np.maximum(blocks.max(1), 0)
    if grid.whole_range:
        for clip in CLIPS:
            scale = _no_zeros((high - low) * clip / (grid.high - grid.low))
            yield scale, np.clip(np.rint(grid.low - low * clip / scale), grid.low, grid.high)
        return
    largest = np.maximum(-low, high)
    zero = np.zeros_like(largest)
    if not grid.blocks:
        for clip in CLIPS:
            yield _no_zeros(largest * clip / grid.high), zero
        return
    for clip in BLOCK_CLIPS:
        half = np.minimum(largest * clip / -grid.low, LARGEST_SCALE)
        half = half.astype(np.float16)  # as they are kept on disk
        scale = _no_zeros(half)
        yield scale, zero
        yield -scale, zero


def _no_zeros(scale: Array) -> Array:
    return np.where(scale == 0, 1, scale).astype(np.float32)


def _blocks(weights: Array, block: int) -> Array:
    """[K, N] -> [K / block, block, N]."""
    return weights.reshape(-1, block, weights.shape[1])


def _expand(per_block: Array, weights: Array) -> Array:
    """[B, N] -> the shape of weights [K, N]."""
    return np.repeat(per_block, len(weights) // len(per_block), axis=0)
