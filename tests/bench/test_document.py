"""The page of benchmarks: nothing in it but what the results hold."""

import json
from pathlib import Path

import pytest

from bench import document
from tests.verdict.fixture import example_report


def test_the_page_is_what_the_results_say() -> None:
    assert document.PAGE.read_text("utf-8") == document.document(), "run bench/document.py"


def test_every_result_has_a_section() -> None:
    page = document.document()
    for file in document.RESULTS.glob("*.json"):
        assert page.count(f"[{file.name}](../bench/results/{file.name})") == 1


def test_the_quickstart_is_told_as_its_report_does(tmp_path: Path) -> None:
    file = tmp_path / "quickstart.json"
    file.write_text(example_report().model_dump_json())
    lines = list(document.sections([file]))
    assert lines[1] == "## The quickstart, teacher to int8 student"
    assert any("| **student ONNX int8** |" in line for line in lines)


def test_a_comparison_is_told_with_its_intervals(tmp_path: Path) -> None:
    arms = {
        name: {
            seed: {"nats": [kl * 4, kl * 6], "n_parameters": 4e7, "command": ["x"]}
            | {"did": {"n_steps": 9, "cpu_s": 900.0}}
            for seed in ("0", "1")
        }
        for name, kl in (("kdexport", 0.4), ("sft", 1.0))
    }
    found = {
        "machine": example_report().machine.model_dump(),
        "budget": {"minutes": 15.0, "n_threads": 1},
        "base": "kdexport",
        "tokens": [4, 6],
        "arms": arms,
    }
    file = tmp_path / "distill.json"
    file.write_text(json.dumps(found))
    lines = list(document.sections([file]))
    assert any(line.startswith("| sft | 40.0 | 1.0000 |") for line in lines)
    assert lines[-1].startswith("- kdexport / sft: 0.400 (0.400 to 0.400)")


def test_results_of_no_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="knows no such results"):
        list(document.sections([tmp_path / "other.json"]))
