"""Commands that torchrun starts in two processes end as in one."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from kdexport.pipeline.run import Run
from kdexport.recipe import load_recipe
from kdexport.sources import ResolvedModel
from tests.calling import call
from tests.models import CORPUS, make_llama
from tests.processes import in_two

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LOG = "runs/tiny/metrics.jsonl"
RECIPE = """\
name: tiny
teacher: {source: teacher}
data: {pairs: pairs.jsonl}
student: {n_layers: 2, vocab_size: 300}
train:
  lr: 3e-3
  batch_size: 4
  max_steps: 12
  evaluate_steps: 3
  precision: float32
  n_threads: 1
  on_policy: {fraction: 0.5, max_new_tokens: 8}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    make_llama(folder / "teacher", n_layers=4)
    splits = ["train"] * 21 + ["validation"] * 5 + ["test"] * 3
    rows = [
        {"prompt": f"Text {n}.", "completion": CORPUS[n % 4][: 8 + n], "split": split}
        for n, split in enumerate(splits)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def distil_in_two(folder: Path, *options: str) -> str:
    """What the first process says; without torchrun, which would import everything thrice."""
    in_two(distil_as_one_of_two, folder, *options)
    return (folder / "said-0.txt").read_text("utf-8")


def distil_as_one_of_two(rank: int, folder: Path, *options: str) -> None:
    os.chdir(folder)
    code, said = call("distill", "recipe.yaml", *options)
    Path(f"said-{rank}.txt").write_text(said, "utf-8")
    assert code == 0, said


def distil_alone(folder: Path, *options: str) -> None:
    with contextlib.chdir(folder):
        code, said = call("distill", "recipe.yaml", *options)
    assert code == 0, said


def losses_of(folder: Path, name: str) -> list[float]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_two_processes_distil_and_the_first_tells_of_it(folder: Path) -> None:
    """That they learn what one learns is tested without the command, in train/test_world.py."""
    ran = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "kdexport", "distill", "recipe.yaml", "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["student"] == "runs/tiny/student"  # printed once
    assert ran.stderr.count("Student is cut from the teacher:") == 1
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    log = [row for row in rows if "evaluation" in row]
    assert [row["step"] for row in log] == [3, 6, 9, 12]
    assert log[-1]["evaluation"]["perplexity"] < 0.5 * log[0]["evaluation"]["perplexity"]
    shards = {path.stem for path in (folder / "runs/tiny/targets").rglob("*.safetensors")}
    assert {int(stem) % 2 for stem in shards} == {0, 1}  # each has asked the teacher


def test_two_processes_read_a_stream_of_packed_texts_as_one_does(folder: Path) -> None:
    options = {
        "data.stream": "true",
        "data.shuffle_buffer": "8",
        "train.targets": "live",
        "train.packing": "true",
        "train.max_length": "48",
        "train.batch_size": "2",
    }
    sets = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    distil_alone(folder, *sets, "--set", "name=alone")
    distil_in_two(folder, *sets, "--set", "name=two")
    losses = losses_of(folder, "alone")
    assert len(losses) == 12
    assert losses_of(folder, "two") == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("way", ["cached", "live"])
def test_a_teacher_in_two_parts_says_what_a_whole_one_does(folder: Path, way: str) -> None:
    """Live, it judges own samples, too."""
    sets = ["--set", f"train.targets={way}", "--set", "train.max_steps=3"]
    sets += ["--set", "train.on_policy=null"] * (way == "cached")
    names = [f"{way}-whole", f"{way}-parts"]
    distil_alone(folder, *sets, "--set", f"name={names[0]}")
    sets += ["--set", "train.shard_teacher=true"]
    said = distil_in_two(folder, *sets, "--set", f"name={names[1]}")
    assert "layers are shared out over 2 processes" in said
    files = [folder / "runs" / name / "reference.npz" for name in names]
    with np.load(files[0]) as one, np.load(files[1]) as two:
        assert np.array_equal(one["topk_ids"], two["topk_ids"])
        for key in ("topk_logprobs", "target_logprobs", "kept_mass"):
            np.testing.assert_allclose(two[key], one[key], rtol=1e-5, atol=1e-5)
    whole, parts = (losses_of(folder, name) for name in names)
    assert parts == pytest.approx(whole, rel=1e-4)


def test_the_others_are_told_of_the_whole_run(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml", ["train.loss=jsd", "train.lambda=2"])
    base = Run(recipe, Path("runs/a"), Path("exported"), ResolvedModel(Path("m"), "s", "f"))
    run = Run(recipe, Path("runs/b"), Path("exported"), base.teacher, base)
    kind = TypeAdapter(Run)
    told = kind.validate_python(json.loads(kind.dump_json(run)))
    assert told.base is not None
    assert kind.dump_python(told) == kind.dump_python(run)
    assert told.recipe.train == recipe.train
    assert (told.folder, told.base.folder) == (run.folder, base.folder)
