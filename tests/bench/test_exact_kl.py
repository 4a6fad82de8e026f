"""A run's KL by its reference and by PyTorch, on a tiny run."""

import json
from pathlib import Path

import pytest

from bench import document, exact_kl
from kdexport.pipeline import training
from kdexport.pipeline.run import open_run, run_stages
from kdexport.recipe import load_recipe
from tests.tea import make_tea_run


def test_both_say_the_same_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "REFERENCE_TOP_K", 299)  # all but one: exact
    run = open_run(load_recipe(make_tea_run(tmp_path) / "recipe.yaml"))
    run_stages(run, until="export")
    out = tmp_path / "exact-kl.json"
    exact_kl.main([str(run.folder), str(run.student_bundle), "--out", str(out)])
    found = json.loads(out.read_text())
    assert sum(found["exact"]) > 0
    assert found["bench"] == pytest.approx(found["exact"], rel=1e-3)
    printed = capsys.readouterr().out.splitlines()
    assert ": met; the draws' standard error is 0.0000" in printed[-1]
    assert [*document.sections([out])][-1] == printed[-1]


def test_a_difference_is_not_met() -> None:
    found = {"tokens": [10, 10], "bench": [5.0, 7.0], "exact": [5.0, 6.9]}
    assert [*exact_kl.lines(found)][-1] == (
        "- +0.00500 over 20 tokens, bar ± 0.0001: NOT met; the draws' standard error is 0.00500"
    )
