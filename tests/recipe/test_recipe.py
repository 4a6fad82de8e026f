import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.data.yaml_lines import scalar
from kdexport.errors import InputError
from kdexport.recipe import load_recipe, recipe_json_schema

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
GOOD = """\
name: mine
teacher:
  source: some/folder
data:
  pairs: pairs.jsonl
train:
  lr: 3e-4
  max_steps: 10
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text('{"text": "x"}\n')
    return tmp_path


def load(folder: Path, text: str = GOOD, *overrides: str) -> object:
    (folder / "recipe.yaml").write_text(text, "utf-8")
    return load_recipe(folder / "recipe.yaml", overrides)


def test_a_recipe_is_read(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.train.lr == 3e-4
    assert recipe.data.pairs == folder / "pairs.jsonl"  # relative to the recipe


def test_overrides_take_the_field_s_type(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    recipe = load_recipe(
        folder / "recipe.yaml",
        ["train.lr=1e-3", "train.lambda=2", "student.n_layers=4", "student.vocab_size=null"],
    )
    assert (recipe.train.lr, recipe.train.kd_weight.end) == (1e-3, 2.0)
    assert (recipe.student.n_layers, recipe.student.vocab_size) == (4, None)


@pytest.mark.parametrize("text", ["2024", "007", "on", "1e3"])
def test_a_text_is_taken_as_it_is_written(folder: Path, text: str) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    sets = [f"name={text}", f"output.runs={text}", f"teacher={text}"]
    recipe = load_recipe(folder / "recipe.yaml", sets)
    assert (recipe.name, recipe.output.runs, recipe.teacher.source) == (text, Path(text), text)


def test_an_empty_section_has_its_defaults(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD + "student:\n")
    recipe = load_recipe(folder / "recipe.yaml", ["bench=null", "data.generate=null"])
    assert recipe.student.init == "prune"
    assert (recipe.bench.n_runs, recipe.data.generate.variants) == (5, 1)
    assert load_recipe(folder / "recipe.yaml", ["student.n_layers=2"]).student.n_layers == 2


def test_a_teacher_knows_where_it_was_named(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(GOOD)
    assert load_recipe(path).teacher.where == f"{path}:3"
    assert load_recipe(path, ["teacher=x"]).teacher.where == "--set teacher"
    path.write_text(GOOD.replace("teacher:\n  source: some/folder", "teacher: some/folder"))
    assert load_recipe(path).teacher.where == f"{path}:2"


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("  lr: 3e-4", "  learning_rte: 1", ":7", "unknown key 'train.learning_rte'"),
        ("  lr: 3e-4", "  temprature: 1", ":7", "did you mean 'temperature'"),
        ("  lr: 3e-4", "  lr: fast", ":7", "train.lr: "),
        ("  lr: 3e-4", "  lr: -1", ":7", "greater than 0"),
        ("  lr: 3e-4", "  lr: 1\n  lr: 2", ":8", "given twice"),
        ("  max_steps: 10", "  batch_size: 4", ":6", "say when to stop"),
        ("  pairs: pairs.jsonl", "  pairs: none.jsonl", ":5", "there is no file"),
        ("  pairs: pairs.jsonl", "  max_train: 5", ":4", "name either briefs or pairs"),
        (
            "  pairs: pairs.jsonl",
            "  briefs: pairs.jsonl\n  channels: x",
            ":6",
            "there is no folder",
        ),
        ("  pairs: pairs.jsonl", "  briefs: pairs.jsonl\n  brand: x", ":6", "there is no file"),
        ("  pairs: pairs.jsonl", "  pairs: pairs.jsonl\n  brand: x", ":4", "are for briefs"),
        ("teacher:\n  source: some/folder\n", "", "recipe.yaml", "teacher: is missing"),
        ("  lr: 3e-4", "  shard_teacher: true\n  targets: imported", ":6", "for a teacher that is"),
        ("  lr: 3e-4", "  shard_teacher: true\n  on_policy: {}", ":6", "needs targets: live"),
        (
            "  lr: 3e-4",
            "  shard_teacher: true\n  targets: live\n  inside: hidden",
            ":6",
            "shard_teacher goes without inside",
        ),
        ("name: mine", "name: My Run", ":1", "name: "),
        ("name: mine", "name: [", ":", "is not YAML"),
        ("name: mine", "name: &a x\nseed: *a", ":2", "aliases are not allowed"),
        ("some/folder", "2024-13-45\n  licence: [1]", ":4", "teacher.licence"),
        ("name: mine", "name: x\nseed: " + "1" * 5000, ":2", "seed: "),
        ("name: mine", "name: " + "[" * 1500 + "]" * 1500, ":1", "nested deeper than 32 levels"),
        ("name: mine", 'name: "\\ud83d"', ":1", "a character that no name"),
        ("name: mine", "name: x\nseed: \x07", ":2", r"not YAML \(unacceptable character[^\n]*$"),
        ("name: mine", "name: mine\nseed: 9223372036854775808", ":2", "seed: must be at most"),
        ("  lr: 3e-4", "  betas: [0.9, 1]", ":7", "betas.1: must be below 1"),
        ("  lr: 3e-4", "  lr: .inf", ":7", "train.lr: input should be a finite number"),
        ("  lr: 3e-4", "  lambda: .nan", ":7", "train.lambda: input should be a finite number"),
        ("  lr: 3e-4", "  max_minutes: 1e999", ":7", "finite number"),
        ("some/folder", "' '", ":3", "teacher.source: string should have at least 1 character"),
        ("  lr: 3e-4", "  betas: 1", ":7", "train.betas: should be a list$"),
        ("  lr: 3e-4", "  betas: [0, 0, 0]", ":7", "train.betas: list should have at most 2"),
        ("  lr: 3e-4", "  kd_weight: 1", ":7", "did you mean 'lambda'"),
        ("  lr: 3e-4", "  temperature: 1e300", ":7", "less than or equal to 100"),
        ("  lr: 3e-4", "  temperature: 1e-300", ":7", "greater than or equal to 0.01"),
        ("name: mine", "name: " + "x" * 101, ":1", "at most 100 characters"),
        ("name: mine", "name: x\noutput: {runs: [a]}", ":2", "output.runs: should be a path$"),
        ("name: mine", "name: x\noutput: {runs: ./x, exported: x}", ":2", "two folders"),
        ("name: mine", "name: x\nstudent: 3", ":2", "student: should be a section of keys"),
        ("name: mine", "name: !!python/name:os.system x", ":1", "not"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    folder: Path, old: str, new: str, where: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(folder, GOOD.replace(old, new))
    assert where in caught.value.where


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "is not KEY=VALUE"),
        ("train.lrr=1", "did you mean 'lr'"),
        ("train.lr=abc", "train.lr"),
        ("name.x=1", "is no section"),
        ("trane.lr=1", "did you mean 'train'"),
        ("output.exported=runs", "two folders"),
        ("teacher.source=", "teacher.source"),
        ("train.lr=1e999", "finite number"),
        ("train.lr=" + "9" * 5000, "train.lr"),
        ("seed=0x_", "seed"),
        ("data.pairs=" + "x" * 300, "there is no file"),
    ],
)
def test_a_bad_override_is_named(folder: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(folder, GOOD, override)
    assert caught.value.where.startswith("--set")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"- 1", "is not a mapping"), (b"a: \xff", "not UTF-8")],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    for path in (tmp_path, tmp_path / "recipe.yaml" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be read"):
            load_recipe(path)


@given(st.floats(min_value=1e-30, max_value=1e30))
def test_a_number_in_any_notation_is_a_number(value: float) -> None:
    assert scalar(f"{value:e}") == pytest.approx(value, rel=1e-5)
    assert scalar(repr(value)) == value


@given(st.text())
def test_no_override_text_is_an_exception(text: str) -> None:
    scalar(text)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_here_are_valid(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_the_schema_beside_the_recipes_is_up_to_date() -> None:
    committed = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text("utf-8"))
    assert committed == recipe_json_schema(), "write it again: kdexport.recipe.write_schema"
    assert committed["properties"]["train"]


def test_losses_between_layers_of_packed_texts_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="inside compares layers text by text"):
        load(folder, GOOD, "train.packing=true", "train.targets=live", "train.inside=blocks")


def test_rounding_for_an_export_that_does_not_round_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"quantize_aware needs an export\.scheme"):
        load(folder, GOOD, "train.quantize_aware=0.2", "export.scheme=fp32")


def test_a_cache_in_8_bits_of_an_export_that_does_not_quantize_is_refused(folder: Path) -> None:
    assert load(folder, GOOD, "export.kv_cache=int8").export.kv_cache == "int8"
    with pytest.raises(InputError, match="kv_cache: int8 needs a scheme other than fp32"):
        load(folder, GOOD, "export.kv_cache=int8", "export.scheme=fp32")


def test_losses_are_a_name_a_term_or_a_list(folder: Path) -> None:
    def terms(wish: str) -> list[tuple[str, float, float | None]]:
        recipe: Any = load(folder, GOOD.replace("  lr: 3e-4", f"  lr: 3e-4\n  loss: {wish}"))
        return [(t.name, t.weight.end, t.parameter) for t in recipe.train.loss]

    assert terms("reverse_kl") == [("reverse_kl", 1.0, None)]
    assert terms("{name: jsd, parameter: 0.3}") == [("jsd", 1.0, 0.3)]
    two = terms("[forward_kl, {name: skew_kl, weight: {start: 0, end: 2}}]")
    assert two == [("forward_kl", 1.0, None), ("skew_kl", 2.0, None)]
    with pytest.raises(InputError, match="heads are of relations alone"):
        load(folder, GOOD, "train.targets=live", "train.inside=[{name: hidden, heads: 2}]")
    with pytest.raises(InputError, match="inside: blocks needs targets: live"):
        load(folder, GOOD, "train.inside=blocks")
    with pytest.raises(InputError, match="adaptive_kl needs targets: hidden, or live"):
        terms("adaptive_kl")


def test_candidates_have_to_differ(folder: Path) -> None:
    with pytest.raises(InputError, match="best_of needs a temperature above 0"):
        load(folder, GOOD, "data.generate.best_of=3", "data.generate.temperature=0")
    with pytest.raises(InputError, match="review ranks candidates by all checks: leave scorer out"):
        load(folder, GOOD, "data.generate.review=drop", "data.generate.scorer=checks")


def test_own_samples_are_a_share_and_need_a_teacher(folder: Path) -> None:
    recipe: Any = load(folder, GOOD + "  on_policy: {fraction: 0.3}\n")
    assert (recipe.train.on_policy.fraction.start, recipe.train.on_policy.temperature) == (0.3, 1.0)
    assert load(folder, GOOD).train.on_policy is None  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"train\.on_policy\.fraction: must be at most 1"):
        load(folder, GOOD, "train.on_policy.fraction=1.5")
    with pytest.raises(InputError, match="did you mean 'fraction'"):
        load(folder, GOOD, "train.on_policy.fractoin=0.5")
    with pytest.raises(InputError, match="on_policy needs lambda above 0"):
        load(folder, GOOD, "train.on_policy.fraction=0.5", "train.lambda=0")


LIMITED = (
    GOOD
    + """\
bench:
  n_runs: 3
  fail_if:
    - kl_p99 > 1.0
    - student-fp32:top1<90%
    - LAST
"""
)


def test_thresholds_are_conditions(folder: Path) -> None:
    bench = load(folder, LIMITED.replace("LAST", "speedup<8")).bench
    assert [str(one) for one in bench.thresholds] == [
        "kl_p99>1",
        "student-fp32:top1<0.9",
        "speedup<8",
    ]
    one = load(folder, GOOD, "bench.fail_if=kl_mean>0.5").bench
    assert one.fail_if == ("kl_mean>0.5",)
    assert load(folder, GOOD).bench.thresholds == []


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("kl_p98>1", "unknown measure 'kl_p98'; did you mean 'kl_p99'?"),
        ("speedup>8", "'speedup>8' fails what is good: more is better; write speedup<8"),
        ("student-int4:kl_mean>1", "no arm is called 'student-int4'; did you mean 'student-int8'?"),
        ("'kl_p99'", "is not [ARM:]MEASURE>NUMBER"),
        ("3", "should be a valid string"),
    ],
)
def test_a_threshold_that_is_none_is_told_with_its_line(
    folder: Path, last: str, message: str
) -> None:
    text = LIMITED.replace("LAST", last)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(folder, text)
    line = 1 + text[: text.index(f"- {last}")].count("\n")
    assert str(caught.value).startswith(f"{folder / 'recipe.yaml'}:{line}: bench.fail_if.2: ")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(folder, GOOD, f"bench.fail_if=[{last}]")
    assert str(caught.value).startswith("--set bench.fail_if: ")
