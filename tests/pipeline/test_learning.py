"""Real signals while a student learns: all is saved at once, and the end is an unbroken run's."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kdexport.pipeline.cutting import make_student
from kdexport.pipeline.run import Run
from kdexport.pipeline.training import train_student
from kdexport.system.interrupts import Interrupted
from kdexport.system.journal import file_sha256
from kdexport.system.metrics import read_curve
from kdexport.train import trainer
from kdexport.train.checkpoint import list_checkpoints

SETS = ["student.n_layers=2", "train.max_steps=6", "train.checkpoint_seconds=1e6"]


def evaluated(run: Run) -> list[int]:
    return [point.step for point in read_curve(run.metrics) if point.evaluation]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_an_evaluation_saves_and_the_evaluation_is_made_up_for(
    open_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = open_run(*SETS)
    make_student(run)
    whole = replace(run, folder=run.folder.with_name("whole"))
    shutil.copytree(run.folder, whole.folder)
    train_student(whole)

    right, calls = trainer.evaluate, 0

    def signalled(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), number)
        return right(*given, **more)

    monkeypatch.setattr(trainer, "evaluate", signalled)
    with pytest.raises(Interrupted) as stopped:
        train_student(run)
    assert (stopped.value.number, stopped.value.where) == (number, "at step 4")
    assert [place.name for place in list_checkpoints(run.checkpoints)] == ["step-000004"]
    assert evaluated(run) == [2]
    train_student(run)
    assert evaluated(run) == evaluated(whole) == [2, 4, 6]
    one, other = (file_sha256(of.student / "model.safetensors") for of in (run, whole))
    assert one == other
