"""Settings of every test: no model hub, quick and repeatable property tests."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # the files of tests are what runs side by side
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "kdexport",
    max_examples=50,
    deadline=None,  # two shared cores: a slow example is no failure
    derandomize=True,  # the same examples everywhere; `--hypothesis-profile=search` looks for more
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("kdexport")

RECIPE = """\
name: mine
teacher: teacher
data: {pairs: pairs.jsonl}
train: {max_steps: 2, batch_size: 4, evaluate_steps: 2, max_length: 64}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: beside them, all others run on another core."""
    slow = {item.path for item in items if item.get_closest_marker("real")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher of five layers, and another model of its tokens."""
    from tests.models import make_llama

    folder = tmp_path_factory.mktemp("small")
    make_llama(folder / "teacher", n_layers=5)
    make_llama(folder / "other", n_layers=3, hidden=32)
    return folder


@pytest.fixture
def open_run(small_models: Path, tmp_path: Path) -> Callable[..., Any]:
    """A run of that teacher with its pairs made; overrides of the recipe as on the command line."""
    from kdexport.pipeline.run import Run
    from kdexport.pipeline.stages import make_pairs
    from kdexport.recipe import load_recipe
    from kdexport.sources import ResolvedModel
    from tests.models import CORPUS

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    rows = [{"text": f"{CORPUS[n % 4]} {n}", "split": "train"} for n in range(12)]
    backwards = [" ".join(reversed(text.split())) for text in CORPUS]
    rows += [{"text": text, "split": "validation"} for text in backwards]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*overrides: str) -> Run:
        recipe = load_recipe(tmp_path / "recipe.yaml", overrides)
        folder = tmp_path / "runs" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        teacher = ResolvedModel(small_models / "teacher", "teacher", "its fingerprint")
        run = Run(recipe, folder, tmp_path / "exported", teacher)
        make_pairs(run)
        return run

    return make
