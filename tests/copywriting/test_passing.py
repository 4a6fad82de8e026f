"""Rates are of briefs, the same for both models."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kdexport.commands.main import cli
from kdexport.content.briefs import Brief
from kdexport.copywriting.passing import LEAST_PASSED, Passed, groups, total
from kdexport.export.bundles import export_bundle
from tests.models import make_llama


def briefs(*channels: str) -> list[Brief]:
    return [Brief(id=str(n), product="Tea", channel=one) for n, one in enumerate(channels)]


def passed(*best: bool) -> list[Passed]:
    return [Passed(one, 0.5 if one else 0.0, {"length": 2, "facts": 1}) for one in best]


def test_rates_by_hand() -> None:
    ours, theirs = passed(True, False, True, True), passed(True, True, True, False)
    everything, push, sms = groups(briefs("sms", "push_note", "sms", "sms"), ours, theirs)
    assert (everything.name, everything.n_briefs) == ("all", 4)
    assert (everything.bundle.best, everything.bundle.candidates) == (0.75, 0.375)
    assert everything.difference and everything.difference.value == 0
    assert everything.ratio is None  # of four briefs some draws have none that passes
    assert (push.by, push.name, push.bundle.best) == ("channel", "push_note", 0)
    assert push.difference and push.difference.value == -1
    assert sms.teacher and sms.teacher.best == pytest.approx(2 / 3)
    assert total(ours) == {"length": 8, "facts": 4}
    (alone,) = groups(briefs("sms"), passed(True), None)
    assert alone.teacher is None and alone.difference is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_intervals_hold_their_value(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = (passed(*side) for side in zip(*pairs, strict=True))
    group = groups(briefs(*["sms"] * len(pairs)), ours, theirs)[0]
    assert group.difference and group.teacher
    assert group.difference.value == pytest.approx(group.bundle.best - group.teacher.best)
    assert group.difference.low <= group.difference.value <= group.difference.high
    assert (group.ratio is not None) == (sum(one.best for one in theirs) >= LEAST_PASSED)
    if group.ratio:
        assert group.ratio.value == pytest.approx(group.bundle.best / group.teacher.best)


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
        assert group["bundle"] == group["teacher"]
        assert group["difference"] == {"value": 0, "low": 0, "high": 0}
    assert found["faults"][0] == found["faults"][1]
    assert found["faults"][0]["error"] == 3  # a brief that cannot be written has no text
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "channel email_preheader" in shown.stdout and "faults of" in shown.stdout
