from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import InputError
from kdexport.train.fresh import principal_axes, projected
from kdexport.train.model import load_config, load_model
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import INITS
from tests.models import make_llama

HALF = StudentSpec(n_layers=2, hidden_size=32, n_heads=2, n_kv_heads=1, intermediate_size=96)


def differences(table: Any) -> np.ndarray:
    """Products of all rows, less their mean, with one another."""
    rows = np.asarray(table, dtype=np.float64)
    rows = rows - rows.mean(0)
    return rows @ rows.T


def best_of_rank(table: Any, rank: int) -> np.ndarray:
    rows = np.asarray(table, dtype=np.float64)
    u, s, vt = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    near = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return np.asarray(near @ near.T)


@pytest.mark.parametrize("tied", [True, False])
def test_no_narrower_table_keeps_tokens_better_apart(tied: bool, tmp_path: Path) -> None:
    """Against numpy's singular value decomposition in float64; entries are about 1, float32."""
    teacher = load_model(make_llama(tmp_path / "m", tied=tied))
    kept = [0, 1, 2, *range(30, 200)]
    student = projected(teacher, HALF, kept)
    both = [(m.get_input_embeddings(), m.get_output_embeddings()) for m in (teacher, student)]
    for before, after in zip(*both, strict=True):
        expected = best_of_rank(before.weight.detach()[kept], 32)
        found = differences(after.weight.detach())
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (both[1][0].weight is both[1][1].weight) == tied


def test_a_table_of_few_axes_loses_nothing() -> None:
    torch.manual_seed(0)
    table = torch.randn(90, 8) @ torch.randn(8, 40) + 3.0
    axes = principal_axes(table, 8)
    np.testing.assert_allclose(axes.T @ axes, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(differences(table @ axes), differences(table), atol=2e-2)


def test_no_channel_holds_most_of_a_projected_table() -> None:
    torch.manual_seed(0)
    table = torch.randn(500, 64)
    table[:, 7] *= 50  # one axis holds nearly all
    power = (table @ principal_axes(table, 32)).var(0)
    assert power.max() < 0.4 * power.sum()
    assert table.var(0).max() > 0.9 * table.var(0).sum()


def test_positions_go_through_the_same_axes(gpt2: Path) -> None:
    teacher = load_model(gpt2)
    torch.manual_seed(0)
    student = projected(teacher, StudentSpec(n_layers=2, hidden_size=32, n_heads=2), None)
    torch.manual_seed(0)
    again = projected(teacher, StudentSpec(n_layers=2, hidden_size=32, n_heads=2), None)
    table = teacher.transformer.wte.weight
    axes = torch.linalg.lstsq(table - table.mean(0), student.transformer.wte.weight).solution
    with torch.no_grad():
        torch.testing.assert_close(
            student.transformer.wpe.weight, teacher.transformer.wpe.weight @ axes, atol=1e-3, rtol=0
        )
        torch.testing.assert_close(student.transformer.wte.weight, again.transformer.wte.weight)


@pytest.mark.parametrize("width", [96, None])
def test_only_a_narrower_width_can_be_projected_to(llama: Path, width: int | None) -> None:
    with pytest.raises(InputError, match="embeddings of 64 cannot be projected") as caught:
        INITS["projected"].check(load_config(llama), StudentSpec(hidden_size=width, n_heads=4))
    assert caught.value.where == "student.hidden_size"
