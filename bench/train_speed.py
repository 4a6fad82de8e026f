"""Trained tokens per second and memory: kdexport beside the common loop and TRL, taking turns.

    make peers && .venv/bin/python bench/train_speed.py --out bench/results/train-speed.json

One teacher, one student with the teacher's whole vocabulary, the same texts, batches and number of
threads; two epochs. bench/README.md says how to read it.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from bench.training.task import BATCH_SIZE, LR, N_EPOCHS, load_examples  # noqa: E402
from kdexport.errors import KdexportError  # noqa: E402
from kdexport.system.console import say  # noqa: E402
from kdexport.system.machine import cache_folder, physical_cores  # noqa: E402

OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
TRL = ROOT / ".peers" / "trl" / "bin" / "python"
BARS = {"first epoch": 1.3, "second epoch": 2.5}  # of ours over each of the others
MEMORY_BAR = 0.5
BARS_OF = ("common loop", "TRL GKD")  # as they are commonly run
OURS = ("kdexport", "kdexport, recomputing")  # as a recipe is run that says nothing, and for memory


@dataclass(frozen=True)
class Way:
    """A way to train: the Python that runs it, and the command."""

    python: str
    command: Sequence[str]


WAYS: Mapping[str, Way] = {
    "kdexport": Way(sys.executable, ["bench.training.ours"]),
    "kdexport, recomputing": Way(
        sys.executable, ["bench.training.ours", "train.activation_checkpointing=true"]
    ),
    "kdexport, top 64": Way(
        sys.executable, ["bench.training.ours", "train.targets=cached", "train.top_k=64"]
    ),
    "kdexport, float32": Way(sys.executable, ["bench.training.ours", "train.precision=float32"]),
    "common loop": Way(sys.executable, ["bench.training.founding"]),
    "common loop, bfloat16": Way(sys.executable, ["bench.training.founding", "--bf16"]),
    "TRL GKD": Way(str(TRL), ["bench.training.trl_gkd"]),
    "TRL GKD, float32": Way(str(TRL), ["bench.training.trl_gkd", "--fp32"]),
}


def prepare(task: Path, pairs: Path, n_texts: int) -> None:
    """The task's folder: teacher, student, the recipe, the texts as pairs and as token ids."""
    from kdexport.pipeline.run import open_run
    from kdexport.pipeline.splits import encode_splits
    from kdexport.pipeline.stages import make_pairs, make_student
    from kdexport.recipe import load_recipe
    from kdexport.train.model import load_model, load_tokenizer

    shutil.rmtree(task, ignore_errors=True)
    task.mkdir(parents=True)
    quickstart = load_recipe(ROOT / "recipes" / "quickstart.yaml")
    recipe = {
        "name": "train-speed",
        "teacher": {"source": quickstart.teacher.source, "licence": quickstart.teacher.licence},
        "data": {
            "pairs": str(pairs.absolute()),
            "max_train": n_texts,
            "max_validation": BATCH_SIZE,
            "max_test": 1,
        },
        "student": {
            "n_layers": quickstart.student.n_layers,
            "intermediate_size": quickstart.student.intermediate_size,
        },
        "train": {
            "targets": "hidden",
            "lr": LR,
            "batch_size": BATCH_SIZE,
            "epochs": N_EPOCHS,
            "evaluate_steps": 10**6,
            "checkpoint_seconds": 10**6,
            "n_samples": 0,
        },
        "output": {"runs": str(task / "made"), "exported": str(task / "exported")},
    }
    (task / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    run = open_run(load_recipe(task / "recipe.yaml"))
    run.folder.mkdir(parents=True)
    make_pairs(run)
    make_student(run)
    shutil.copyfile(run.pairs, task / "pairs.jsonl")
    shutil.copytree(run.student_init, task / "student")
    shutil.copytree(run.teacher.path, task / "teacher")
    student = load_model(task / "student")
    examples = encode_splits(run, load_tokenizer(task / "student"), student).train
    with (task / "examples.jsonl").open("w", encoding="utf-8") as file:
        for example in examples:
            row = {"ids": example.ids.tolist(), "first": example.first_completion}
            file.write(json.dumps(row) + "\n")
    shutil.rmtree(task / "made")


def facts_of(task: Path) -> dict[str, int]:
    """What an epoch holds, and how large the two models are."""
    from kdexport.train.model import load_model

    examples = load_examples(task)
    sizes = {
        f"{name}_parameters": sum(p.numel() for p in load_model(task / name).parameters())
        for name in ("teacher", "student")
    }
    return {
        "tokens": sum(len(example.ids) for example in examples),
        "completion_tokens": sum(len(example.ids) - example.first for example in examples),
        **sizes,
    }


def measure(way: Way, task: Path, n_threads: int) -> dict[str, Any]:
    """One process; its answer is the last line that it prints."""
    module, *options = way.command
    done = subprocess.run(
        [way.python, "-m", module, str(task), *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(n_threads)},
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise KdexportError(f"{module} failed: {' '.join(last)}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def summary(rounds: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds."""

    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    return {
        name: {
            "first epoch": median([r["tokens_per_s"][0] for r in found]),
            "second epoch": median([r["tokens_per_s"][1] for r in found]),
            "peak_rss_mb": median([r["peak_rss_mb"] for r in found]),
        }
        for name, found in rounds.items()
        if found
    }


def ratios(rounds: Mapping[str, list[dict[str, Any]]], ours: str) -> dict[str, Any]:
    """Ours over each other way, a value a round: speeds of both epochs, and memory."""

    def of(other: str) -> dict[str, list[float]]:
        both = list(zip(rounds[ours], rounds[other], strict=True))
        return {
            "first epoch": [a["tokens_per_s"][0] / b["tokens_per_s"][0] for a, b in both],
            "second epoch": [a["tokens_per_s"][1] / b["tokens_per_s"][1] for a, b in both],
            "memory": [a["peak_rss_mb"] / b["peak_rss_mb"] for a, b in both],
        }

    return {other: of(other) for other in rounds if other != ours}


def table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    head = "| | tokens/s, first epoch | tokens/s, later epochs | peak RSS, MB |"
    rows = [
        f"| {name} | {v['first epoch']:.0f} | {v['second epoch']:.0f} | {v['peak_rss_mb']:.0f} |"
        for name, v in found.items()
    ]
    return [head, "|---|---:|---:|---:|", *rows]


def verdicts(rounds: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Whether each bar is met, by the median of the rounds' ratios."""
    lines = []
    pairs = [(a, b) for a in OURS for b in BARS_OF if rounds.get(a) and rounds.get(b)]
    for ours, other in pairs:
        for part, values in ratios(rounds, ours)[other].items():
            least = BARS.get(part)
            value = statistics.median(values)
            met = value <= MEMORY_BAR if least is None else value >= least
            bar = f"≤ {MEMORY_BAR:g}" if least is None else f"≥ {least:g}"
            told = f"{value:.2f} ({min(values):.2f} to {max(values):.2f})"
            verdict = "met" if met else "NOT met"
            lines.append(f"{ours} / {other}, {part}: {told}, bar {bar}: {verdict}")
    return lines


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, default=Path("runs/quickstart/pairs.jsonl"))
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    if not given.pairs.is_file():
        raise SystemExit(f"there is no {given.pairs}: run recipes/quickstart.yaml first")
    task = cache_folder() / "train-speed"
    prepare(task, given.pairs, given.texts)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in given.ways}
    for number in range(given.rounds):
        for name in random.Random(number).sample(given.ways, len(given.ways)):
            found = measure(WAYS[name], task, given.threads)
            rounds[name].append(found)
            say(f"round {number + 1}, {name}: {found}")
    result = {
        **record(__file__, words),
        "settings": {"texts": given.texts, "batch_size": BATCH_SIZE, "threads": given.threads}
        | facts_of(task),
        "medians": summary(rounds),
        "ratios": ratios(rounds, given.ways[0]),
        "bars": {**BARS, "memory": MEMORY_BAR},
        "rounds": rounds,
    }
    print("\n".join([*table(summary(rounds)), "", *verdicts(rounds)]))
    save(result, given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
