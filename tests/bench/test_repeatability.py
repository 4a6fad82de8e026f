"""Whether benches of the same agree is told of made-up ones that do, and that do not."""

import json
from pathlib import Path

import pytest

from bench import document, repeatability
from bench.repeatability import bars, judge, lines, n_covering
from kdexport.verdict.bootstrap import Interval
from kdexport.verdict.report import BenchReport
from kdexport.verdict.timing import Case
from tests.verdict.fixture import example_report, measured_again, with_case

SECONDS = (100.0, 120.0, 110.0)


def benches(*slower: float) -> list[BenchReport]:
    """The example measured again, with the int8 student so many times as slow in each."""
    return [
        measured_again(example_report(), seed, slower=factor, arms=("student-int8",))
        for seed, factor in enumerate(slower)
    ]


def met(reports: list[BenchReport], seconds: tuple[float, ...] = SECONDS) -> list[bool]:
    return [is_met for _, is_met in bars(judge(reports, seconds))]


def test_benches_of_the_same_meet_every_bar() -> None:
    found = judge(benches(1, 1, 1), SECONDS)
    assert len(found["ratios"]) == 4 * 2  # four arms beside the baseline
    assert all(len(one["found"]) == 3 for one in found["ratios"].values())
    assert [is_met for _, is_met in bars(found)] == [True] * 3


def test_one_that_finds_another_speed_fails() -> None:
    found = judge(benches(1, 1, 2), SECONDS)
    assert found["ratios"]["student ONNX int8: decode"]["covered"] == 0
    assert found["ratios"]["teacher ONNX int8: decode"]["covered"] == 3
    assert "student-int8 decode_tok_s" in found["changed"]
    assert not any("teacher-int8" in name for name in found["changed"])
    assert met(benches(1, 1, 2))[0] is False


def test_another_quality_or_five_minutes_fail() -> None:
    reports = benches(1, 1, 1)
    assert met(reports, (100.0, 301.0, 90.0))[2] is False
    arm = reports[1].arms[-1].model_copy(update={"ppl_ratio": 1.5})
    reports[1] = reports[1].model_copy(update={"arms": [*reports[1].arms[:-1], arm]})
    assert met(reports)[1] is False


def test_every_value_is_to_lie_in_an_interval() -> None:
    near, far = Interval(1.0, 0.9, 1.1), Interval(1.2, 0.9, 1.5)
    assert n_covering([near, near, near]) == 3
    assert n_covering([near, near, far]) == 1


def test_other_cases_have_ratios_too() -> None:
    case = Case(n_threads=1, batch_size=4, prompt_tokens=8, new_tokens=4)

    ratios = judge([with_case(report, case) for report in benches(1, 1, 1)], SECONDS)["ratios"]
    assert len(ratios) == 2 * 4 * 2
    own, other = (
        ratios[f"student ONNX int8{case}: decode"] for case in ("", ", 1 thread, batch 4, prompt 8")
    )
    assert own == other


def test_all_else_is_given_to_the_bench_and_the_result_is_a_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = iter(benches(1, 1, 1))
    asked: list[list[str]] = []
    monkeypatch.setattr(
        repeatability, "bench", lambda words: asked.append(words) or (next(reports), 60.0)
    )
    out = tmp_path / "repeatability.json"
    repeatability.main(["b", "--teacher", "t", "--out", str(out), "--runs", "5"])
    assert asked == [["b", "--teacher", "t", "--runs", "5"]] * 3
    printed = capsys.readouterr().out.splitlines()
    assert printed == [*lines(json.loads(out.read_text()))]
    assert printed[-2] == "- 60 s for the longest bench, bar ≤ 300: met"
    page = [*document.sections([out])]
    assert page[1] == "## What a second bench says" and page[-1] == printed[-1]
