from pathlib import Path

import pytest
import torch

from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.export.layers import read_model
from kdexport.train.model import load_config, load_model, load_tokenizer, save_model
from kdexport.train.student import (
    INITS,
    StudentSpec,
    block_influence,
    decoder_layers,
    feed_forward_reader,
    ffn_importance,
    from_scratch,
    prune,
    resized_config,
)
from kdexport.train.vocabulary import trim_tokenizer
from tests.models import CORPUS, make_family

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
        (StudentSpec(hidden_size=96), "heads of 24 channels .* multiple of 16"),
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


def test_heads_of_which_a_part_is_rotated_have_a_step_of_their_own(tmp_path: Path) -> None:
    config = load_config(make_family(tmp_path / "m", "phi4"))  # three quarters are rotated
    with pytest.raises(InputError, match="multiple of 64"):
        resized_config(config, StudentSpec(hidden_size=64, n_heads=2, n_kv_heads=1), None)
    resized_config(config, StudentSpec(hidden_size=64, n_heads=1, n_kv_heads=1), None)


FIVE = ["sliding_attention", "full_attention", "sliding_attention"] + 2 * ["full_attention"]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2-windows", {"layer_types": FIVE}),
        ("qwen3", {}),
        ("gemma3", {"layer_types": FIVE}),
        ("phi3", {}),
    ],
)
def test_a_student_of_every_family_can_be_exported(
    family: str, changes: dict[str, object], tmp_path: Path
) -> None:
    folder = make_family(tmp_path / "teacher", family, num_hidden_layers=5, **changes)
    teacher = load_model(folder)
    tokenizer, kept_ids = trim_tokenizer(load_tokenizer(folder).backend_tokenizer, CORPUS, 290)
    student = prune(teacher, StudentSpec(n_layers=3, intermediate_size=96), kept_ids, TEXTS)
    assert student.kept_layers is not None
    save_model(student.model, tmp_path / "s", tokenizer_from=folder, tokenizer=tokenizer)
    windows = [layer.window for layer in read_model(teacher.config).layers]
    found = [layer.window for layer in read_model(load_config(tmp_path / "s")).layers]
    assert found == [windows[number] for number in student.kept_layers]
    bundle = export_bundle(tmp_path / "s", tmp_path / "b", name="student")  # checks parity
    assert bundle.manifest.model.n_layers == 3


@pytest.mark.parametrize("family", ["gpt2", "smollm2", "phi3"])  # apart, and gate and up in one
def test_channels_that_are_never_read_go_without_a_trace(family: str, tmp_path: Path) -> None:
    teacher = load_model(make_family(tmp_path / "m", family))
    with torch.no_grad():
        for layer in decoder_layers(teacher):
            reader, axis = feed_forward_reader(layer, 160)
            reader.weight.index_fill_(axis, torch.arange(0, 160, 2), 0.0)
    student = prune(teacher, StudentSpec(intermediate_size=80), None, TEXTS).model
    with torch.no_grad():
        torch.testing.assert_close(student(TEXTS[0]).logits, teacher(TEXTS[0]).logits)
