"""From a recipe's wishes to the settings of the loop."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdexport.pipeline import training
from kdexport.pipeline.preflight import check_training
from kdexport.pipeline.run import Run
from kdexport.pipeline.stages import make_student
from kdexport.pipeline.training import objective_of, precision_of, train_settings
from kdexport.recipe.train import TrainSection


@pytest.mark.parametrize(
    ("minutes", "spent", "left"), [(12.0, 0.0, 12.0), (12.0, 120.0, 10.0), (12.0, 3000.0, 4.0)]
)
def test_the_clock_counts_the_teacher_s_targets(minutes: float, spent: float, left: float) -> None:
    wish = TrainSection(max_minutes=minutes)
    settings = train_settings(wish, 100, "float32", spent)
    assert settings.budget.max_minutes == left
    assert settings.budget.max_steps is None


def test_epochs_become_steps_and_the_fewer_count() -> None:
    wish = TrainSection(epochs=2, batch_size=4, accumulate=2)
    assert train_settings(wish, 25, "float32", 0.0).budget.max_steps == 26
    fewer = wish.model_copy(update={"max_steps": 7})
    assert train_settings(fewer, 25, "float32", 0.0).budget.max_steps == 7


@pytest.mark.parametrize(
    ("wish", "device", "features", "expected"),
    [
        ("auto", "cuda", (), "bfloat16"),
        ("auto", "cpu", ("avx512", "amx"), "bfloat16"),
        ("auto", "cpu", ("avx2", "bf16"), "bfloat16"),
        ("auto", "cpu", ("avx2", "vnni"), "float32"),
        ("float32", "cuda", (), "float32"),
        ("bfloat16", "cpu", (), "bfloat16"),
    ],
)
def test_bfloat16_is_taken_where_the_device_computes_it(
    wish: str,
    device: str,
    features: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "cpu_features", lambda: features)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    assert precision_of(wish, device) == expected
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)  # as on a T4
    if (wish, device) == ("auto", "cuda"):
        assert precision_of(wish, device) == "float32"


def test_losses_and_their_schedules_come_from_the_recipe() -> None:
    wish = TrainSection.model_validate(
        {
            "loss": [
                "jsd",
                {"name": "skew_kl", "weight": {"start": 0, "end": 2}, "parameter": 0.3},
            ],
            "lambda": {"start": 4, "end": 1},
            "task_weight": {"start": 0, "end": 1},
            "max_steps": 1,
        }
    )
    found = objective_of(wish)
    assert [(term.loss, term.weight.at(0.25), term.parameter) for term in found.terms] == [
        ("jsd", 1.0, None),
        ("skew_kl", 0.5, 0.3),
    ]
    assert [found.kd_weight.at(progress) for progress in (0.0, 0.5, 1.0)] == [4.0, 2.5, 1.0]
    assert found.task_weight.at(0.25) == 0.25


@pytest.mark.parametrize(
    ("overrides", "is_told"),
    [
        (["train.targets=sampled", "train.temperature=2"], True),
        (["train.targets=sampled", "train.temperature=1"], False),
        (["train.targets=sampled", "train.temperature=0.5"], False),
        (["train.targets=cached", "train.temperature=2"], False),
        (["train.targets=sampled", "train.temperature=2", "train.lambda=0"], False),
    ],
)
def test_draws_at_a_temperature_that_makes_noise_of_them_are_told_of_in_a_line(
    open_run: Callable[..., Run],
    overrides: list[str],
    is_told: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_training(open_run(*overrides))
    said = capsys.readouterr().err
    assert ("makes noise of sampled targets" in said) == is_told
    assert len(said.split("train.temperature")) == 1 + is_told


@pytest.mark.parametrize(
    ("overrides", "stays"),
    [
        (["train.targets=hidden"], False),
        (["train.targets=cached", "train.top_k=8"], False),
        (["train.targets=sampled"], False),
        (["train.targets=live"], True),
        (["train.on_policy.fraction=0.5"], True),
    ],
)
def test_a_teacher_that_is_not_asked_again_leaves_memory(
    open_run: Callable[..., Run],
    overrides: list[str],
    stays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = open_run(*overrides)
    make_student(run)
    opened, opens = [], training.model_on

    def noted(device: str, path: Path) -> Any:
        model = opens(device, path)
        if path == run.teacher.path:
            opened.append(weakref.ref(model))
        return model

    monkeypatch.setattr(training, "model_on", noted)
    ready = training._prepared(run)
    gc.collect()
    assert [teacher() is not None for teacher in opened] == [stays]
    assert ready.asked.held_out
