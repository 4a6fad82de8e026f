from pathlib import Path

import pytest

from kdexport.errors import InputError
from kdexport.train.model import load_config
from kdexport.train.sizes import StudentSpec, has_own_head_size, narrowed_config, resized_config
from tests.models import make_family


def test_lists_with_one_entry_a_layer_follow_the_layers() -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(num_hidden_layers=4, layer_types=["full_attention"] * 4)
    assert len(resized_config(config, StudentSpec(n_layers=2), None).layer_types) == 2


def test_heads_of_which_a_part_is_rotated_have_a_step_of_their_own(tmp_path: Path) -> None:
    config = load_config(make_family(tmp_path / "m", "phi4"))  # three quarters are rotated
    with pytest.raises(InputError, match="multiple of 64"):
        resized_config(config, StudentSpec(hidden_size=64, n_heads=2, n_kv_heads=1), None)
    resized_config(config, StudentSpec(hidden_size=64, n_heads=1, n_kv_heads=1), None)


@pytest.mark.parametrize(
    ("family", "own"), [("gpt2", False), ("smollm2", True), ("qwen2", True), ("qwen3", True)]
)
def test_which_heads_may_have_a_size_of_their_own(family: str, own: bool, tmp_path: Path) -> None:
    assert has_own_head_size(load_config(make_family(tmp_path / "m", family))) is own


def test_fewer_heads_are_as_large_as_before(tmp_path: Path) -> None:
    before = load_config(make_family(tmp_path / "m", "qwen2"))
    after = narrowed_config(before, 96, 1)
    assert (after.num_attention_heads, after.num_key_value_heads, after.head_dim) == (2, 1, 16)
    assert (after.intermediate_size, after.hidden_size) == (96, before.hidden_size)
