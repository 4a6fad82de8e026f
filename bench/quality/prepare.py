"""The task of every arm: one teacher, one untrained student, the teacher's texts, written once."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from kdexport.pipeline.run import Run, open_run, run_stages
from kdexport.pipeline.splits import encode_splits
from kdexport.recipe import Recipe
from kdexport.system.journal import file_sha256, fingerprint, folder_fingerprint
from kdexport.train.data import Encoded
from kdexport.train.model import load_facts, load_model, load_tokenizer, save_model, staged_folder
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import Origin, prune


def prepare(work: Path, recipe: Recipe) -> Path:
    """The task's folder, made unless it is there.

    ``teacher``: the teacher with the student's vocabulary, so that both sides of every arm have the
    same tokens. ``student``: before training, and ``student.json``: what the recipe says of it.
    ``pairs.jsonl``; ``examples.jsonl`` and ``test.jsonl``: the same texts as token ids.
    """
    run = run_in(work, recipe)
    run_stages(run, until="student")
    key = fingerprint(
        run.teacher.fingerprint,
        file_sha256(run.pairs),
        folder_fingerprint(run.student_init),
        recipe.data.model_dump(include={"max_train", "max_test"}),
        recipe.train.max_length,
    )
    task = work / "tasks" / key[:16]
    if not task.exists():
        task.parent.mkdir(parents=True, exist_ok=True)
        with staged_folder(task) as staging:
            _write_task(run, staging)
    return task


def run_in(work: Path, recipe: Recipe) -> Run:
    """The run that writes a task's texts."""
    output = recipe.output.model_copy(update={"runs": work / "runs", "exported": work / "exported"})
    return open_run(recipe.model_copy(update={"output": output}))


def _write_task(run: Run, task: Path) -> None:
    shutil.copytree(run.student_init, task / "student")
    (task / "student.json").write_text(json.dumps(run.recipe.student.model_dump()), "utf-8")
    shutil.copyfile(run.pairs, task / "pairs.jsonl")
    kept_ids = load_facts(run.student_init).get("kept_ids")
    origin = Origin(load_model(run.teacher.path), kept_ids, [torch.arange(8)[None]])
    teacher = prune(origin, StudentSpec())
    save_model(teacher.model, task / "teacher", tokenizer_from=run.student_init)
    tokenizer = load_tokenizer(run.student_init)
    data = encode_splits(run, tokenizer, load_model(run.student_init))
    _write_examples(task / "examples.jsonl", data.train)
    _write_examples(task / "test.jsonl", data.test or data.validation)


def _write_examples(path: Path, examples: Sequence[Encoded]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            row = {"ids": example.ids.tolist(), "first": example.first_completion}
            file.write(json.dumps(row) + "\n")
