"""The page of benchmarks: nothing in it but what the results hold."""

import json
from pathlib import Path

import pytest

from bench import document, train_speed
from bench.targets import OTHERS
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


def told(tmp_path: Path, name: str, found: object) -> list[str]:
    machine = example_report().machine.model_dump()
    (tmp_path / name).write_text(json.dumps({"machine": machine, **dict(found)}))  # type: ignore[call-overload]
    return list(document.sections([tmp_path / name]))


def test_speeds_are_held_to_their_bars(tmp_path: Path) -> None:
    def rounds(first: float, second: float, memory: float) -> list[dict[str, object]]:
        return [{"tokens_per_s": [first * n, second * n], "peak_rss_mb": memory} for n in (1, 2, 3)]

    every = {
        "kdexport": rounds(140, 240, 800),
        "common loop": rounds(100, 100, 1500),
        "TRL GKD": rounds(100, 80, 2000),
        "TRL GKD, float32": rounds(1, 1, 2000),
    }
    lines = told(
        tmp_path,
        "train-speed.json",
        {
            "settings": {"texts": 96, "batch_size": 8, "threads": 1},
            "rounds": every,
            "medians": train_speed.summary(every),
            "ratios": train_speed.ratios(every, "kdexport"),
        },
    )
    assert "| kdexport | 280 | 480 | 800 |" in lines
    bars = [line for line in lines if "bar" in line]
    assert bars == [
        "- kdexport / common loop, first epoch: 1.40 (1.40 to 1.40), bar ≥ 1.3: met",
        "- kdexport / common loop, second epoch: 2.40 (2.40 to 2.40), bar ≥ 2.5: NOT met",
        "- kdexport / common loop, memory: 0.53 (0.53 to 0.53), bar ≤ 0.5: NOT met",
        "- kdexport / TRL GKD, first epoch: 1.40 (1.40 to 1.40), bar ≥ 1.3: met",
        "- kdexport / TRL GKD, second epoch: 3.00 (3.00 to 3.00), bar ≥ 2.5: met",
        "- kdexport / TRL GKD, memory: 0.40 (0.40 to 0.40), bar ≤ 0.5: met",
    ]


def test_bytes_stand_beside_fidelity_and_other_projects(tmp_path: Path) -> None:
    one = {"bytes_per_token": 50, "kl": None, "total_variation": 0.21, "loss_bias": 0.004}
    one |= {"gradient_cosine": 0.9712, "gradient_length": 1.01}
    counts = {"n_tokens": 2000, "n_texts": 64, "vocabulary": 8192, "n_gradient_tokens": 500}
    others = {"bytes_per_token_of_others": OTHERS}
    lines = told(tmp_path, "targets.json", {**counts, "rows": {"sampled 12": one}, **others})
    assert "| sampled 12 | 50 | ∞ | 0.2100 | +0.4 % | 0.9712 | 1.010 |" in lines
    assert "| DistillKit, recommended | 300 | | | | | |" in lines
    assert "| DistillKit, budget | 114 | | | | | |" in lines


@pytest.mark.parametrize(
    ("paid", "expected"), [([None, 9.0, 8.0], "8.50 (8.00 to 9.00) batches"), ([None], "never")]
)
def test_own_samples_tell_when_an_export_is_paid(
    tmp_path: Path, paid: list[float | None], expected: str
) -> None:
    found = {"student_parameters": 47_000_000, "batch_size": 8, "new_tokens": 48, "threads": 1}
    found |= {"prompt_tokens": 96}
    rates = {"torch_tokens_per_s": [90.0], "bundle_tokens_per_s": [200.0], "export_s": [20.0]}
    lines = told(
        tmp_path,
        "own-samples.json",
        {**found, **rates, "batches_until_an_export_is_paid": paid},
    )
    assert "| a bundle, tokens/s | 200.00 (200.00 to 200.00) |" in lines
    assert lines[-1] == f"- an export is paid after {expected}"


def test_steps_have_a_column_a_session(tmp_path: Path) -> None:
    of = {"x, one": {"cpu_ms": 5.55, "wall_ms": 6.0}, "x, many": {"cpu_ms": 4.0, "wall_ms": 4.1}}
    found = {"steps": [{"rows": 8, "depth": 100, "of": of}]}
    lines = told(tmp_path, "steps.json", found | {"prompts": [{"tokens": 32, "of": of}]})
    assert lines[-4:] == [
        "| | x, one | x, many |",
        "|---|---:|---:|",
        "| 8 rows, 100 tokens deep | 5.5 | 4.0 |",
        "| a prompt of 32 | 5.5 | 4.0 |",
    ]


def test_results_of_no_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="knows no such results"):
        list(document.sections([tmp_path / "other.json"]))


def test_copy_in_bulk_and_many_clients_are_held_to_their_bars(tmp_path: Path) -> None:
    rates = {"together": 900.0, "one after another": 300.0, "each alone": 250.0}
    slices = [{**rates, "times one after another": 3.0, "times each alone": 2.9}]
    lines = told(
        tmp_path, "writing.json", {"n_briefs": 9, "candidates": 4, "texts_a_minute": slices}
    )
    assert "| 900 | 300 | 250 | 3.00 | 2.90 |" in lines
    assert lines[-2:] == [
        "- together / one after another, median: 3.00, bar ≥ 3: met",
        "- together / each alone, median: 2.90, bar ≥ 3: NOT met",
    ]
    done = {"n_briefs": 1000, "candidates": 8, "texts": 8000, "seconds": 180.4}
    done |= {"copies_per_minute": 2660.8, "journal_lines_at_kills": [31, 402], "rows_lost": 0}
    lines = told(tmp_path, "killed-writing.json", done | {"rows_doubled": 1, "same_bytes": False})
    assert "1,000 briefs, 8 texts each: 8,000 texts in 180 s, 2,661 a minute." in lines
    assert lines[-3:] == [
        "- rows lost: 0, bar 0: met",
        "- rows doubled: 1, bar 0: NOT met",
        "- the bytes of the unbroken table: NOT met",
    ]
    found = {"clients": 32, "prompt_tokens": 64, "new_tokens": 64, "ttft_ms_p50": 1206.2}
    found |= {"tok_s_one": [300.0], "tok_s_all": [450.0], "ratio": [1.5], "health_ms_p99": 14.9}
    lines = told(tmp_path, "serving.json", found | {"n_not_200": 0})
    assert "| 1 | 300 | 450 | 1.50 |" in lines
    assert "- 32 clients / one, median: 1.50, bar ≥ 3: NOT met" in lines
    assert "- /health p99 14.9 ms, bar < 50: met" in lines
