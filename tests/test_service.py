"""The teacher as a service of targets, in runs of a tiny model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdexport.pipeline import Run
from kdexport.recipe import load_recipe
from kdexport.sources import ResolvedModel
from kdexport.stages import make_pairs, make_student
from kdexport.training import train_student
from tests.models import make_llama

RECIPE = """\
name: mine
teacher: {source: teacher}
data: {pairs: pairs.jsonl}
student: {n_layers: 2}
train: {max_steps: 3, evaluate_steps: 3, batch_size: 4, lr: 1e-3, n_threads: 1, device: cpu}
"""
Open = Callable[..., Run]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose stages before distillation are done."""
    folder = tmp_path_factory.mktemp("service")
    make_llama(folder / "teacher", n_layers=3)
    rows = [
        {"text": f"Fresh bread from our oven {n}", "split": ["train", "validation"][n > 15]}
        for n in range(20)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    run = opened(folder, folder / "runs" / "mine")
    make_pairs(run)
    make_student(run)
    return folder


def opened(base: Path, folder: Path, *overrides: str) -> Run:
    recipe = load_recipe(base / "recipe.yaml", overrides)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = ResolvedModel(base / "teacher", "teacher", "its fingerprint", None)
    return Run(recipe, folder, base / "exported", teacher)


@pytest.fixture
def open_run(base: Path, tmp_path: Path) -> Open:
    """Opens a run in a folder of its own; named again, the same."""

    def of(*overrides: str, name: str = "run") -> Run:
        shutil.copytree(base / "runs" / "mine", tmp_path / name, dirs_exist_ok=True)
        return opened(base, tmp_path / name, *overrides)

    return of


def losses(run: Run) -> list[float]:
    log = (run.folder / "train_log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in log]


@pytest.mark.parametrize("targets", ["cached", "sampled"])
def test_a_run_says_what_its_kept_targets_cost(
    open_run: Open, capsys: pytest.CaptureFixture[str], targets: str
) -> None:
    train_student(open_run(f"train.targets={targets}"))
    said = capsys.readouterr().err
    assert "kept targets against live ones: loss" in said
    assert float(said.split("cosine of the gradients ")[1].split()[0]) > 0.9
