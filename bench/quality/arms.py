"""Ways to distil the same student from the same texts, a row each, and their processes.

Each writes a student, which is measured and then dropped; the result stays on disk under a
fingerprint of all that it depends on, so that a comparison goes on where it was stopped.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality.statistics import KlSums
from kdexport.errors import KdexportError
from kdexport.recipe import load_recipe
from kdexport.system.journal import file_sha256, fingerprint

ROOT = Path(__file__).parents[2]
TRL = ROOT / ".peers" / "trl" / "bin" / "python"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
OURS, THEIRS = "bench.quality.ours", "bench.quality.trl_gkd"
CODE: Mapping[str, Sequence[str]] = {
    OURS: (
        "bench/quality/ours.py",
        "kdexport/train/*.py",
        "kdexport/pipeline/training.py",
        "kdexport/pipeline/service.py",
    ),
    THEIRS: ("bench/quality/trl_gkd.py", "bench/training/*.py", "bench/peers/trl.txt"),
}
"""What a kind of arm's results depend on besides its settings."""


@dataclass(frozen=True)
class Arm:
    """``changes``: KEY=VALUE of the recipe for ours, of the trainer's settings for theirs."""

    module: str
    recipe: Path | None = None
    changes: Sequence[str] = ()

    def also(self, overrides: Sequence[str]) -> "Arm":
        """The same on a recipe that is overridden; the trainer of others has no recipe."""
        return self if self.recipe is None else replace(self, changes=[*overrides, *self.changes])


@dataclass(frozen=True)
class Budget:
    """What every arm has: minutes of CPU, of all threads together."""

    minutes: float
    n_threads: int


@dataclass(frozen=True)
class Result:
    """What an arm gave with one seed: KL by text, what it did, and the command of it."""

    kl: KlSums
    n_parameters: int
    did: Mapping[str, Any]
    command: Sequence[str]


def arms_of(recipe: Path) -> Mapping[str, Arm]:
    """The arms of the comparison; the last two of them on the recipe's own settings."""
    train = load_recipe(recipe).train
    same = [f"learning_rate={train.lr}", f"per_device_train_batch_size={train.batch_size}"]
    return {
        "kdexport": Arm(OURS, recipe),
        "sft": Arm(OURS, recipe, ["train.lambda=0", "train.task_weight=1"]),
        "trl-gkd": Arm(THEIRS),
        "trl-gkd-off-policy": Arm(THEIRS, None, ["lmbda=0.0", *same]),
    }


def command_of(arm: Arm, task: Path, out: Path, budget: Budget, seed: int) -> list[str]:
    """The process of one arm with one seed."""
    if arm.module == THEIRS:
        command = [str(TRL), "-m", arm.module, str(task), str(out)]
        command += [f"--minutes={budget.minutes}", f"--seed={seed}"]
        return command + [word for change in arm.changes for word in ("--set", change)]
    own = [
        f"seed={seed}",
        f"train.max_minutes={budget.minutes}",
        "train.max_steps=null",
        "train.epochs=null",
        f"train.n_threads={budget.n_threads}",
    ]
    return [
        sys.executable,
        "-m",
        arm.module,
        str(task),
        str(out),
        str(arm.recipe),
        *arm.changes,
        *own,
    ]


def print_of(arm: Arm, task: Path, budget: Budget, seed: int) -> str:
    """The fingerprint of a result."""
    files = sorted(file for pattern in CODE[arm.module] for file in ROOT.glob(pattern))
    asked: Any = None
    if arm.recipe is not None:
        recipe = load_recipe(arm.recipe, arm.changes)
        asked = recipe.model_dump(mode="json", include={"student", "train", "data"})
        asked["data"] = {name: asked["data"][name] for name in ("max_train", "max_validation")}
    code = [file_sha256(file) for file in files]
    return fingerprint(arm.module, asked, list(arm.changes), task.name, vars(budget), seed, code)


def run_arm(arm: Arm, task: Path, results: Path, budget: Budget, seed: int) -> Result:
    """Train and measure, or read what was measured before."""
    kept = results / f"{print_of(arm, task, budget, seed)[:24]}.json"
    if not kept.exists():
        results.mkdir(parents=True, exist_ok=True)
        out = kept.with_suffix(".under-way")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        command = command_of(arm, task, out, budget, seed)
        did = answer_of(command, budget.n_threads)
        measure = [sys.executable, "-m", "bench.quality.measure", str(task), str(out / "student")]
        row = {**answer_of(measure, budget.n_threads), "did": did, "command": command}
        shutil.rmtree(out)
        beside = kept.with_suffix(".partial")
        beside.write_text(json.dumps(row), "utf-8")
        beside.replace(kept)
    return read_result(json.loads(kept.read_text("utf-8")))


def read_result(row: Mapping[str, Any]) -> Result:
    kl = KlSums(np.asarray(row["nats"], dtype=np.float64), np.asarray(row["tokens"]))
    return Result(kl, row["n_parameters"], row["did"], row["command"])


def answer_of(command: Sequence[str], n_threads: int) -> dict[str, Any]:
    """The last line that a process prints."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(n_threads)},
        check=False,
    )
    if done.returncode:
        raise KdexportError(f"ended with {done.returncode}", where=" ".join(command[:3]))
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
