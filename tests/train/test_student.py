from pathlib import Path

import pytest
import torch

from kdexport.errors import InputError
from kdexport.train.model import load_config, load_model
from kdexport.train.student import (
    INITS,
    StudentSpec,
    block_influence,
    ffn_importance,
    from_scratch,
    prune,
    resized_config,
)

TEXTS = [torch.arange(3, 40)[None], torch.arange(60, 90)[None]]


@pytest.fixture(params=["llama", "gpt2"])
def teacher(request: pytest.FixtureRequest) -> object:
    folder: Path = request.getfixturevalue(request.param)
    return load_model(folder)


def test_keeping_everything_changes_nothing(teacher: object) -> None:
    student = prune(teacher, StudentSpec(), None, TEXTS).model
    with torch.no_grad():
        torch.testing.assert_close(student(TEXTS[0]).logits, teacher(TEXTS[0]).logits)  # type: ignore[operator]


def test_fewer_layers_rows_and_channels(teacher: object) -> None:
    kept = [0, 1, 2, *range(30, 90)]
    spec = StudentSpec(n_layers=3, intermediate_size=96)
    student = prune(teacher, spec, kept, TEXTS)
    assert student.kept_layers is not None
    assert len(student.kept_layers) == 3
    assert student.model.config.num_hidden_layers == 3
    assert student.model.get_input_embeddings().weight.shape[0] == len(kept)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert student.model(ids).logits.shape == (1, 4, len(kept))
    tied = (
        student.model.get_output_embeddings().weight is student.model.get_input_embeddings().weight
    )
    assert tied


def test_trimming_the_vocabulary_keeps_the_kept_logits(teacher: object) -> None:
    kept = [0, 1, 2, *range(20, 120)]
    student = prune(teacher, StudentSpec(), kept, TEXTS).model
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        expected = teacher(torch.tensor(kept)[ids]).logits[..., kept]  # type: ignore[operator]
        torch.testing.assert_close(student(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_student_ends_its_texts_where_the_teacher_does(teacher: object) -> None:
    kept = [0, 2, *range(20, 120)]
    teacher.generation_config.eos_token_id = [2, 21]  # type: ignore[attr-defined]
    student = prune(teacher, StudentSpec(), kept, TEXTS).model
    assert student.generation_config.eos_token_id == [1, 3]


def test_the_least_influential_layers_go() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    teacher = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=5,
            num_attention_heads=4,
            initializer_range=0.3,
        )
    ).eval()
    with torch.no_grad():  # layer 2 adds nothing to the residual stream
        teacher.model.layers[2].self_attn.o_proj.weight.zero_()
        teacher.model.layers[2].mlp.down_proj.weight.zero_()
    influence = block_influence(teacher, TEXTS)
    assert influence[2] == pytest.approx(0.0, abs=1e-6)
    student = prune(teacher, StudentSpec(n_layers=4), None, TEXTS)
    assert student.kept_layers == [0, 1, 3, 4]
    with torch.no_grad():
        torch.testing.assert_close(student.model(TEXTS[0]).logits, teacher(TEXTS[0]).logits)


def test_channels_that_say_nothing_matter_least(teacher: object) -> None:
    importance = ffn_importance(teacher, TEXTS)
    assert all((layer >= 0).all() for layer in importance)
    student = prune(teacher, StudentSpec(intermediate_size=importance[0].numel()), None, TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(student.model(TEXTS[0]).logits, teacher(TEXTS[0]).logits)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        (StudentSpec(n_layers=99), "student.n_layers"),
        (StudentSpec(intermediate_size=99999), "student.intermediate_size"),
    ],
)
def test_sizes_beyond_the_teacher_s_are_refused(
    teacher: object, spec: StudentSpec, where: str
) -> None:
    with pytest.raises(InputError) as caught:
        prune(teacher, spec, None, TEXTS)
    assert caught.value.where == where


def test_from_scratch_takes_any_size(teacher: object) -> None:
    spec = StudentSpec(n_layers=2, hidden_size=32, n_heads=2)
    student = from_scratch(teacher, spec, list(range(50)), TEXTS).model
    with torch.no_grad():
        assert student(torch.tensor([[1, 2]])).logits.shape == (1, 2, 50)
    with pytest.raises(InputError, match="not a multiple"):
        from_scratch(teacher, StudentSpec(hidden_size=33, n_heads=2), None, TEXTS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (StudentSpec(n_heads=8, n_kv_heads=3), "not a multiple of n_kv_heads 3"),
        (StudentSpec(hidden_size=102), "not a multiple of n_heads"),
        (StudentSpec(hidden_size=48), "heads of 12 channels"),
    ],
)
def test_sizes_that_no_model_can_have_are_refused(
    llama: Path, spec: StudentSpec, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        INITS["scratch"].check(load_config(llama), spec)


def test_lists_with_one_entry_a_layer_follow_the_layers() -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(num_hidden_layers=4, layer_types=["full_attention"] * 4)
    assert len(resized_config(config, StudentSpec(n_layers=2), None).layer_types) == 2
