"""Which texts weights are rounded on, and how."""

from pathlib import Path

import numpy as np
import pytest

from kdexport.data.card import Drops
from kdexport.export.kernels import KERNELS
from kdexport.export.rounding import found_again
from kdexport.pipeline import rounding
from kdexport.pipeline.rounding import kernel_of
from kdexport.pipeline.splits import Splits
from kdexport.train.data import Encoded
from kdexport.train.stream import Lines


def example(name: str) -> Encoded:
    return Encoded(name, np.arange(4), 1, 1)


def splits(train: list[Encoded], lines: Lines | None = None) -> Splits:
    return Splits(train, [], [], "test", 8, Drops(), lines)


def test_texts_lie_evenly_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "N_TEXTS", 4)
    examples = [example(str(number)) for number in range(12)]
    found = rounding._texts(splits(examples))
    assert [one.example_id for one in found] == ["0", "3", "6", "9"]
    assert rounding._texts(splits(examples[:3])) == examples[:3]


def test_of_a_stream_the_first_that_are_not_too_long_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none beyond the lines that are for training."""
    monkeypatch.setattr(rounding, "N_TEXTS", 3)
    path = tmp_path / "pairs.jsonl"
    path.write_text("a\nlong\nb\nc\nd\n")

    def read(line: bytes) -> Encoded | None:
        return None if line == b"long\n" else example(line.decode().strip())

    for n_lines, names in {5: ["a", "b", "c"], 3: ["a", "b"]}.items():
        found = rounding._texts(splits([], Lines(path, n_lines, read)))
        assert [one.example_id for one in found] == names


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_tells_what_shares_a_scale(name: str) -> None:
    kernel, rows = kernel_of(name), 128
    weights = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    kept = kernel.rounded(weights, None)
    assert kept.shape == weights.shape and not np.array_equal(kept, weights)
    block = kernel.block(rows)
    assert block is not None and rows % block == 0
    # Scaled as training may, it is kept as it is: by whole columns, or by blocks of them.
    per_scale = rows if kernel.by_column else block
    factors = np.repeat([[1.1], [0.9]] * (rows // per_scale), per_scale, axis=0)[:rows]
    scaled = (kept * factors.astype(np.float32)).astype(np.float32)
    again = found_again(scaled, KERNELS[name].grid)
    assert again is not None
    np.testing.assert_allclose(again.matrix(), scaled, rtol=2e-3, atol=1e-6)
