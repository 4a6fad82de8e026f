"""Write the recipes of this folder: the quickstart's, each with one thing changed.

    python recipes/ablations/make.py

A row of ROWS is a recipe's name and its changes. `bench/distill.py --ablations` trains them all;
a test sees that the files are what this writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
BASE = FOLDER.parent / "quickstart.yaml"
OF_THE_TEACHER = "the teacher's"
TOP_64 = {"train.targets": "cached", "train.top_k": 64, "train.hidden_weight": 0}
DRAWN_12 = {"train.targets": "sampled", "train.n_sampled": 12, "train.hidden_weight": 0}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "loss-reverse-kl": {"train.loss": "reverse_kl"},
    "loss-jsd": {"train.loss": "jsd"},
    "loss-skew-kl": {"train.loss": "skew_kl"},
    "loss-skew-reverse-kl": {"train.loss": "skew_reverse_kl"},
    "loss-total-variation": {"train.loss": "total_variation"},
    "loss-adaptive-kl": {"train.loss": "adaptive_kl"},
    "loss-standardised-kl": {"train.loss": "standardised_kl"},
    "loss-temperature-2": {"train.temperature": 2.0},
    "loss-lambda-1": {"train.lambda": 1},
    "loss-without-hidden": {"train.hidden_weight": 0},
    "loss-without-prompts": {"train.prompt_weight": 0},
    "init-scratch": {"student.init": "scratch", "train.freeze_embeddings": False},
    "init-projected": {"student.init": "projected", "student.hidden_size": 576},
    "init-trained-embeddings": {"train.freeze_embeddings": False},
    "vocabulary-16384": {"student.vocab_size": 16384},
    "vocabulary-whole": {"student.vocab_size": None},
    "cache-live": {"train.targets": "live"},
    "cache-top-64": TOP_64,
    "cache-drawn-12": DRAWN_12,
    "on-policy-quarter": {"train.on_policy": {"fraction": 0.25}},
    "on-policy-rising-to-half": {"train.on_policy": {"fraction": {"start": 0, "end": 0.5}}},
}
"""Caches of few tokens have no hidden states: their like is ``loss-without-hidden``."""


def changed(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's content with dotted keys set; one that is set to None goes."""
    made = {key: dict(v) if isinstance(v, Mapping) else v for key, v in content.items()}
    for place, value in changes.items():
        section, key = place.split(".")
        made[section].pop(key, None)
        if value is not None:
            made[section][key] = value
    return made


def recipe_of(name: str) -> str:
    """The YAML of a row."""
    content = yaml.safe_load(BASE.read_text("utf-8"))
    content = changed(content, ROWS[name]) | {"name": f"ablation-{name}"}
    content["data"]["briefs"] = f"../{content['data']['briefs']}"
    said = [f"{key}: {OF_THE_TEACHER if v is None else v}" for key, v in ROWS[name].items()]
    head = f"# The quickstart with {', '.join(said)}. Written by make.py.\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=200)


def main() -> None:
    """Write every recipe; one that has no row goes."""
    for file in FOLDER.glob("*.yaml"):
        if file.stem not in ROWS:
            file.unlink()
    for name in ROWS:
        (FOLDER / f"{name}.yaml").write_text(recipe_of(name), "utf-8")


if __name__ == "__main__":
    main()
