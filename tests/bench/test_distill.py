"""Intervals that cover what they say, tables that say what was measured, ablations of one thing."""

import json
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from bench.quality.arms import OURS, THEIRS, Arm, Budget, command_of, print_of, read_result
from bench.quality.measure import kl_by_text, names_of
from bench.quality.statistics import KlSums, paired_ratio, share_won_back
from bench.quality.table import changes, rows, verdicts
from kdexport.errors import InputError
from kdexport.recipe import load_recipe
from kdexport.train.data import Encoded
from kdexport.train.model import load_model, save_model
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import INITS, Origin, prune
from tests.models import make_llama

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
ABLATIONS = ROOT / "recipes" / "ablations"
FILES = sorted(ABLATIONS.glob("*.yaml"))
Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(
    "module",
    [
        "distill",
        "quantize_aware",
        "train_speed",
        "quality.ours",
        "quality.prepare",
        "training.ours",
    ],
)
def test_what_runs_as_a_process_of_its_own_can_be_imported(module: str) -> None:
    import_module(f"bench.{module}")


def sums(nats: Array, tokens: int = 10) -> KlSums:
    return KlSums(nats, np.full(len(nats), tokens))


def test_what_is_half_of_each_text_is_half_in_every_draw() -> None:
    others = {seed: sums(np.random.default_rng(seed).gamma(2.0, size=40)) for seed in range(3)}
    halves = {seed: sums(one.nats / 2) for seed, one in others.items()}
    found = paired_ratio(halves, others, n_draws=200)
    # The same draw on both sides: whatever is drawn, the ratio is a half, to float64's rounding.
    assert np.allclose([found.value, found.low, found.high], 0.5, rtol=1e-12)
    assert found.side(1) == "below"


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        text = rng.gamma(2.0, size=80)  # what both find hard; the true ratio of means is 0.8
        ours = {0: sums(0.8 * text * rng.lognormal(-0.02, 0.2, size=80))}
        others = {0: sums(text * rng.lognormal(-0.02, 0.2, size=80))}
        found = paired_ratio(ours, others, n_draws=400)
        held += found.low <= 0.8 <= found.high
    # 95 % of 300 is 285, three deviations of a binomial are 11; percentiles err on the low side.
    assert 265 <= held <= 296


def test_a_seed_that_differs_widens_the_interval_and_may_undo_a_claim() -> None:
    text = np.random.default_rng(0).gamma(2.0, size=60)
    others = {seed: sums(text) for seed in range(3)}
    alike = {seed: sums(0.9 * text) for seed in range(3)}
    one_lucky = {0: sums(0.5 * text), 1: sums(1.1 * text), 2: sums(1.1 * text)}
    assert paired_ratio(alike, others).side(1) == "below"
    found = paired_ratio(one_lucky, others)
    assert found.value == pytest.approx(0.9)
    assert found.side(1) == "undecided"
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(1.1))


def test_only_shared_seeds_and_texts_are_compared() -> None:
    with pytest.raises(ValueError, match="no seed"):
        paired_ratio({0: sums(np.ones(3))}, {1: sums(np.ones(3))})
    with pytest.raises(ValueError, match="same texts"):
        paired_ratio({0: sums(np.ones(3))}, {0: sums(np.ones(3), tokens=9)})


def test_the_share_won_back_is_of_what_quantizing_costs() -> None:
    exact = sums(np.full(20, 6.0))
    control, aware = sums(np.full(20, 8.0)), sums(np.full(20, 6.5))
    found = share_won_back(exact, control, aware, n_draws=50)
    assert (found.value, found.low, found.high) == (0.75, 0.75, 0.75)


def result(nats: list[float], steps: int = 100) -> Any:
    row = {"nats": nats, "tokens": [10] * len(nats), "n_parameters": 46_700_000}
    return read_result({**row, "did": {"n_steps": steps, "cpu_s": 900.0}, "command": ["x"]})


def test_the_table_says_what_was_measured_and_whether_bars_are_met() -> None:
    found = {
        "kdexport": {0: result([4.0, 8.0]), 1: result([4.0, 8.0], steps=110)},
        "sft": {0: result([5.0, 10.0]), 1: result([5.0, 10.0])},
        "trl-gkd": {0: result([2.0, 16.0]), 1: result([2.0, 16.0])},
    }
    table = rows(found, "kdexport")
    assert table[2] == "| kdexport | 46.7 | 0.6000 | 0.6000 0.6000 | 105 | 15.0 |  |"
    assert table[3].startswith("| sft | 46.7 | 0.7500 | 0.7500 0.7500 | 100 | 15.0 | 1.250 (1.250")
    of_sft, of_trl = verdicts(found, "kdexport")
    assert of_sft == (
        "kdexport / sft: 0.800 (0.800 to 0.800), bar ≤ 0.8 and the interval below 1: met"
    )
    # Two thirds of the mean, and twice of one text: which texts there are decides.
    assert of_trl.startswith("kdexport / trl-gkd: 0.667") and of_trl.endswith("NOT met")


def test_a_text_s_kl_is_the_sum_over_its_completion(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "teacher")
    teacher = load_model(folder)
    torch.manual_seed(1)
    origin = Origin(teacher, None, [torch.arange(20)[None]])
    student = prune(origin, StudentSpec(n_layers=2)).model
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    rng = np.random.default_rng(0)
    texts = [Encoded(f"{n}", rng.integers(3, 300, size=9 + n), 4, 4) for n in range(10)]
    found = kl_by_text(teacher, student, None, texts)
    for text, values in zip(texts, found, strict=True):
        with torch.no_grad():
            ids = torch.from_numpy(text.ids)[None]
            p, q = (
                model(ids).logits[0, 3:-1].double().log_softmax(-1).numpy()
                for model in (teacher, student)
            )
        # float32 models padded into batches against float64 of one text alone
        np.testing.assert_allclose(values, (np.exp(p) * (p - q)).sum(-1), rtol=1e-3, atol=1e-5)


def test_a_student_of_another_vocabulary_reads_the_same_tokens(tmp_path: Path) -> None:
    whole = make_llama(tmp_path / "whole")
    narrow, wide = list(range(3, 200)), [5, *range(0, 250)]

    def student(name: str, kept: list[int] | None) -> Path:
        origin = Origin(load_model(whole), kept, [torch.arange(9)[None]])
        model = prune(origin, StudentSpec()).model
        save_model(model, tmp_path / name, tokenizer_from=whole)
        (tmp_path / name / "kdexport.json").write_text(json.dumps({"kept_ids": kept}))
        return tmp_path / name

    task = tmp_path
    student("student", narrow)
    names = names_of(student("wide", wide), task)
    assert names is not None and [wide[n] for n in names] == narrow
    texts = [Encoded("0", np.arange(3, 40), 4, 4)]
    teacher = load_model(student("teacher", narrow))
    same = kl_by_text(teacher, load_model(task / "wide"), names, texts)
    # The same weights under other names, renormalised over the same tokens.
    np.testing.assert_allclose(same[0], 0, atol=1e-6)
    assert names_of(student("equal", narrow), task) is None
    assert names_of(student("all", None), task).tolist() == narrow  # type: ignore[union-attr]
    with pytest.raises(InputError, match="lacks the teacher's token"):
        names_of(student("narrower", narrow[:-1]), task)


def test_an_arm_s_command_has_its_budget_and_another_budget_is_another_result() -> None:
    arm = Arm(OURS, QUICKSTART, ["train.lambda=0"])
    words = command_of(arm, Path("task"), Path("out"), Budget(15, 2), 3)
    assert {"seed=3", "train.max_minutes=15", "train.n_threads=2", "train.lambda=0"} <= {*words}
    theirs = Arm(THEIRS, None, ["lmbda=0.0"])
    words = command_of(theirs, Path("task"), Path("out"), Budget(15, 2), 3)
    assert words[-4:] == ["--minutes=15", "--seed=3", "--set", "lmbda=0.0"]
    prints = {
        print_of(one, Path("task"), budget, seed)
        for one in (arm, Arm(OURS, QUICKSTART), theirs)
        for budget in (Budget(15, 2), Budget(1, 2))
        for seed in (0, 1)
    }
    assert len(prints) == 12


def test_the_ablations_are_what_their_script_writes() -> None:
    made = runpy.run_path(str(ABLATIONS / "make.py"))
    assert [file.stem for file in FILES] == sorted(made["ROWS"])
    assert [file.read_text("utf-8") for file in FILES] == [
        made["recipe_of"](file.stem) for file in FILES
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_ablation_changes_the_fields_that_it_names(file: Path) -> None:
    base, own = (load_recipe(path).model_dump(mode="json") for path in (QUICKSTART, file))
    for one in (base, own):
        one["data"]["briefs"] = Path(one["data"]["briefs"]).resolve()
        one.pop("name")
        one["train"]["lambda"] = one["train"].pop("kd_weight")["start"]
    named = runpy.run_path(str(ABLATIONS / "make.py"))["ROWS"][file.stem]
    found = {".".join(key.split(".")[:2]) for key in changes(base, own)}
    assert found
    assert found <= set(named)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_ablation_s_student_can_be_made_of_the_teacher(file: Path) -> None:
    # SmolLM2-135M's shape, which the recipes' teacher has
    teacher = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    wish = load_recipe(file).student
    sizes = StudentSpec(**wish.model_dump(include=set(StudentSpec.__dataclass_fields__)))
    INITS[wish.init].check(teacher, sizes)
