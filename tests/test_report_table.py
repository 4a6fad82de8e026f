import pytest
from rich.console import Console

from kdexport.report_table import COLUMNS, fixed, markdown_table, render_table, shared_decimals
from tests.report_fixture import example_report


def test_markdown_has_a_row_an_arm_and_the_student_in_bold() -> None:
    lines = markdown_table(example_report(), notes=False).splitlines()
    assert len(lines) == 2 + 5
    assert all(line.count("|") == len(COLUMNS) + 2 for line in lines)
    assert lines[-1].startswith("| **student ONNX int8** | **")
    assert "13.9×" in lines[-1]  # noqa: RUF001


def test_the_terminal_s_table_fits_a_hundred_columns() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render_table(example_report()))
    text = console.export_text()
    assert "teacher PyTorch fp32" in text
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100


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
