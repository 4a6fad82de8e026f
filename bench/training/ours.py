"""kdexport's own stage of distillation, as a recipe has it.

python -m bench.training.ours TASK [KEY=VALUE ...]
"""

import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from bench.training.task import BATCH_SIZE, load_examples, tell
from kdexport.pipeline.run import Run, open_run
from kdexport.pipeline.training import train_student
from kdexport.recipe import load_recipe
from kdexport.system.metrics import read_curve
from kdexport.train.cache import seconds_asked


def run_of(task: Path, overrides: list[str], folder: Path) -> Run:
    """A run whose stages before distillation are done: pairs and student come from the task."""
    recipe = load_recipe(task / "recipe.yaml", [f"output.runs={folder}", *overrides])
    run = open_run(recipe, fetch=False)
    run.folder.mkdir(parents=True)
    shutil.copyfile(task / "pairs.jsonl", run.pairs)
    run.student_init.symlink_to((task / "student").absolute())
    return run


def main() -> None:
    task, overrides = Path(sys.argv[1]), sys.argv[2:]
    n_steps = -(-len(load_examples(task)) // BATCH_SIZE)
    overrides.append(f"train.evaluate_steps={n_steps}")  # a line of the log at each epoch's end
    with tempfile.TemporaryDirectory(dir=task) as folder, redirect_stdout(sys.stderr):
        run = run_of(task, overrides, Path(folder))
        train_student(run)
        first, last = (point.row for point in read_curve(run.metrics, 10**9) if point.evaluation)
        asked = sum(seconds_asked(place) for place in run.targets.glob("*"))
    n_tokens = first["tokens"]
    seconds = [asked + first["elapsed_s"], last["elapsed_s"] - first["elapsed_s"]]
    tell(n_tokens, seconds, asked_s=asked, last_loss=last["loss"])


if __name__ == "__main__":
    main()
