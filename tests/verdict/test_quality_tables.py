"""The small tables of quality say what the report has, and fit a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from kdexport.verdict.bootstrap import Interval
from kdexport.verdict.pass_rates import Group, Rate
from kdexport.verdict.quality_tables import Grid, grids, loss_label, render_grid, spanned
from kdexport.verdict.report import BenchReport
from kdexport.verdict.scores import StageLoss
from tests.verdict.fixture import example_report


def by_title(report: BenchReport) -> dict[str, Grid]:
    return {grid.title: grid for grid in grids(report)}


def test_each_kind_of_quality_has_its_table() -> None:
    found = by_title(example_report())
    assert list(found) == [
        *("Time and memory in detail", "Quality by token", "What each stage cost"),
        *("Copy", "Passing all checks, %"),
    ]
    tokens = found["Quality by token"]
    assert len(tokens.rows) == 5
    hero = dict(zip(tokens.headers, tokens.rows[-1].cells, strict=True))
    assert hero["KL mean"] == "0.430"
    assert hero["p90"] == "1.075"
    assert hero["PPL ratio"] == "1.429 ± 0.010"
    assert hero["ECE %"] == "3.1"


def test_a_loss_is_told_with_its_interval_or_as_noise() -> None:
    lost = by_title(example_report())["What each stage cost"]
    labels = [row.label for row in lost.rows]
    assert labels == ["teacher quantized", "distilled", "exported", "quantized"]
    cells = {row.label: row.cells[0] for row in lost.rows}
    assert cells["distilled"].startswith("0.4")
    assert "[" in cells["distilled"]
    assert cells["exported"].endswith("within noise")
    assert spanned(Interval(0.2, 0.1, 0.3), 3) == "0.200 [0.100, 0.300]"
    assert spanned(Interval(1e-6, 1e-7, 2e-6), 3) == "0.000 within rounding"
    assert spanned(Interval(1.01, 0.99, 1.03), 2, same=1.0) == "1.01 within noise"
    assert spanned(Interval(0.012, 0.011, 0.013), 1, scale=100) == "1.2 [1.1, 1.3]"


def test_a_stage_that_skips_one_is_named_by_its_ends() -> None:
    interval = Interval(0.1, 0.0, 0.2)

    def label(arm: str, made_from: str) -> str:
        return loss_label(StageLoss(arm=arm, made_from=made_from, kl=interval, top1=interval))

    assert label("student-int8", "student-fp32") == "quantized"
    assert label("student-int8", "teacher-torch-fp32") == "teacher PyTorch fp32 → student ONNX int8"
    assert label("mine-int8", "mine") == "mine → mine-int8"


def test_what_differs_from_the_teacher_is_marked() -> None:
    report = example_report()
    hero = report.hero
    assert hero is not None
    assert hero.copies is not None
    against = {"n_words": Interval(-1, -2, -0.5), "passed": Interval(0, -1, 1)}
    copies = hero.copies.model_copy(update={"against": against})
    arms = [*report.arms[:-1], hero.model_copy(update={"copies": copies})]
    grid = by_title(report.model_copy(update={"arms": arms}))["Copy"]
    plain, marked = (
        dict(zip(grid.headers, row.cells, strict=True)) for row in (grid.rows[-2], grid.rows[-1])
    )
    assert marked["words"] == f"{plain['words']}*"
    assert marked["checks passed %"] == plain["checks passed %"]
    assert "* differs" in grid.notes[0]
    assert "too few" in by_title(report)["Copy"].notes[0]
    assert "similarity" not in grid.headers  # nothing judged it
    assert grid.rows[0].cells[grid.headers.index("chrF")] == "–"  # noqa: RUF001


def test_copy_that_no_teacher_wrote_beside_is_told_alone() -> None:
    report = example_report()
    alone = report.model_copy(update={"arms": report.arms[:1]})  # its own copy has no reference
    grid = by_title(alone)["Copy"]
    assert grid.notes == ("Greedy copy for 3 prompts.",)
    assert "chrF" not in grid.headers


def test_pass_rates_stand_by_channel_and_beside_the_teacher_s() -> None:
    report = example_report()
    grid = by_title(report)["Passing all checks, %"]
    assert grid.headers == (
        *("all (3)", "instagram caption (1)", "product description (1)", "social post (1)"),
        "ratio",
    )
    assert [row.cells for row in (grid.rows[0], grid.rows[-1])] == [
        ("67", "0", "100", "100", "–"),  # noqa: RUF001
        ("100", "100", "100", "100", "–"),  # noqa: RUF001  (the teacher passes too seldom)
    ]
    many = Group(
        *("all", "all", 40, Rate(0.5, 0.5), Rate(0.8, 0.8)),
        difference=Interval(-0.3, -0.4, -0.1),
        ratio=Interval(0.625, 0.5, 0.8),
    )
    few = replace(many, by="channel", name="sms", n_briefs=7)
    noise = replace(few, name="push_note", n_briefs=33, difference=Interval(-0.3, -0.4, 0.1))
    hero = report.arms[-1]
    assert hero.copies is not None
    copies = hero.copies.model_copy(update={"pass_rates": [many, few, noise]})
    arms = [hero.model_copy(update={"copies": copies})]
    grid = by_title(report.model_copy(update={"arms": arms}))["Passing all checks, %"]
    assert grid.rows[0].cells == ("50*", "50", "50", "0.62 [0.50, 0.80]")


@pytest.mark.parametrize("width", [80, 100, 140])
def test_they_fit_the_terminal(width: int) -> None:
    report = example_report()
    for grid in grids(report):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(render_grid(grid, "student-int8", width))
        text = console.export_text()
        assert "…" not in text
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        for row in grid.rows:
            for cell in row.cells:
                assert set(cell.replace(" ± ", "±").replace(" / ", "/").split()) <= set(
                    text.split()
                )


def test_what_the_first_table_has_no_room_for_is_told_of_every_arm() -> None:
    report = example_report()
    grid = by_title(report)["Time and memory in detail"]
    assert [row.arm for row in grid.rows] == [arm.arm for arm in report.ordered_arms]
    hero = report.arms[-1].model_copy(
        update={
            "ttft_ms": [float(n) for n in range(101)],
            "itl_ms": [n / 10 for n in range(101)],
            "prefill_tok_s": 1234.5,
            "steady_rss_mb": 99.0,
        }
    )
    told = by_title(report.model_copy(update={"arms": [hero]}))["Time and memory in detail"]
    assert told.rows[0].cells == ("50.0 / 90.0 / 99.0", "5.00 / 9.00 / 9.90", "1,234", "99.0")
    assert grid.rows[0].cells[-1] == "–"  # noqa: RUF001


def test_a_report_without_quality_has_none_of_them() -> None:
    report = example_report()
    bare = [arm.model_copy(update={"texts": None, "copies": None}) for arm in report.arms]
    found = grids(report.model_copy(update={"arms": bare, "losses": []}))
    assert [grid.title for grid in found] == ["Time and memory in detail"]
    assert grids(report.model_copy(update={"arms": [], "losses": []})) == []
