"""Model cards in the folders of bundles."""

from pathlib import Path
from typing import Any

import pytest

from kdexport.bundle import Bundle, check_target, verify_bundle
from kdexport.export.bundles import export_bundle
from kdexport.measuring import arms
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
