import io

import pytest
from rich.console import Console

from kdexport.verdict.report import summary
from kdexport.verdict.table import (
    COLUMNS,
    fixed,
    footnotes,
    markdown_table,
    render_samples,
    render_table,
    shared_decimals,
    table_rows,
)
from tests.verdict.fixture import example_report


def test_markdown_has_a_row_an_arm_and_the_student_in_bold() -> None:
    lines = markdown_table(example_report(), notes=False).splitlines()
    assert len(lines) == 2 + 5
    assert all(line.count("|") == len(COLUMNS) + 2 for line in lines)
    assert lines[-1].startswith("| **student ONNX int8** | **")
    assert "13.9×" in lines[-1]  # noqa: RUF001


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_fits_the_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_table(example_report(), width))
    text = console.export_text()
    words = set(text.split())
    for row in table_rows(example_report()):
        assert {cell.replace(" ", "") for cell in row.cells} <= words
        assert set(row.label.split()) <= words
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_samples_set_the_teacher_s_copy_beside_the_student_s() -> None:
    report = example_report()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_samples(report))
    text = " ".join(console.export_text().split())
    for sample in report.samples:
        for arm in (report.baseline, "student-int8"):
            assert " ".join(sample.copies[arm].split()) in text
    assert text.count("teacher PyTorch fp32") == len(report.samples)


@pytest.mark.parametrize(
    ("split", "words"),
    [("test", "held-out"), ("validation", "chose the student"), ("train", "nothing was held out")],
)
def test_figures_say_what_they_were_measured_on(split: str, words: str) -> None:
    report = example_report()
    arms = [arm.model_copy(update={"quality_split": split}) for arm in report.arms]
    told = report.model_copy(update={"arms": arms})
    assert any(words in note for note in footnotes(told))
    assert words in summary(told)


def test_a_missing_number_is_a_dash() -> None:
    report = example_report()
    bare = report.arms[0].model_copy(update={"kl_mean": None, "perplexity": None, "top1": None})
    alone = report.model_copy(update={"arms": [bare]})
    assert "–" in markdown_table(alone, notes=False)  # noqa: RUF001


@pytest.mark.parametrize(
    ("values", "digits", "most", "decimals"),
    [([538.0, 47.2], 2, 1, 0), ([5.04, 70.0], 2, 1, 1), ([0.33], 2, 2, 2), ([], 3, 1, 0)],
)
def test_a_column_shares_its_decimals(
    values: list[float], digits: int, most: int, decimals: int
) -> None:
    assert shared_decimals(values, digits, most) == decimals


def test_large_numbers_stay_short() -> None:
    assert fixed(4.1e7, 1) == "4.1e+07"
    assert fixed(1234.56, 1) == "1,234.6"
