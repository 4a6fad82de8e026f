"""Each kernel's graph against numpy's integer arithmetic, or against the matrix it stands for."""

import numpy as np
import pytest

from kdexport.export.draft import Draft
from kdexport.export.kernels import KERNELS, packed
from kdexport.export.rounding import Rounded, round_matrix
from kdexport.runtime.probes import probe_kernel
from tests.export.drafts import Array, integer_product, matrix, product_draft, run, some_rows

ROWS, BLOCKS = ("rows8u", "rows8"), ("wide8", "column8", "block8", "block4")


@pytest.fixture(params=ROWS)
def rows(request: pytest.FixtureRequest) -> str:
    if request.param == "rows8" and probe_kernel("dynamic-signed").verdict != "ok":
        pytest.skip("this CPU's products of signed weights saturate; nothing chooses them here")
    return str(request.param)


def rewritten(kernel: str, weights: Array) -> tuple[Draft, Rounded]:
    draft = product_draft(weights)
    rounded = round_matrix(weights, KERNELS[kernel].grid)
    KERNELS[kernel].write(draft, next(draft.products()), rounded)
    draft.remove_unused()
    return draft, rounded


@pytest.mark.parametrize("n", [1, 2, 7, 40])
@pytest.mark.parametrize("n_channels", [64, 100])
def test_rows_are_numpys_integers(rows: str, n_channels: int, n: int) -> None:
    draft, rounded = rewritten(rows, matrix(n_channels, 40))
    x = some_rows(n, n_channels)
    expected = integer_product(x, rounded)
    (found,) = run(draft, x=x)
    np.testing.assert_allclose(
        found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max(1).min()
    )


def test_signed_sums_do_not_saturate_where_they_are_used(rows: str) -> None:
    """All activations and weights at their ends: pairs of products pass 16 bits."""
    x = np.ones((3, 64), dtype=np.float32)
    x[1] = -1
    (found,) = run(rewritten(rows, np.ones((64, 40), dtype=np.float32))[0], x=x)
    np.testing.assert_allclose(found, x @ np.ones((64, 40)), rtol=1e-5)


@pytest.mark.parametrize("n_columns", [40, 33])
def test_rows_read_together_are_bitwise_those_read_apart(rows: str, n_columns: int) -> None:
    draft, _ = rewritten(rows, matrix(64, n_columns))
    x = some_rows(9, 64)
    (together,) = run(draft, x=x)
    apart = np.concatenate([run(draft, x=x[n : n + 1])[0] for n in range(len(x))])
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("kernel", BLOCKS)
def test_blocks_hold_the_matrix(kernel: str) -> None:
    """Rows of one channel each: activations lose nothing, so the products are the weights."""
    draft, rounded = rewritten(kernel, matrix(128, 40))
    (found,) = run(draft, x=np.eye(128, dtype=np.float32))
    np.testing.assert_allclose(found, rounded.matrix(), rtol=1e-5, atol=1e-5)
    half = run(draft, x=-2 * np.eye(128, dtype=np.float32)[5:6])[0]  # the kernel of one row
    np.testing.assert_allclose(half, -2 * rounded.matrix()[5:6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("kernel", BLOCKS)
def test_blocks_err_no_more_than_eight_bits_of_activations(kernel: str, n: int) -> None:
    draft, rounded = rewritten(kernel, matrix(128, 40))
    x = some_rows(n + 1, 128)[:n]
    (found,) = run(draft, x=x)
    exact = x.astype(np.float64) @ rounded.matrix()
    n_blocks = len(rounded.scale)
    steps = np.abs(x.reshape(n, n_blocks, -1)).max(-1) / 127  # half of one is the most it errs by
    bound = np.repeat(steps / 2, 128 // n_blocks, axis=1) @ np.abs(rounded.matrix())
    assert (np.abs(found - exact) <= 1.01 * bound + 1e-5 * np.abs(exact).max()).all()
    assert (np.abs(found - exact) > 0).any()


@pytest.mark.parametrize("kernel", BLOCKS)
def test_blocks_of_other_rows_change_nothing(kernel: str) -> None:
    draft, _ = rewritten(kernel, matrix(128, 40))
    x = some_rows(9, 128)
    (together,) = run(draft, x=x)
    (apart,) = run(draft, x=x[:2])
    np.testing.assert_allclose(together[:2], apart, rtol=1e-4, atol=1e-4)  # order of float sums


@pytest.mark.parametrize("kernel", [*BLOCKS, "rows8u"])
def test_rows_of_zeros_give_zeros(kernel: str) -> None:
    draft, _ = rewritten(kernel, matrix(128, 40))
    for n in (1, 5):
        (found,) = run(draft, x=np.zeros((n, 128), dtype=np.float32))
        np.testing.assert_array_equal(found, np.zeros((n, 40)))


@pytest.mark.parametrize("kernel", [*BLOCKS, "rows8u"])
def test_the_bits_are_those_that_are_stored(kernel: str) -> None:
    weights = matrix(128, 40)
    draft, _ = rewritten(kernel, weights)
    largest = max(draft.weights.values(), key=lambda array: array.nbytes)
    assert largest.nbytes * 8 == weights.size * KERNELS[kernel].bits
    assert "w" not in draft.weights


def test_four_bits_lie_two_in_a_byte_the_first_below() -> None:
    values = np.asarray([[-8], [-7], [0], [7]], dtype=np.float32)
    rounded = Rounded(values, np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32))
    assert packed(rounded, 4).tolist() == [[[0x10], [0xF8]]]
    assert packed(rounded, 8).tolist() == [[[120, 121], [128, 135]]]
