"""Arms that train, from the task to a measured student; in one process, on a tiny model."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import quantize_aware
from bench.quality import measure, ours
from bench.quality.prepare import prepare
from kdexport.errors import InputError
from kdexport.pipeline.run import open_run, run_stages
from kdexport.recipe import load_recipe
from tests.tea import make_tea_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tea_run(tmp_path_factory.mktemp("quality"))


def said(
    main: Any, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The last line that a process's main prints."""
    monkeypatch.setattr(sys, "argv", ["arm", *words])
    capsys.readouterr()
    main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


def test_an_arm_trains_from_the_task_and_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = folder / "recipe.yaml"
    task = prepare(folder / "work", load_recipe(recipe))
    assert prepare(folder / "work", load_recipe(recipe)) == task
    before = said(measure.main, [str(task), str(task / "student")], capsys, monkeypatch)
    texts = (task / "test.jsonl").read_text().splitlines()
    assert len(before["nats"]) == len(texts) == 3
    rows = [json.loads(text) for text in texts]
    assert before["tokens"] == [len(row["ids"]) - row["first"] for row in rows]
    kept: dict[str, dict[str, Any]] = {}
    for name, change in {"same": "seed=1", "wider": "student.vocab_size=null"}.items():
        out = folder / name
        out.mkdir()
        words = [str(task), str(out), str(recipe), change, "train.max_steps=12"]
        did = said(ours.main, words, capsys, monkeypatch)
        assert did["n_steps"] == 12 and did["clock_s"] > 0 and did["cpu_s"] > 0
        kept[name] = said(measure.main, [str(task), str(out / "student")], capsys, monkeypatch)
    assert all(np.isfinite(one["nats"]).all() for one in kept.values())
    assert sum(kept["same"]["nats"]) < sum(before["nats"])  # it has learnt
    assert kept["wider"]["n_parameters"] > kept["same"]["n_parameters"]


def test_a_finished_student_goes_on_with_and_without_rounding(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folder / "recipe.yaml"), "--scheme", "int4", "--steps", "4"]
    words += ["--work", str(folder / "aware"), "--out", str(folder / "aware.json")]
    with pytest.raises(InputError, match="has no student"):
        quantize_aware.main(words)
    run_stages(open_run(load_recipe(folder / "recipe.yaml")), until="distill")
    quantize_aware.main(words)
    found = json.loads((folder / "aware.json").read_text())
    assert list(found["kl"]) == ["as it was", "control", "aware"]
    # What was trained with rounded weights has them: its bundles differ by its activations only.
    exact, quantized = found["kl"]["aware"].values()
    cost = found["kl"]["control"]["int4"] - found["kl"]["control"]["fp32"]
    assert abs(quantized - exact) < 0.2 * cost
    won = (found["kl"]["control"]["int4"] - quantized) / cost
    assert found["won_back"]["value"] == pytest.approx(won, rel=1e-6)
    assert f"won back: {won:.3f}" in capsys.readouterr().out
