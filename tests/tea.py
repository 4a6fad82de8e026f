"""A small run of its own: a teacher of three layers, eighteen pairs about tea, and a recipe."""

import json
from pathlib import Path

from tests.models import make_llama

SPLITS = ["train"] * 12 + ["validation"] * 3 + ["test"] * 3
RECIPE = """\
name: tiny
teacher: {source: TEACHER, licence: apache-2.0}
data: {pairs: pairs.jsonl}
student: {n_layers: 2, vocab_size: 300}
train: {lambda: 4, lr: 3e-3, batch_size: 4, max_steps: 4, evaluate_steps: 4}
output: {runs: RUNS, exported: EXPORTED}
"""


def make_tea_run(folder: Path, recipe: str = RECIPE) -> Path:
    """Write teacher, pairs and recipe, in which TEACHER, RUNS and EXPORTED become places there."""
    make_llama(folder / "teacher", n_layers=3)
    rows = [
        {"prompt": f"Tea {n}", "completion": f"Fresh tea, number {n}, today.", "split": split}
        for n, split in enumerate(SPLITS)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("teacher", "runs", "exported"):
        recipe = recipe.replace(name.upper(), str(folder / name))
    (folder / "recipe.yaml").write_text(recipe)
    return folder
