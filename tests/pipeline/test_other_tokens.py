"""A run whose student has a tokenizer of its own, from the recipe to the bundle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdexport.errors import InputError
from kdexport.pipeline.cutting import check_student
from kdexport.pipeline.importing import import_targets
from kdexport.pipeline.run import open_run as opened
from kdexport.pipeline.run import run_stages
from kdexport.pipeline.search import check_searches, parse_search
from kdexport.recipe import Recipe, load_recipe
from kdexport.system.metrics import read_curve
from kdexport.train.model import load_model
from tests.models import CORPUS, byte_level_bpe, make_gpt2, make_llama

RECIPE = """\
name: other
teacher: {source: teacher}
data: {pairs: pairs.jsonl}
student: {init: checkpoint, from: student}
train: {loss: uld, targets: hidden, lr: 3e-3, batch_size: 8, max_steps: 30, evaluate_steps: 15}
bench: {prompt_tokens: 8, new_tokens: 4, n_runs: 1, n_samples: 1}
"""
OTHER = ["Frisches Brot aus dem Ofen, heute noch warm.", "Zwei Paar Schuhe, ein Preis; das Meer."]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    monkeypatch.chdir(tmp_path)
    teacher = load_model(make_llama(tmp_path / "teacher", n_layers=2))
    teacher.get_output_embeddings().weight.data *= 4  # surer than a new model, as teachers are
    teacher.save_pretrained(tmp_path / "teacher")
    make_gpt2(tmp_path / "student", tokenizer=byte_level_bpe(400, OTHER))
    texts = [CORPUS[n % 4][: 19 + n] for n in range(22)]
    asked = [{"prompt": f"Text {n}.", "completion": text} for n, text in enumerate(texts)]
    splits = ["train"] * 16 + ["validation"] * 4 + ["test"] * 2
    rows: list[dict[str, Any]] = [
        {**(row if n % 3 else {"text": text}), "split": split}
        for n, (row, text, split) in enumerate(zip(asked, texts, splits, strict=True))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return lambda *overrides: load_recipe(tmp_path / "recipe.yaml", overrides)


def test_a_gpt2_is_distilled_from_a_llama_and_exported(
    recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    run = opened(recipe("train.task_weight=0"))  # a random teacher's texts are not its own
    run_stages(run)
    assert (
        "of the student's tokens begin where one of the teacher's does" in capsys.readouterr().err
    )
    apart = [point.row["divergence"] for point in read_curve(run.metrics)]
    assert sum(apart[-5:]) < 0.7 * sum(apart[:5])
    found = [p.evaluation for p in read_curve(run.metrics) if p.evaluation]
    assert [one["kl"] for one in found] == [None, None]
    assert not run.reference.exists()  # nobody measures a KL between two vocabularies
    manifest = json.loads((run.quantized_bundle / "manifest.json").read_text())
    assert manifest["model"]["family"] == "gpt2"
    arms = json.loads((run.folder / "bench.json").read_text())["arms"]
    assert [arm["kl_mean"] for arm in arms] == [None] * len(arms)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.init=prune student.from=null", "uld needs student.init: checkpoint"),
        ("train.targets=cached", "uld needs targets: hidden, or live"),
        ("train.targets=imported", "uld needs targets: hidden, or live"),
        ("train.prompt_weight=1", "uld compares completions only"),
        ("train.hidden_weight=1", "uld compares completions only"),
        ("train.on_policy.temperature=1", "uld takes neither on_policy nor inside"),
        ("train.inside=blocks", "uld takes neither on_policy nor inside"),
        ("train.loss=[uld,forward_kl]", "uld stands alone"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    recipe: Callable[..., Recipe], override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe(*override.split())


def test_tokens_decide_which_losses_there_are(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the vocabularies do not match") as caught:
        check_student(opened(recipe("train.loss=forward_kl")))
    assert "loss: uld" in str(caught.value.remedy)
    make_gpt2(tmp_path / "same")
    with pytest.raises(InputError, match="other tokens than the teacher's, which these are"):
        check_student(opened(recipe("student.from=same")))


def test_what_wants_one_vocabulary_is_refused(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="takes no imported targets"):
        import_targets(recipe(), [])
    with pytest.raises(InputError, match="no KL is measured with uld"):
        check_searches(tmp_path / "recipe.yaml", [], [parse_search("train.lr=1e-4..1e-3")])
