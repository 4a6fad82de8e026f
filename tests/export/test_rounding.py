"""Rounding against brute force, and GPTQ against its textbook form in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.export.kernels import KERNELS
from kdexport.export.rounding import (
    PANEL,
    Grid,
    Rounded,
    compensated,
    factored,
    fitted_scales,
    found_again,
    round_matrix,
)
from tests.export.drafts import Array, correlated, matrix

GRIDS = {name: kernel.grid for name, kernel in KERNELS.items()}
BLOCKS = [name for name, grid in GRIDS.items() if grid.blocks]
NARROWEST = 0.7  # the smallest share of a range that any grid tries
every_grid = pytest.mark.parametrize("name", GRIDS)
seeds = st.integers(0, 10_000)


def repeated(per_block: Array, n_rows: int) -> Array:
    return np.repeat(per_block, n_rows // len(per_block), axis=0).astype(np.float64)


def nearest_steps(weights: Array, rounded: Rounded, grid: Grid) -> Array:
    """The least distance from each weight to any number that its grid has, by trying all."""
    scale, zero = (repeated(x, len(weights)) for x in (rounded.scale, rounded.zero_point))
    steps = np.arange(grid.low, grid.high + 1)[:, None, None]
    return np.asarray(np.abs((steps - zero) * scale - weights).min(0))


@every_grid
@given(seed=seeds)
def test_every_weight_goes_to_the_nearest_step(name: str, seed: int) -> None:
    weights, grid = matrix(64, 5, seed), GRIDS[name]
    rounded = round_matrix(weights, grid)
    assert rounded.matrix().shape == weights.shape and rounded.matrix().dtype == np.float32
    error = np.abs(rounded.matrix().astype(np.float64) - weights)
    size = np.abs(repeated(rounded.scale, 64))
    best = nearest_steps(weights, rounded, grid)
    assert (error <= best + 1e-4 * size).all()  # float32, and ties
    # The range is no narrower than what is tried, so that no weight loses more than that.
    largest = np.abs(weights.reshape(len(rounded.scale), -1, 5)).max(1)
    span = 2 if grid.whole_range else 1  # of a range of both signs, the part that clipping cuts
    cut = repeated((1 - NARROWEST) * span * largest, 64)
    assert (error <= cut + size).all()
    assert (rounded.values == np.rint(rounded.values)).all()
    assert rounded.values.min() >= grid.low and rounded.values.max() <= grid.high


def unclipped(weights: Array, grid: Grid) -> Array:
    """Squared error [B, N] of plain rounding: the largest weight meets the end of the grid."""
    block = grid.block(len(weights)) or 1
    w = weights.reshape(-1, block, weights.shape[1]).astype(np.float64)
    if grid.whole_range:
        low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
        scale = (high - low) / (grid.high - grid.low)
        zero = np.rint(grid.low - low / scale)
    else:
        scale = np.abs(w).max(1) / (-grid.low if grid.blocks else grid.high)
        scale = scale.astype(np.float16).astype(np.float64) if grid.blocks else scale
        zero = np.zeros_like(scale)
    values = np.clip(np.rint(w / scale[:, None]) + zero[:, None], grid.low, grid.high)
    return np.asarray(np.square((values - zero[:, None]) * scale[:, None] - w).sum(1))


@every_grid
@given(seed=seeds)
def test_clipping_never_costs_more_than_not_clipping(name: str, seed: int) -> None:
    weights = matrix(64, 5, seed)
    rounded = round_matrix(weights, GRIDS[name])
    error = np.square(rounded.matrix().astype(np.float64) - weights)
    chosen = error.reshape(len(rounded.scale), -1, 5).sum(1)
    assert (chosen <= unclipped(weights, GRIDS[name]) * (1 + 1e-3)).all()  # float32's own error


@every_grid
def test_zeros_stay_zeros(name: str) -> None:
    weights = np.zeros((32, 3), dtype=np.float32)
    weights[0] = [5, 0, -2]
    rounded = round_matrix(weights, GRIDS[name])
    assert (rounded.matrix()[1:] == 0).all() and (rounded.matrix()[:, 1] == 0).all()
    np.testing.assert_allclose(rounded.matrix()[0], weights[0], rtol=1e-2)


@pytest.mark.parametrize("name", BLOCKS)
@given(seed=seeds, power=st.integers(-5, 3))
def test_scales_of_blocks_survive_half_precision(name: str, seed: int, power: int) -> None:
    scale = round_matrix(matrix(64, 5, seed) * np.float32(10.0**power), GRIDS[name]).scale
    np.testing.assert_array_equal(scale.astype(np.float16).astype(np.float32), scale)


def test_a_weight_beyond_half_precision_is_cut_off() -> None:
    weights = np.ones((32, 1), dtype=np.float32)
    weights[3] = 1e6
    found = round_matrix(weights, GRIDS["block4"]).matrix()
    assert found[3, 0] == 8 * 65504 and (found[4:] == 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_end_of_four_bits_meets_the_largest_weight_of_either_sign(sign: int) -> None:
    weights = sign * np.asarray([*range(-7, 9), *range(-7, 9)], dtype=np.float32)[:, None]
    rounded = round_matrix(weights, GRIDS["block4"])  # -8 to 7 holds it one way round only
    assert rounded.scale.item() == -sign
    np.testing.assert_array_equal(rounded.matrix(), weights)


def test_zero_points_take_the_whole_range() -> None:
    ramp = np.linspace(1, 2, 64, dtype=np.float32)
    weights = np.stack([ramp, -ramp, ramp - 1.25], axis=1)
    rounded = round_matrix(weights, GRIDS["rows8u"])
    assert rounded.zero_point.tolist()[0][:2] == [0, 255]  # 0 has to be in it
    np.testing.assert_allclose(rounded.scale[0], [2 / 255, 2 / 255, 1 / 255], rtol=0.16)
    assert rounded.zero_point[0, 2] == pytest.approx(255 * 0.25, abs=12)
    error = np.abs(rounded.matrix() - weights).max(0)
    assert (error <= 0.16 * np.abs(weights).max(0)).all()


def test_blocks_are_as_wide_as_divide_the_rows() -> None:
    grid = GRIDS["wide8"]
    assert [grid.block(n) for n in (256, 192, 96, 48)] == [128, 64, 32, None]
    assert GRIDS["rows8u"].block(48) == 48
    assert round_matrix(matrix(192, 2), grid).scale.shape == (3, 2)
    with pytest.raises(ValueError, match="no block divides 48 rows"):
        round_matrix(matrix(48, 2), grid)


def textbook(weights: Array, rounded: Rounded, grid: Grid, gram: Array) -> Array:
    """Optimal brain quantization in the order of the diagonal, float64, a row at a time.

    Frantar et al. 2023, equations 2 and 3: the error of a row goes to those that are left, whose
    inverse Hessian then loses it. No Cholesky factor and no panels.
    """
    n_rows = len(weights)
    scale, zero = (repeated(x, n_rows) for x in (rounded.scale, rounded.zero_point))
    hessian = gram.astype(np.float64)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(n_rows)
    inverse = np.linalg.inv(hessian)
    rest, values = weights.astype(np.float64), np.empty(weights.shape)
    for row in np.argsort(-np.diag(hessian), kind="stable"):
        values[row] = np.clip(np.rint(rest[row] / scale[row]) + zero[row], grid.low, grid.high)
        error = rest[row] - (values[row] - zero[row]) * scale[row]
        rest -= np.outer(inverse[:, row], error) / inverse[row, row]
        inverse -= np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
        inverse[row, row] = 1  # never asked for again
    return values


@pytest.mark.parametrize("n_rows", [32, PANEL + 32])
@pytest.mark.parametrize("name", ["block4", "rows8u"])
def test_errors_are_made_up_for_as_the_textbook_does(name: str, n_rows: int) -> None:
    weights, grid = matrix(n_rows, 6), GRIDS[name]
    x = correlated(4 * n_rows, n_rows).astype(np.float64)
    rounded = round_matrix(weights, grid)
    found = compensated(weights, rounded.scale, rounded.zero_point, grid, factored(x.T @ x))
    expected = textbook(weights, rounded, grid, x.T @ x)
    # Where float32 falls on the other side of a half, a step is other and those after it follow.
    assert (found == expected).mean() > 0.99
    assert (found != rounded.values).mean() > 0.05  # they are not what the nearest steps are


@pytest.mark.parametrize("seed", range(3))
@every_grid
def test_making_up_for_errors_lowers_that_of_the_product(name: str, seed: int) -> None:
    weights, x = matrix(192, 8, seed), correlated(500, 192, seed)
    nearest = round_matrix(weights, GRIDS[name])
    careful = round_matrix(weights, GRIDS[name], x.T @ x)

    def error(rounded: Rounded) -> float:
        return float(np.square(x.astype(np.float64) @ (rounded.matrix() - weights)).sum())

    assert error(careful) < 0.8 * error(nearest)


@pytest.mark.parametrize("name", BLOCKS)
def test_fitted_scales_are_those_of_least_squares(name: str) -> None:
    """Beside numpy's solver on X, the damping as further rows of it; half precision's tolerance."""
    weights, x = matrix(256, 4), correlated(600, 256).astype(np.float64)
    first = round_matrix(weights, GRIDS[name])
    found = fitted_scales(
        weights, first.values, first.scale, factored((x.T @ x).astype(np.float32))
    )
    damping = np.sqrt(0.01 * np.square(x).sum(0).mean()) * np.eye(256)
    damped = np.concatenate([x, damping])
    blocks = first.values.reshape(*first.scale.shape[:1], -1, 4)
    for column in range(4):
        parts = np.zeros((256, len(blocks)))
        for number, block in enumerate(blocks):
            parts[number * len(block) : (number + 1) * len(block), number] = block[:, column]
        expected = np.linalg.lstsq(damped @ parts, damped @ weights[:, column], rcond=None)[0]
        np.testing.assert_allclose(found[:, column], expected, rtol=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_fitted_scales_lower_the_error_of_the_product(seed: int) -> None:
    weights, x = matrix(192, 8, seed), correlated(500, 192, seed).astype(np.float64)
    grid, gram = GRIDS["block4"], (x.T @ x).astype(np.float32)
    start = round_matrix(weights, grid)
    values = compensated(weights, start.scale, start.zero_point, grid, factored(gram))
    once = Rounded(values, start.scale, start.zero_point)
    often = round_matrix(weights, grid, gram)

    def errors(rounded: Rounded) -> Array:
        return np.asarray(np.square(x @ (rounded.matrix() - weights)).sum(0))

    assert errors(often).sum() < 0.97 * errors(once).sum()


@every_grid
def test_channels_that_do_not_go_together_have_nothing_to_make_up_for(name: str) -> None:
    weights = matrix(64, 5)
    nearest = round_matrix(weights, GRIDS[name])
    gram = np.diag(np.arange(1, 65)).astype(np.float32)
    found = compensated(weights, nearest.scale, nearest.zero_point, GRIDS[name], factored(gram))
    np.testing.assert_array_equal(found, nearest.values)


def test_clipping_is_chosen_for_the_channels_that_matter() -> None:
    """One weight of a block is far larger: it is kept where its channel is read, else cut."""
    weights = np.full((32, 1), 0.1, dtype=np.float32)
    weights[1::2], weights[0] = -0.1, 1
    read, unread = np.ones(32), np.ones(32)
    read[0], unread[0] = 1e6, 1e-6
    kept, cut = (round_matrix(weights, GRIDS["block4"], np.diag(g)) for g in (read, unread))
    assert abs(kept.matrix()[0, 0] - 1) < 1e-3
    assert abs(cut.scale.item()) < 0.95 * abs(kept.scale.item())


def test_channels_that_are_never_read_do_no_harm() -> None:
    x = correlated(100, 64)
    x[:, 5] = 0
    found = round_matrix(matrix(64, 5), GRIDS["block4"], x.T @ x)
    assert np.isfinite(found.matrix()).all()
    silent = round_matrix(matrix(64, 5), GRIDS["block4"], np.zeros((64, 64), dtype=np.float32))
    assert np.isfinite(silent.matrix()).all()


@every_grid
@given(seed=seeds)
def test_whole_numbers_are_found_again_whatever_their_scales(name: str, seed: int) -> None:
    weights, grid = matrix(128, 6, seed), GRIDS[name]
    rng = np.random.default_rng(seed)
    x = correlated(200, 128, seed)
    first = round_matrix(weights, grid, x.T @ x if seed % 2 else None)
    n_alike = len(first.scale) if grid.by_column else 1
    changed = rng.uniform(0.7, 1.4, (len(first.scale) // n_alike, 6)).astype(np.float32)
    scale = first.scale * np.repeat(changed, n_alike, axis=0)
    trained = Rounded(first.values, scale, first.zero_point).matrix()
    trained[:, 0] = 0  # a column that nothing needs
    found = found_again(trained, grid)
    assert found is not None
    # Scales of blocks are kept in half precision.
    np.testing.assert_allclose(found.matrix(), trained, rtol=2e-3, atol=1e-6)
    assert found.values.min() >= grid.low and found.values.max() <= grid.high
    assert found.scale.shape == found.zero_point.shape == first.scale.shape


@every_grid
@given(seed=seeds)
def test_what_lies_on_no_grid_is_not_found(name: str, seed: int) -> None:
    weights, grid = matrix(128, 6, seed), GRIDS[name]
    assert found_again(weights, grid) is None
    rounded = round_matrix(weights, grid)
    moved, row = rounded.matrix(), seed % 128
    moved[row, 3] += 0.4 * rounded.scale[row * len(rounded.scale) // 128, 3]
    assert found_again(moved, grid) is None
