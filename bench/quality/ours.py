"""kdexport's own stage of distillation, as a recipe has it, on the task's texts.

python -m bench.quality.ours TASK OUT RECIPE [KEY=VALUE ...]
"""

import json
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

from bench.quality.told import CpuTime, tell
from kdexport.pipeline.run import Run, open_run
from kdexport.pipeline.stages import make_student
from kdexport.pipeline.training import train_student
from kdexport.recipe import load_recipe
from kdexport.system.metrics import read_curve
from kdexport.train import cache, trainer
from kdexport.train.cache import seconds_asked


def run_of(task: Path, out: Path, recipe: Path, overrides: list[str]) -> Run:
    """A run that takes the task's pairs; its student too, unless the recipe wants another."""
    wish = load_recipe(recipe, ["train.n_samples=0", *overrides, f"output.runs={out}"])
    run = open_run(wish, fetch=False)
    run.folder.mkdir(parents=True)
    shutil.copyfile(task / "pairs.jsonl", run.pairs)
    if json.loads((task / "student.json").read_text("utf-8")) == wish.student.model_dump():
        shutil.copytree(task / "student", run.student_init)
    else:
        make_student(run)
    return run


def main() -> None:
    task, out, recipe, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    cache.time = trainer.time = CpuTime  # the clocks of asking the teacher and of training
    with redirect_stdout(sys.stderr):
        run = run_of(task, out, Path(recipe), overrides)
        cpu_before = time.process_time()
        train_student(run)
        last = read_curve(run.metrics)[-1].row
        asked = sum(seconds_asked(place) for place in run.targets.glob("*"))
    run.student.rename(out / "student")
    shutil.rmtree(run.folder)
    tell(last["step"], asked + last["elapsed_s"], cpu_before, asked_s=asked)


if __name__ == "__main__":
    main()
