"""Two whole checkpoints, whatever happens: kills while saving, changed bytes, other settings."""

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdexport.errors import InputError
from kdexport.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from kdexport.train.schedule import Budget
from kdexport.train.trainer import TrainSettings, make_optimizer

FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


class Trained:
    """A model that differs from step to step, with an optimizer that has moments."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = make_optimizer(self.model, TrainSettings(Budget(max_steps=1)))

    def step(self) -> None:
        self.model(torch.rand(4, 3)).square().sum().backward()
        self.optimizer.step()

    def save(self, folder: Path, step: int, fingerprint: str = "f") -> Path:
        state = {"fingerprint": fingerprint, "position": {"step": step, "best": float("inf")}}
        return save_checkpoint(folder, step, self.model, self.optimizer, state)

    def load(self, folder: Path, fingerprint: str = "f") -> int | None:
        state = load_checkpoint(folder, self.model, self.optimizer, fingerprint)
        return state and state["position"]["step"]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Trained, Path]:
    """Steps 10, 20 and 30 are saved."""
    trained = Trained()
    for step in (10, 20, 30):
        trained.step()
        trained.save(tmp_path, step)
    return trained, tmp_path


def test_the_newest_two_are_kept(saved: tuple[Trained, Path]) -> None:
    trained, folder = saved
    assert [place.name for place in list_checkpoints(folder)] == ["step-000030", "step-000020"]
    assert sorted(place.name for place in folder.iterdir()) == ["step-000020", "step-000030"]
    other = Trained()
    assert other.load(folder) == 30
    assert all(
        torch.equal(*pair)
        for pair in zip(trained.model.parameters(), other.model.parameters(), strict=True)
    )
    torch.manual_seed(1)  # what is drawn after loading is what would have been drawn after saving
    trained.save(folder, 40)
    drawn = torch.rand(3)
    other.load(folder)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_broken_one_falls_back_to_the_one_before(
    saved: tuple[Trained, Path], capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    trained, folder = saved
    file = folder / "step-000030" / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[-3] ^= 1  # of a number, or of the hash itself
        file.write_bytes(content[:-10] if damage == "cut" else content)
    assert trained.load(folder) == 20
    said = capsys.readouterr().err
    if (damage, name) != ("gone", "state.json"):  # which makes it no checkpoint at all
        assert said.count("\n") == 1
        assert "step-000030 is passed over" in said
        assert [place.name for place in list_checkpoints(folder)] == ["step-000020"]
    trained.save(folder, 40)
    assert [place.name for place in list_checkpoints(folder)] == ["step-000040", "step-000020"]


def test_none_whole_is_one_line(saved: tuple[Trained, Path]) -> None:
    trained, folder = saved
    for place in list_checkpoints(folder):
        (place / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="no whole checkpoint is left; remove the folder"):
        trained.load(folder)


def test_those_of_something_else_are_passed_over_and_go_in_time(
    saved: tuple[Trained, Path],
) -> None:
    trained, folder = saved
    shutil.copytree(folder / "step-000030", folder / "step-000030-mine")
    assert trained.load(folder, "another") is None
    trained.save(folder, 25, "another")
    assert trained.load(folder, "another") == 25
    trained.save(folder, 26, "another")
    assert [place.name for place in list_checkpoints(folder)] == ["step-000026", "step-000025"]
    assert (folder / "step-000030-mine" / "state.json").exists()


def kill_while_saving(trained: Trained, folder: Path, moment: int) -> bool:
    """Save step 40 in a process that is killed at its nth call; False: it came to its end."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event.endswith("call")
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        trained.save(folder, 40)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_kill_at_any_moment_of_saving_leaves_two(
    saved: tuple[Trained, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    trained, folder = saved
    found = set()
    for moment in itertools.count(1, 40):
        copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("killed") / "c"))
        was_killed = kill_while_saving(trained, copy, moment)
        steps = []
        for _ in range(2):
            steps.append(Trained().load(copy))
            shutil.rmtree(list_checkpoints(copy)[0])
        assert steps in ([30, 20], [40, 30])
        found.add(tuple(steps))
        assert not list(copy.glob(".*"))
        if not was_killed:
            break
    assert found == {(30, 20), (40, 30)}


def test_what_a_kill_left_between_two_renames_is_found(saved: tuple[Trained, Path]) -> None:
    """A step that is saved again takes the place of the first one by two renames."""
    trained, folder = saved
    (folder / "step-000030").rename(folder / ".step-000030.old")
    (folder / ".step-000030.partial").mkdir()
    assert trained.load(folder) == 30
    assert not list(folder.glob(".*"))
    assert trained.save(folder, 30) == folder / "step-000030"
