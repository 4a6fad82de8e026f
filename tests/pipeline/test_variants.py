"""Variants of a run, and a teacher that is trained on its texts, stage by stage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from kdexport.errors import KdexportError
from kdexport.pipeline.finetune import adapted, finetune_teacher, train_teacher
from kdexport.pipeline.run import Run, open_run, run_stages
from kdexport.pipeline.stages import STAGES, make_pairs
from kdexport.pipeline.variants import distill_control
from kdexport.recipe import Recipe, load_recipe
from kdexport.recipe.train import FinetuneSection
from kdexport.system.journal import file_sha256
from kdexport.system.metrics import read_curve
from kdexport.train.trainer import Event
from tests.tea import make_tea_run

RECIPE = """\
name: tiny
teacher: {source: TEACHER, licence: apache-2.0}
data: {pairs: pairs.jsonl}
student: {n_layers: 2, vocab_size: 300}
train: {lambda: 4, prompt_weight: 1, lr: 3e-3, batch_size: 4, max_steps: 8, evaluate_steps: 4}
finetune: {lr: 1e-3, max_steps: 12, evaluate_steps: 4, batch_size: 4}
bench: {prompt_tokens: 12, new_tokens: 4, n_runs: 1, n_samples: 0, n_threads: 1}
output: {runs: RUNS, exported: EXPORTED}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tea_run(tmp_path_factory.mktemp("variants"), RECIPE)


def recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(folder / "recipe.yaml", overrides)


def test_a_control_differs_in_nothing_but_the_teacher(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control = distill_control(recipe(folder))
    assert control.folder == folder / "runs" / "tiny-control"
    base = open_run(recipe(folder))
    assert control.student_init == base.student_init
    assert control.pairs.read_text() == base.pairs.read_text()
    assert not (base.folder / "student").exists()
    # Of the training texts the teacher was not asked: there is a cache of the validation pairs.
    assert len(list(base.targets.iterdir())) == 1
    run_stages(base, until="distill")
    with_teacher, alone = (read_curve(run.metrics) for run in (base, control))
    for points in (with_teacher, alone):
        assert [point.step for point in points if point.evaluation] == [4, 8]
    assert all(point.row["divergence"] == 0 for point in alone)
    assert all(point.row["divergence"] > 0 for point in with_teacher)
    one, other = np.load(base.reference), np.load(control.reference)
    assert all(np.array_equal(one[name], other[name]) for name in one.files)
    capsys.readouterr()
    distill_control(recipe(folder))
    assert capsys.readouterr().err.count("done before") == 5


def test_a_control_is_trained_anew_where_the_texts_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distill_control(recipe(folder))
    capsys.readouterr()
    distill_control(recipe(folder, "data.max_train=8"))
    said = capsys.readouterr().err
    assert [said.count(f"{what}: done before") for what in ("over", "Distillation")] == [0, 0]


def test_a_teacher_learns_the_texts_and_teaches(folder: Path) -> None:
    """What comes out is the teacher's model with other weights, and a recipe's teacher."""
    found = finetune_teacher(recipe(folder))
    assert found.folder == folder / "runs" / "tiny" / "teacher"
    assert found.after < found.before
    points = read_curve(found.folder.parent / "teacher-metrics.jsonl")
    found_there = [point.evaluation["perplexity"] for point in points if point.evaluation]
    assert min(found_there) == pytest.approx(found.after)
    before, after = (
        load_file(place / "model.safetensors") for place in (folder / "teacher", found.folder)
    )
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert not (found.folder.parent / "teacher-checkpoints").exists()
    run = opened(folder, f"teacher={found.folder}", "name=again", "train.max_steps=2")
    for stage in STAGES[2:4]:
        stage.work(run)
    assert (run.student / "model.safetensors").is_file()


def opened(folder: Path, *overrides: str) -> Run:
    """A run that has its pairs, and no bundle of its teacher."""
    run = open_run(recipe(folder, *overrides))
    run.folder.mkdir(parents=True)
    make_pairs(run)
    return run


def test_a_killed_finetuning_goes_on_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdexport.pipeline import learning
    from kdexport.pipeline.watching import Watcher

    whole, killed = (
        opened(folder, f"name={name}", "train.checkpoint_seconds=0.000001")
        for name in ("whole", "killed")
    )
    train_teacher(whole)
    steps: list[int] = []

    class Killed(Watcher):
        def step(self, event: Event) -> None:
            steps.append(event.step)
            if len(steps) == 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(learning, "Watcher", Killed)
    with pytest.raises(KeyboardInterrupt):
        train_teacher(killed)
    train_teacher(killed)
    # Step 7 was made and not yet saved.
    assert steps == [*range(1, 8), *range(7, 13)]
    one, other = (file_sha256(adapted(run) / "model.safetensors") for run in (whole, killed))
    assert one == other


@pytest.mark.parametrize("asked", [True, False])
def test_a_teacher_computes_its_layers_again_where_the_recipe_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """It is the larger model of the two, and needs the memory most."""
    from kdexport.pipeline import finetune

    found: list[bool] = []

    def stopped(model: Any, *_: Any, **__: Any) -> None:
        found.append(model.is_gradient_checkpointing)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "learn", stopped)
    run = opened(folder, f"name=layers-{asked:d}", f"train.activation_checkpointing={asked}")
    with pytest.raises(KeyboardInterrupt):
        train_teacher(run)
    assert found == [asked]


def test_a_teacher_that_gets_worse_is_not_kept(folder: Path) -> None:
    run = opened(folder, "name=worse", "finetune.lr=3", "finetune.max_steps=4")
    with pytest.raises(KdexportError, match=r"no better for its training.*finetune\.lr"):
        train_teacher(run)
    assert not adapted(run).exists()


def test_a_teacher_reads_each_text_once_unless_told_otherwise(folder: Path) -> None:
    assert FinetuneSection().epochs == 1.0
    assert FinetuneSection(max_steps=3).epochs is None
    assert recipe(folder).finetune.epochs is None
