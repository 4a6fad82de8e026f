"""What every result of bench/ says beside its numbers."""

import json
import sys
from pathlib import Path

import pytest

from bench.record import ROOT, record, save
from kdexport.system.machine import machine_facts


def test_a_result_says_when_how_and_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = record(__file__, ["x", "--work", str(ROOT / "runs"), str(Path.home() / "b")])
    command = ["python", "tests/bench/test_record.py", "x", "--work", "./runs", "~/b"]
    assert found["command"] == command
    assert found["machine"] == machine_facts().model_dump(mode="json")
    assert found["created"].endswith("+00:00")
    monkeypatch.setattr(sys, "argv", ["anything", "own"])
    assert record(__file__)["command"][2:] == ["own"]
    assert record(__file__, [])["command"][2:] == []


def test_a_result_is_kept_where_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    save({"a": "∞"}, path)
    assert json.loads(path.read_text("utf-8")) == {"a": "∞"}
    assert "∞" in path.read_text("utf-8")
    save({"a": 1}, None)
    assert [one.name for one in path.parent.iterdir()] == ["x.json"]
