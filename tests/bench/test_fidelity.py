"""KL and top-1 of logits against a kept reference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.peers.fidelity import compare, distances, write_reference


def test_distances_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 5, 7)).astype(np.float32)
    kl, same = distances(ours, theirs)
    for row in range(5):
        p, q = (np.exp(x[row].astype(np.float64)) for x in (ours, theirs))
        p, q = p / p.sum(), q / q.sum()
        # float64 both ways: 1e-12 is rounding
        assert kl[row] == pytest.approx(
            sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-12
        )
        assert same[row] == (p.argmax() == q.argmax())


def test_large_logits_do_not_overflow() -> None:
    kl, same = distances(np.full((1, 3), 5000.0), np.asarray([[5000.0, 4000.0, 5000.0]]))
    assert np.isfinite(kl).all() and same.all()


def test_a_model_is_compared_window_by_window(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(size=(11, 11)).astype(np.float32)
    windows = np.asarray([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    write_reference(tmp_path, windows, 11, lambda ids: logits[list(ids)])
    assert compare(tmp_path, 3, lambda ids: logits[list(ids)] + 2) == {
        "kl": pytest.approx(0, abs=1e-12),  # a constant changes no distribution
        "top1": 1.0,
        "n_tokens": 9,
    }

    def last_is_wrong(ids: Sequence[int]) -> np.ndarray:
        return logits[list(ids)] * (-1 if 9 in ids else 1)

    assert compare(tmp_path, 2, last_is_wrong)["kl"] == pytest.approx(0, abs=1e-12)
    assert compare(tmp_path, 3, last_is_wrong)["top1"] == pytest.approx(6 / 9)


def test_logits_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_reference(tmp_path, np.asarray([[1, 2]]), 4, lambda ids: np.zeros((2, 4)))
    with pytest.raises(ValueError, match="are expected"):
        compare(tmp_path, 1, lambda ids: np.zeros((1, 4)))
