"""The table of further cases, and what is said of times beside the table."""

import io

import pytest
from rich.console import Console

from kdexport.verdict.cases import (
    CASE_COLUMNS,
    case_rows,
    gains,
    interval_text,
    markdown_cases,
    quicker_first_token,
    speed_up,
    timing_notes,
)
from kdexport.verdict.page import render_html
from kdexport.verdict.quality_tables import grids, render_grid
from kdexport.verdict.repeats import ratio_again
from kdexport.verdict.report import BenchReport
from kdexport.verdict.timing import Case, Timing
from tests.verdict.fixture import example_report

CASE = Case(n_threads=1, batch_size=4, prompt_tokens=512, new_tokens=64)


def with_case(times: dict[str, float]) -> BenchReport:
    """The example, and one further case: every gap so many milliseconds, by arm."""
    report = example_report()
    arms = [
        arm.model_copy(
            update={
                "others": [
                    Timing(
                        **CASE.model_dump(),
                        ttft_ms=[10 * gap, 12 * gap, 14 * gap],
                        itl_ms=[gap] * 6,
                        prefill_tok_s=1000 / gap,
                        decode_tok_s=[4000 / gap] * 3,
                    )
                ]
            }
        )
        for arm in report.arms
        if (gap := times[arm.arm])
    ]
    settings = report.settings.model_copy(update={"others": [CASE]})
    return report.model_copy(update={"arms": arms, "settings": settings})


TIMES = {
    "teacher-torch-fp32": 80.0,
    "teacher-int8": 20.0,
    "student-torch-fp32": 40.0,
    "student-fp32": 10.0,
    "student-int8": 5.0,
}


def test_a_case_has_a_row_an_arm_against_the_baseline_in_that_case() -> None:
    rows = case_rows(with_case(TIMES))
    assert [row.arm for row in rows] == list(TIMES)
    assert {row.case for row in rows} == {"1 thread, batch 4, prompt 512"}
    assert rows[-1].cells == ("60.0", "5.00 / 5.00", "200", "800", "16.0")
    assert rows[0].cells[-1] == "1.00"


def test_the_rows_are_markdown_too() -> None:
    lines = markdown_cases(with_case(TIMES)).splitlines()
    assert len(lines) == 2 + len(TIMES)
    assert {line.count("|") for line in lines} == {len(CASE_COLUMNS) + 3}
    assert markdown_cases(example_report()) == ""


def test_ratios_have_the_interval_of_another_bench() -> None:
    report = example_report()
    hero, baseline = report.hero, report.baseline_arm
    assert hero is not None and baseline is not None
    found = speed_up(hero, baseline)
    assert found == ratio_again(hero.decode_tok_s, baseline.decode_tok_s)
    assert found.value == pytest.approx(report.speed_up(hero))
    assert found.low < found.value < found.high
    first = quicker_first_token(hero, baseline)
    assert first is not None
    assert first.value == pytest.approx(sum(baseline.ttft_ms) / sum(hero.ttft_ms))
    fewer = hero.model_copy(update={"decode_tok_s": hero.decode_tok_s[1:], "ttft_ms": []})
    assert speed_up(fewer, baseline) is None and quicker_first_token(fewer, baseline) is None


def test_every_arm_s_ratios_are_told_with_their_intervals() -> None:
    report = example_report()
    (note,) = (note for note in timing_notes(report) if note.startswith("Quicker than"))
    for arm in report.ordered_arms:
        found = gains(report, arm)
        assert list(found) == ([] if arm.arm == report.baseline else ["decode", "first token"])
        for name, gain in found.items():
            assert gain.low < gain.value < gain.high
            assert f"{name} {interval_text(gain)}" in note
    assert note.count("decode") == len(report.arms) - 1


def test_gaps_far_out_are_told_and_counted() -> None:
    report = example_report()
    gaps = [5.0] * 9 + [50.0]
    arms = [arm.model_copy(update={"itl_ms": gaps}) for arm in report.arms]
    (note,) = (n for n in timing_notes(report.model_copy(update={"arms": arms})) if "Gaps" in n)
    assert note.endswith("student ONNX int8 1 of 10, the longest 50.0 ms.")


def test_energy_is_told_where_there_is_a_meter_and_missed_where_there_is_none() -> None:
    report = example_report()
    assert "does not tell it" in timing_notes(report)[-1]
    arms = [arm.model_copy(update={"joules": [6.4, 12.8]}) for arm in report.arms]
    told = timing_notes(report.model_copy(update={"arms": arms}))[-1]
    assert "student ONNX int8 150 mJ" in told


@pytest.mark.parametrize("width", [80, 140])
def test_a_case_is_a_table_of_its_own_in_a_terminal_and_on_the_page(width: int) -> None:
    report = with_case(TIMES)
    grid = grids(report)[1]
    assert grid.title == "With 1 thread, batch 4, prompt 512"
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_grid(grid, "student-int8", width))
    shown, page = console.export_text(), render_html(report)
    assert page.count("<h2>With 1 thread, batch 4, prompt 512</h2>") == 1
    for row in grid.rows:
        for cell in row.cells:
            assert f"<td>{cell}</td>" in page
            assert cell.replace(" / ", "/") in shown
    assert "<h2>With " not in render_html(example_report())
