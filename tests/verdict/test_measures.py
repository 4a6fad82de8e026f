import re
from pathlib import Path

import numpy as np
import pytest

from kdexport.verdict.measures import MEASURES, read_measure, told
from kdexport.verdict.report import ArmResult
from tests.verdict.fixture import example_report

NOT_MEASURES = {"n_parameters", "n_quality_tokens", "perplexity_se", "ppl_ratio_se"}


def test_every_number_of_an_arm_is_a_measure() -> None:
    """A number that the bench learns to take can be a threshold, too."""
    kinds = ArmResult.model_json_schema()["properties"]
    types = {
        name: {one.get("type") for one in (kind, *kind.get("anyOf", []))}
        for name, kind in kinds.items()
    }
    numbers = {name for name, found in types.items() if found & {"number", "integer"}}
    assert numbers - NOT_MEASURES <= set(MEASURES)
    assert "peak_rss_mb" in numbers


def test_what_is_read_is_what_the_report_says() -> None:
    report = example_report()
    hero = report.hero
    assert hero is not None
    teacher = report.arms[0]
    found = {name: read_measure(report, hero, name) for name in MEASURES}
    expected = {
        "size_mb": 47.2,
        "shrinkage": 538.1 / 47.2,
        "ttft_p90_ms": np.percentile(hero.ttft_ms, 90),
        "tpot_p99_ms": np.percentile(hero.itl_ms, 99),
        "decode_tok_s": np.mean(hero.decode_tok_s),
        "speedup": np.mean(hero.decode_tok_s) / np.mean(teacher.decode_tok_s),
        "kl_p99": hero.kl_p99,
        "top1": 0.704,
        "pass_rate": 1.0,
        "pass_rate_ratio": 3 / 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    missing = {name for name, value in found.items() if value is None}
    assert missing == {"steady_rss_mb", "energy_mj"}  # not in the example
    assert read_measure(report, teacher, "kl_mean") == 0.0
    assert read_measure(report, teacher, "pass_rate") == pytest.approx(2 / 3)
    assert read_measure(report, teacher, "pass_rate_ratio") is None


def test_what_was_not_measured_is_none() -> None:
    report = example_report()
    bare = ArmResult.model_validate(
        report.arms[-1].model_dump() | {"itl_ms": [], "decode_tok_s": [], "kl_p99": None}
    )
    alone = report.model_copy(update={"arms": [bare], "baseline": bare.arm})
    for name in ("tpot_p50_ms", "decode_tok_s", "kl_p99", "speedup", "shrinkage"):
        assert read_measure(alone, bare, name) is None, name


def test_energy_is_of_a_token() -> None:
    report = example_report()
    arm = report.arms[-1].model_copy(update={"joules": [0.9, 1.1]})
    assert read_measure(report, arm, "energy_mj") == pytest.approx(1000 / 64)


def test_numbers_are_told_exactly_enough_for_a_limit() -> None:
    assert told("kl_p99", 1.0004) == "1.0004 nats"
    assert told("top1", 0.9) == "0.9"


def test_every_measure_is_in_its_guide() -> None:
    text = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?`) \|(.*?)\| (less|more) \|", text, re.M)
    found = {
        name: (unit.strip(), better)
        for names, unit, better in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert found == {name: (m.unit, m.better) for name, m in MEASURES.items()}
