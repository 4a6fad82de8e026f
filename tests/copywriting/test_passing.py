"""Rates are of briefs, the same for both models."""

import json
from pathlib import Path

from click.testing import CliRunner

from kdexport.commands.main import cli
from kdexport.copywriting.checking import Checked
from kdexport.copywriting.passing import passed
from kdexport.copywriting.ranking import Scored
from kdexport.export.bundles import export_bundle
from kdexport.verdict.pass_rates import Passed
from tests.models import make_llama


def test_the_first_candidates_of_a_brief_are_what_counts() -> None:
    late = Scored(0, "too long", Checked(("length: x", "length: y", "facts: z")))
    scored = [late, Scored(1, "good", Checked(soft=("tone: x",))), late]
    assert passed(scored, 1) == Passed(0.0, 0.0, {"length": 1, "facts": 1})
    assert passed(scored, 2) == Passed(1.0, 0.5, {"length": 1, "facts": 1})
    assert passed(scored, 3) == Passed(1.0, 1 / 3, {"length": 2, "facts": 2})
    assert passed([], 3) == Passed(0.0, 0.0, {"error": 3})


def test_a_bundle_beside_itself_differs_in_nothing(tmp_path: Path) -> None:
    bundle = export_bundle(make_llama(tmp_path / "model"), tmp_path / "tiny", name="tiny")
    file = tmp_path / "briefs.jsonl"
    rows = [
        {"product": "Tea", "channel": "ad_headline"},
        {"product": "Té", "channel": "email_preheader", "language": "es"},
        {"product": "Tea", "channel": "ad_headline", "facts": ["green " * 400]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["content", "eval", str(bundle.path), str(file), "--candidates", "3"]
    arguments += ["--teacher", str(bundle.path), "--threads", "1"]
    shown = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(shown.stdout)
    names = [(group["by"], group["name"], group["n_briefs"]) for group in found["groups"]]
    assert names == [
        ("all", "all", 3),
        ("channel", "ad_headline", 2),
        ("channel", "email_preheader", 1),
        ("language", "en", 2),
        ("language", "es", 1),
    ]
    for group in found["groups"]:
        assert group["rate"] == group["teacher"]
        assert group["difference"] == {"value": 0, "low": 0, "high": 0}
    assert found["faults"][0] == found["faults"][1]
    assert found["faults"][0]["error"] == 3  # a brief that cannot be written has no text
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "channel email_preheader" in shown.stdout and "faults of" in shown.stdout
