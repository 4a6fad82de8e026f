"""TRL's GKDTrainer for a number of minutes, its defaults unless told; in its own environment.

python -m bench.quality.trl_gkd TASK OUT --minutes 15 --seed 0 [--set lmbda=0.0 ...]

Its own schedule, a straight line to 0, ends with the clock. Loading is off the clock, as it is in
ours.
"""

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl.experimental.gkd import GKDTrainer

from bench.quality.told import CpuTime, tell
from bench.training.trl_gkd import make_trainer

ENDLESS = 10**6  # epochs: the clock ends it
TOLD = ("lmbda", "beta", "temperature", "learning_rate", "per_device_train_batch_size", "bf16")


class Clock(TrainerCallback):  # type: ignore[misc]
    """Ends training when its minutes of CPU are over."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.begun = CpuTime.monotonic()

    @property
    def elapsed_s(self) -> float:
        return CpuTime.monotonic() - self.begun

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begun = CpuTime.monotonic()

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = self.elapsed_s >= self.seconds
        return control


class Timed(GKDTrainer):  # type: ignore[misc]
    """Its learning rate falls in a straight line to 0, by the clock in place of the steps."""

    clock: Clock

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        def left(_step: int) -> float:
            return max(0.0, 1.0 - self.clock.elapsed_s / self.clock.seconds)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, left)
        return self.lr_scheduler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    given = parser.parse_args()
    changes = {key: json.loads(value) for key, value in (c.split("=", 1) for c in given.changes)}
    torch.manual_seed(given.seed)
    clock = Clock(given.minutes)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = make_trainer(
            Timed,
            given.task,
            "student",
            clock,
            output_dir=folder,
            num_train_epochs=ENDLESS,
            seed=given.seed,
            **changes,
        )
        trainer.clock = clock
        trainer.train()
        elapsed_s = clock.elapsed_s
    trainer.model.save_pretrained(given.out / "student")
    shutil.copyfile(given.task / "student" / "kdexport.json", given.out / "student/kdexport.json")
    facts = {name: getattr(trainer.args, name) for name in TOLD}
    tell(trainer.state.global_step, elapsed_s, clock.begun, settings=facts)


if __name__ == "__main__":
    main()
