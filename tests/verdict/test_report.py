import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.errors import InputError
from kdexport.verdict.report import (
    BenchReport,
    load_report,
    percentile,
    report_json_schema,
    short,
    summary,
    write_report,
)
from tests.verdict.fixture import example_report


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.floats(0, 100),
)
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-6, abs=1e-6)


def test_ratios_are_against_the_teacher_in_pytorch() -> None:
    report = example_report()
    hero = report.hero
    assert hero is not None
    assert hero.arm == "student-int8"
    teacher = report.arm("teacher-torch-fp32")
    assert teacher is not None
    expected = np.mean(hero.decode_tok_s) / np.mean(teacher.decode_tok_s)
    assert report.speed_up(hero) == pytest.approx(expected)
    assert report.shrinkage(hero) == pytest.approx(538.1 / 47.2)
    assert report.kl(teacher) == 0.0


def test_the_summary_says_size_speed_and_fidelity() -> None:
    text = summary(example_report())
    for part in ("47.2 MB", "11.4 times smaller", "times faster", "0.430 nats", "6,128"):
        assert part in text


def test_a_summary_of_one_bundle_alone() -> None:
    report = example_report()
    alone = report.model_copy(update={"arms": [report.arms[-1]], "baseline": "student-int8"})
    assert "decodes" in summary(alone)
    assert summary(report.model_copy(update={"arms": []})) == "No arm was measured."


def test_what_is_written_is_read(tmp_path: Path) -> None:
    report = example_report()
    json_path, html_path = write_report(report, tmp_path)
    assert load_report(tmp_path) == load_report(json_path) == report
    assert html_path.read_text("utf-8").startswith("<!doctype html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.json", "report.html"]


def test_what_is_not_finite_is_missing() -> None:
    raw = json.loads(example_report().model_dump_json())
    raw["arms"][0]["perplexity"] = float("inf")
    assert BenchReport.model_validate(raw).arms[0].perplexity is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(schema_version=99), "schema 99"),
        (lambda raw: raw.update(arms=[*raw["arms"], raw["arms"][0]]), "same name"),
        (lambda raw: raw["arms"][0].pop("size_mb"), "size_mb"),
        (lambda raw: raw.update(surprise=1), "surprise"),
    ],
)
def test_a_report_of_another_form_is_refused(tmp_path: Path, change: object, message: str) -> None:
    raw = json.loads(example_report().model_dump_json())
    change(raw)  # type: ignore[operator]
    (tmp_path / "bench.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message):
        load_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "bench.json: is empty; run kdexport bench"),
        (" \n", "bench.json: is empty"),
        ("{", "bench.json: cannot be read"),
        ("[]", "bench.json: report: "),
    ],
)
def test_what_is_no_report_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(InputError) as caught:
        load_report(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.4, "1,234"), (538.1, "538"), (14.23, "14.2"), (4.706, "4.71"), (0.43, "0.430")],
)
def test_about_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_the_published_schema_is_up_to_date() -> None:
    path = Path(__file__).parents[2] / "docs" / "bench.schema.json"
    committed = json.loads(path.read_text("utf-8"))
    assert committed == report_json_schema(), "write it again: kdexport.verdict.report.write_schema"


def test_the_schema_names_what_a_report_has() -> None:
    """Every key of a report, at any depth, is one that the schema knows."""
    schema = report_json_schema()

    def check(value: object, known: dict[str, Any]) -> None:
        known = schema["$defs"][known["$ref"].rpartition("/")[2]] if "$ref" in known else known
        if isinstance(value, list) and "items" in known:
            for item in value:
                check(item, known["items"])
        if isinstance(value, dict) and "properties" in known:
            assert set(value) <= set(known["properties"])
            assert set(known["required"]) <= set(value)
            for name, inner in value.items():
                check(inner, known["properties"][name])

    check(json.loads(example_report().model_dump_json()), schema)
