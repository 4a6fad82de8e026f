from pathlib import Path

import pytest
import torch

from kdexport.train.model import load_config, load_model
from kdexport.train.shapes import config_of, n_computing, shapes_of
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import INITS, Origin
from tests.models import make_family, make_gpt2, make_llama

TEXTS = [torch.arange(3, 40)[None]]


@pytest.mark.parametrize("init", ["prune", "scratch", "projected"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_every_candidate_can_be_made(family: str, init: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    make = {"llama": make_llama, "gpt2": make_gpt2}.get(family)
    if make is None:
        make_family(folder, family, num_hidden_layers=4)
    else:
        make(folder, n_layers=4)
    config = load_config(folder)
    rows = shapes_of(config, StudentSpec(), cut=init == "prune")
    assert len(rows) > 1
    for row in rows:
        assert [shape.n_layers for shape in row] == [2, 3, 4]
        sizes = [n_computing(config_of(config, shape, None, cut=init == "prune")) for shape in row]
        assert sizes == sorted(set(sizes))
        for shape in row:
            INITS[init].check(config, shape)
    smallest = INITS[init].make(Origin(load_model(folder), None, TEXTS), rows[0][0]).model
    expected = config_of(config, rows[0][0], None, cut=init == "prune")
    assert n_computing(smallest.config) == n_computing(expected)
    tables = {smallest.get_input_embeddings().weight, smallest.get_output_embeddings().weight}
    if family == "gpt2":
        tables.add(smallest.transformer.wpe.weight)
    n_named = sum(table.numel() for table in tables)
    assert n_computing(expected) == smallest.num_parameters() - n_named


def test_sizes_that_are_settled_leave_one_row_or_column(llama: Path) -> None:
    config = load_config(llama)
    rows = shapes_of(config, StudentSpec(n_layers=3, intermediate_size=96), cut=True)
    assert rows == [[StudentSpec(n_layers=3, intermediate_size=96)]]
    wide = StudentSpec(hidden_size=32, n_heads=2, n_kv_heads=1)
    assert len(shapes_of(config, wide, cut=False)) == 1


def test_a_real_teacher_has_a_grid_of_some_two_dozen() -> None:
    """SmolLM2-135M: 30 layers, 9 heads to 3 key-value heads, 576 wide, 1536 channels."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    cut = shapes_of(config, StudentSpec(), cut=True)
    assert [shape.n_layers for shape in cut[0]] == [4, 8, 11, 15, 22, 30]
    assert [row[0].intermediate_size for row in cut] == [512, 768, 1024, 1536]
    new = shapes_of(config, StudentSpec(), cut=False)
    assert [(r[0].hidden_size, r[0].n_heads, r[0].n_kv_heads) for r in new] == [
        (192, 3, 1),
        (384, 6, 2),
        (576, 9, 3),
    ]
    assert [row[0].intermediate_size for row in new] == [512, 1024, 1536]
