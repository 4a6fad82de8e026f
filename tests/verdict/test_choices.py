"""What was chosen before a bench stands in its report: sizes in a budget, students of a matrix."""

import json
from pathlib import Path

import pytest

from kdexport.verdict.card import model_card
from kdexport.verdict.choices import Matrix, MatrixStudent, SizeBudget, SizeCandidate, read_budget
from kdexport.verdict.page import cards, render_html
from kdexport.verdict.quality_tables import Grid, grids
from kdexport.verdict.report import BenchReport, summary
from tests.verdict.fixture import example_report
from tests.verdict.test_card import ORIGIN
from tests.verdict.test_page import Page

BUDGET = SizeBudget(
    tpot_ms=4,
    size_mb=40,
    candidates=[
        SizeCandidate(shape="8 layers", n_parameters=2_000_000, tpot_ms=3.2, size_mb=31, fits=True),
        SizeCandidate(
            shape="11 layers",
            n_parameters=3_150_000,
            tpot_ms=3.81,
            size_mb=36.5,
            fits=True,
            chosen=True,
        ),
        SizeCandidate(
            shape="15 layers", n_parameters=4_000_000, tpot_ms=5.0, size_mb=45, fits=False
        ),
        SizeCandidate(shape="30 layers", n_parameters=8_000_000),
    ],
)


def with_budget() -> BenchReport:
    return example_report().model_copy(update={"budget": BUDGET})


def of_students(*arms: str) -> BenchReport:
    """The example's arms as if they were students of a matrix."""
    students = [
        MatrixStudent(value=f"value {n}", arm=arm, pairs={"train": 1200 + n, "test": 7})
        for n, arm in enumerate(arms)
    ]
    matrix = Matrix(column="segment", students=students)
    return example_report().model_copy(update={"matrix": matrix})


def titled(report: BenchReport, title: str) -> Grid:
    return next(grid for grid in grids(report) if grid.title == title)


def test_candidates_stand_in_the_report_with_the_one_chosen() -> None:
    grid = titled(with_budget(), "Sizes within 4 ms a token and 40 MB")
    assert [(row.label, *row.cells) for row in grid.rows] == [
        ("8 layers", "2.0", "3.20", "31.0", "fits"),
        ("11 layers", "3.1", "3.81", "36.5", "chosen"),
        ("15 layers", "4.0", "5.00", "45.0", "too much"),
        ("30 layers", "8.0", "–", "–", ""),  # noqa: RUF001
    ]
    assert [row.arm for row in grid.rows] == ["", "student-int8", "", ""]  # which is bold
    assert "Sizes within 4 ms a token and 40 MB" in Page(render_html(with_budget())).text


def test_the_card_says_which_sizes_were_chosen_and_why() -> None:
    report = with_budget()
    assert report.hero is not None
    card = model_card(ORIGIN, report, report.hero)
    assert (
        "| sizes chosen | 11 layers (3.81 ms a token and 36.5 MB with random weights): most "
        "parameters that compute of 4 candidates within 4 ms a token and 40 MB |" in card
    )
    none = BUDGET.model_copy(update={"candidates": BUDGET.candidates[:1]})
    card = model_card(ORIGIN, report.model_copy(update={"budget": none}), report.hero)
    assert "sizes chosen" not in card


@pytest.mark.parametrize(
    "content",
    [
        None,
        "no JSON",
        {"key": "k", "costs": {}},  # nothing is chosen yet
        {"budget": {"tpot_ms": 4, "size_mb": None}, "candidates": [{"n_layers": 4}]},  # of before
    ],
)
def test_a_budget_that_is_not_settled_is_none(tmp_path: Path, content: object) -> None:
    path = tmp_path / "budget.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert read_budget(path) is None


def test_a_report_on_several_students_is_about_none_of_them() -> None:
    report = of_students("student-fp32", "student-int8")
    assert report.hero is None and cards(report) == []
    assert summary(report) == (
        "2 students of one teacher, one for each segment; KL to the teacher from 0.412 (value 0) "
        "to 0.430 (value 1) nats per token, each over held-out texts of its own."
    )
    grid = titled(report, "A student for each segment")
    (first, second) = [dict(zip(grid.headers, row.cells, strict=True)) for row in grid.rows]
    assert [row.label for row in grid.rows] == ["value 0", "value 1"]
    assert (first["train pairs"], second["train pairs"], first["KL nats"]) == (
        *("1,200", "1,201", "0.412"),
    )
    page = render_html(report, numbers="matrix.json")
    assert 'class="cards"' not in page and "numbers are in matrix.json" in page
    Page(page)


def test_without_a_kl_they_are_counted_alone() -> None:
    report = of_students("student-fp32", "student-int8")
    arms = [arm.model_copy(update={"kl_mean": None}) for arm in report.arms]
    text = summary(report.model_copy(update={"arms": arms}))
    assert text == "2 students of one teacher, one for each segment."


def test_a_report_on_one_student_of_a_matrix_is_about_that_one() -> None:
    report = of_students("student-int8")
    assert report.hero is not None and report.hero.arm == "student-int8"
    card = model_card(ORIGIN, report, report.hero)
    assert "| student for | segment value 0: 1,200 training pairs |" in card
