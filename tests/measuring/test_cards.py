"""Model cards in the folders of bundles."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdexport.bundle import ORIGIN, Bundle, check_target, open_bundle, verify_bundle
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.measuring import arms
from kdexport.measuring.cards import write_first_card
from kdexport.pipeline.stages import export_checkpoint
from tests.calling import call
from tests.models import make_llama
from tests.verdict.fixture import example_report


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return export_bundle(make_llama(tmp_path / "model"), tmp_path / "tiny", name="mine")


def test_a_card_is_written_into_a_bundle_which_stays_whole(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = example_report()
    measured = report.arms[-1].model_copy(update={"arm": "tiny"})
    found = report.model_copy(update={"arms": [report.arms[0], measured]})
    asked: list[Any] = []
    monkeypatch.setattr(arms, "bench_bundles", lambda *given: asked.append(given) or found)
    assert call("bench", bundle.path) == (0, "")
    assert not (bundle.path / "README.md").exists()
    assert call("bench", bundle.path, "--card") == (0, "")
    assert "\n# mine\n" in (bundle.path / "README.md").read_text("utf-8")
    assert len(asked) == 2
    assert verify_bundle(bundle.path) == []
    check_target(bundle.path)  # it may be replaced


def test_an_export_has_a_card_of_what_its_run_tells_and_a_bench_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "tea"
    make_llama(run / "student")
    recipe = {"bench": {}, "train": {"loss": "jsd", "lambda": 2}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    step = {"step": 3, "tokens": 900, "elapsed_s": 60.0, "loss": 1.0, "lr": 0.1}
    (run / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    (run / "data_card.json").write_text(json.dumps({"dropped": {"stray": {"count": 4}}}))
    bundles = export_checkpoint(run, tmp_path / "tea-bundle", "int8")
    told = (
        "| distilled with | loss jsd, lambda 2 |",
        "| training took | 3 steps, 900 tokens, 1 minutes |",
        "| texts, stray | 4 dropped |",
    )
    for bundle, beside in zip(bundles, ("the model in PyTorch", "its float32 bundle"), strict=True):
        card = (bundle.path / "README.md").read_text("utf-8")
        assert all(line in card for line in told)
        assert f"KL to {beside} at most " in card and "Not measured yet." in card
        assert verify_bundle(bundle.path) == []
    report = example_report()
    measured = report.arms[-1].model_copy(update={"arm": "tea-bundle-int8"})
    bare = report.model_copy(update={"arms": [measured], "recipe": {}, "training": [], "data": {}})
    monkeypatch.setattr(arms, "bench_bundles", lambda *given: bare)
    assert call("bench", bundles[1].path, "--card") == (0, "")
    card = (bundles[1].path / "README.md").read_text("utf-8")
    assert all(line in card for line in told)
    assert "Not measured yet." not in card and "| **tea-bundle-int8** |" in card


def test_a_model_from_elsewhere_has_a_card_too(bundle: Bundle) -> None:
    write_first_card(bundle)
    card = (bundle.path / "README.md").read_text("utf-8")
    assert ORIGIN not in bundle.manifest.files
    assert "| teacher | unknown |" in card and "distilled" not in card


def test_facts_that_are_none_are_one_line(tmp_path: Path) -> None:
    model, odd = make_llama(tmp_path / "model"), {"trained for": 3}
    out = tmp_path / "odd"
    export_bundle(model, out, name="odd", origin=odd)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"origin\.json: is no table of facts"):
        write_first_card(open_bundle(out))
