from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.export.layers import read_model
from kdexport.train.model import load_config, load_model, load_tokenizer, save_model
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import INITS, Origin, prune, scratch
from kdexport.train.vocabulary import Said, trim_tokenizer
from tests.models import CORPUS, make_family, make_gpt2

TEXTS = [torch.arange(3, 40)[None], torch.arange(60, 90)[None]]


@pytest.fixture(params=["llama", "gpt2"])
def teacher(request: pytest.FixtureRequest) -> Any:
    folder: Path = request.getfixturevalue(request.param)
    return load_model(folder)


@pytest.mark.parametrize("whole", [False, True])
def test_keeping_everything_changes_nothing(teacher: Any, whole: bool) -> None:
    width = 160 if teacher.config.model_type == "llama" else 256
    spec = StudentSpec(n_heads=4, intermediate_size=width) if whole else StudentSpec()
    student = prune(Origin(teacher, None, TEXTS), spec).model
    with torch.no_grad():
        torch.testing.assert_close(student(TEXTS[0]).logits, teacher(TEXTS[0]).logits)


def test_fewer_layers_rows_and_channels(teacher: Any) -> None:
    kept = [0, 1, 2, *range(30, 90)]
    spec = StudentSpec(n_layers=3, intermediate_size=96)
    student = prune(Origin(teacher, kept, TEXTS), spec)
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


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        (StudentSpec(n_layers=99), "student.n_layers"),
        (StudentSpec(intermediate_size=99999), "student.intermediate_size"),
        (StudentSpec(n_kv_heads=9), "student.n_kv_heads"),
        (StudentSpec(n_heads=2), "student.n_heads"),
    ],
)
def test_sizes_that_cannot_be_cut_are_refused(gpt2: Path, spec: StudentSpec, where: str) -> None:
    with pytest.raises(InputError) as caught:
        INITS["prune"].check(load_config(gpt2), spec)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (StudentSpec(n_heads=3), "no whole groups: the teacher has 2 to each of its 2"),
        (StudentSpec(n_heads=4, n_kv_heads=1), "no whole groups"),
        (StudentSpec(n_heads=6), "3 key-value heads asked of a teacher that has 2"),
    ],
)
def test_groups_of_heads_stay_whole(llama: Path, spec: StudentSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        INITS["prune"].check(load_config(llama), spec)


def test_from_scratch_takes_any_size(teacher: Any) -> None:
    spec = StudentSpec(n_layers=2, hidden_size=32, n_heads=2)
    student = scratch(Origin(teacher, list(range(50)), TEXTS), spec).model
    with torch.no_grad():
        assert student(torch.tensor([[1, 2]])).logits.shape == (1, 2, 50)
    with pytest.raises(InputError, match="not a multiple"):
        scratch(Origin(teacher, None, TEXTS), StudentSpec(hidden_size=33, n_heads=2))


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


FIVE = ["sliding_attention", "full_attention", "sliding_attention"] + 2 * ["full_attention"]


@pytest.mark.parametrize(
    ("family", "changes", "n_heads"),
    [
        ("qwen2-windows", {"layer_types": FIVE}, 2),
        ("qwen3", {}, 2),
        ("gemma3", {"layer_types": FIVE}, 2),
        ("phi3", {}, None),
        ("gpt2", {}, None),
        ("smollm2", {}, 2),
    ],
)
def test_a_student_of_every_family_can_be_exported(
    family: str, changes: dict[str, object], n_heads: int | None, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    if family == "gpt2":  # with its own words for sizes, and no others
        make_gpt2(folder, n_layers=5)
    else:
        make_family(folder, family, num_hidden_layers=5, **changes)
    teacher = load_model(folder)
    texts = map(Said, CORPUS)
    tokenizer, kept_ids = trim_tokenizer(load_tokenizer(folder).backend_tokenizer, texts, 290)
    spec = StudentSpec(n_layers=3, intermediate_size=96, n_heads=n_heads)
    student = prune(Origin(teacher, kept_ids, TEXTS), spec)
    assert student.kept_layers is not None
    save_model(student.model, tmp_path / "s", tokenizer_from=folder, tokenizer=tokenizer)
    windows = [layer.window for layer in read_model(teacher.config).layers]
    found = [layer.window for layer in read_model(load_config(tmp_path / "s")).layers]
    assert found == [windows[number] for number in student.kept_layers]
    on_disk = load_file(tmp_path / "s" / "model.safetensors")
    assert sum(t.numel() for t in on_disk.values()) == student.model.num_parameters()  # tied once
    bundle = export_bundle(tmp_path / "s", tmp_path / "b", name="student")  # checks parity
    assert bundle.manifest.model.n_layers == 3
    assert bundle.manifest.model.n_parameters == student.model.num_parameters()
