"""A student for each value of a column: whose rows are whose, and the whole way on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdexport.commands.main import cli
from kdexport.data.pairs import load_pairs
from kdexport.errors import InputError
from kdexport.pipeline.matrix import _pair_ids, parse_matrix, rows_by_value, run_matrix
from kdexport.recipe import Recipe, load_recipe
from kdexport.recipe.sections import GenerateSection
from kdexport.verdict.report import load_report, summary
from tests.models import make_llama

RECIPE = """\
name: tiny
teacher: {source: teacher}
data: {pairs: pairs.jsonl}
student: {n_layers: 2, vocab_size: 300}
train: {lambda: 4, lr: 3e-3, batch_size: 4, max_steps: 4}
bench: {prompt_tokens: 12, new_tokens: 4, n_runs: 1, n_samples: 1, n_copies: 1, n_threads: 1}
"""
SPLITS = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2


def rows() -> list[dict[str, Any]]:
    """By turns of fashion, of both, of travel, and of nobody."""
    segments: list[Any] = ["fashion", ["fashion", "travel"], "travel", None]
    return [
        {"id": f"r{n}", "prompt": f"Tea {n}", "completion": f"Fresh tea, number {n}.", "split": s}
        | ({"segment": segments[n % 4]} if segments[n % 4] else {})
        for n, s in enumerate(SPLITS)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write(tmp_path / "pairs.jsonl", *rows())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *lines: object) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def recipe(*overrides: str) -> Recipe:
    return load_recipe(Path("recipe.yaml"), overrides)


def test_a_student_for_each_value_from_one_teacher(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_llama(folder / "teacher", n_layers=3)
    found = run_matrix(recipe(), "segment=fashion,travel")
    run = folder / "runs" / "tiny"
    ids = {
        value: [pair.id for pair in load_pairs(run / f"segment={value}" / "pairs.jsonl")]
        for value in ("fashion", "travel")
    }
    assert ids["fashion"] == [f"r{n}" for n in range(12) if n % 4 != 2]
    assert ids["travel"] == [f"r{n}" for n in range(12) if n % 4 != 0]
    # One bundle of the teacher, one untrained student, one cache for all training texts and one
    # for the validation texts of each.
    assert [path.name for path in run.rglob("student-init")] == ["student-init"]
    assert len(list((run / "targets").iterdir())) == 3
    assert sorted(path.name for path in (folder / "exported").iterdir()) == [
        *("tiny-fashion", "tiny-fashion-int8", "tiny-teacher-int8"),
        *("tiny-travel", "tiny-travel-int8"),
    ]
    assert [row["segment"] for row in found.rows] == ["fashion", "travel"]
    assert found.rows[0]["pairs"] == {"train": 6, "validation": 2, "test": 1}
    arms = {arm.arm: arm for arm in found.report.arms}
    assert list(arms) == ["tiny-teacher-int8", "tiny-fashion-int8", "tiny-travel-int8"]
    for row, arm in zip(found.rows, list(arms.values())[1:], strict=True):
        assert row["kl_mean"] == arm.kl_mean and arm.kl_mean is not None
    assert found.rows[0]["kl_mean"] != found.rows[1]["kl_mean"]
    for name in ("tiny-fashion", "tiny-fashion-int8"):
        card = (folder / "exported" / name / "README.md").read_text("utf-8")
        assert "distilled with" in card and ("Not measured yet." in card) == (name[-4:] != "int8")
    kept = json.loads((run / "matrix.json").read_text())
    assert kept["students"] == found.rows
    # Each writes for texts of its own, the teacher for those of all.
    test = {"fashion": {"r10", "r11"}, "travel": {"r10", "r11"}}
    wrote = {name: set(arm.samples) for name, arm in arms.items()}
    assert all(wrote[f"tiny-{value}-int8"] <= test[value] for value in test)
    teacher_s = wrote.pop("tiny-teacher-int8")
    assert teacher_s == set.union(*wrote.values()) != set()
    page = (run / "matrix.html").read_text("utf-8")
    assert "2 students of one teacher, one for each segment; KL to the teacher from" in page
    assert "A student for each segment" in page and "The numbers are in matrix.json" in page
    assert load_report(run / "segment=travel").samples
    for value in ("fashion", "travel"):
        own, name = load_report(run / f"segment={value}"), f"tiny-{value}-int8"
        assert own.hero is not None and own.hero.arm == name
        assert [arm.arm for arm in own.arms] == ["tiny-teacher-int8", name]
        assert {*own.samples[0].copies} == {"tiny-teacher-int8", name}
        assert [point.step for point in own.training] == [1, 2, 3, 4]
        assert own.recipe["name"] == f"tiny-{value}" and "distill" in own.stages
        card = (folder / "exported" / name / "README.md").read_text("utf-8")
        assert f"| student for | segment {value}: 6 training pairs |" in card
        assert summary(own) in card
    capsys.readouterr()
    again = CliRunner().invoke(cli, ["run", "recipe.yaml", "--matrix", "segment=fashion,travel"])
    assert again.exit_code == 0, again.output
    assert "2 students" in again.output and "tiny-travel-int8" in again.output
    assert "Report:  runs/tiny/matrix.html" in again.output
    assert "measured before" in again.output
    assert again.output.count("done before") == 3 + 2 * 4


def test_rows_of_briefs_become_pairs_of_all_their_variants(folder: Path) -> None:
    briefs = [{"product": f"Tea {n}", "segment": ["a", "b"][n % 2]} for n in range(4)]
    write(folder / "briefs.jsonl", *briefs, {"id": "all", "product": "Cake"})
    asked = recipe("data.pairs=null", "data.briefs=briefs.jsonl", "data.generate.variants=2")
    found = rows_by_value(asked, "segment", ["a"])
    assert found == {"a": {"line-1", "line-3", "all"}}
    assert _pair_ids(asked, frozenset(["all"])) == {"all-0", "all-1"}
    assert rows_by_value(asked, "segment", ["b"])["b"] == {"line-2", "line-4", "all"}


def test_own_texts_beside_briefs_have_their_values_too(folder: Path) -> None:
    write(folder / "briefs.jsonl", {"id": "a", "product": "Tea", "segment": "fashion"})
    own = [
        {"text": "Of fashion.", "segment": "fashion"},
        {"text": "Of travel.", "segment": "travel"},
    ]
    write(folder / "own.jsonl", *own, {"text": "Of all."})
    asked = recipe("data.pairs=null", "data.briefs=briefs.jsonl", "data.own=own.jsonl")
    found = rows_by_value(asked, "segment", ["fashion", "travel"])
    assert found["fashion"] == {"a", "own/line-1", "own/line-3"}
    assert found["travel"] == {"own/line-2", "own/line-3"}
    twice = asked.model_copy(
        update={"data": asked.data.model_copy(update={"generate": GenerateSection(variants=2)})}
    )
    assert _pair_ids(twice, found["fashion"]) == {"a-0", "a-1", "own/line-1", "own/line-3"}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("segment", "is not COLUMN=A,B,C"),
        ("segment=", "is not COLUMN=A,B,C"),
        ("segment=a,,b", "is not COLUMN=A,B,C"),
        ("segment=A b,a-B", "'A b' gives no name of its own for a folder ('a-b')"),
        ("segment=!", "'!' gives no name"),
        ("segment=teacher", "'teacher' gives no name"),
    ],
)
def test_a_matrix_that_makes_no_folders_is_one_line(wish: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_matrix(wish)
    assert message in caught.value.message


def test_streamed_pairs_make_no_matrix(folder: Path) -> None:
    with pytest.raises(InputError, match="pairs by their ids") as caught:
        run_matrix(recipe("data.stream=true", "train.targets=live"), "segment=fashion,travel")
    assert caught.value.where == "data.stream"


def test_columns_and_values_that_no_row_has_are_told(folder: Path) -> None:
    with pytest.raises(InputError, match="no row has a column 'segmnt'") as caught:
        rows_by_value(recipe(), "segmnt", ["fashion"])
    assert caught.value.remedy == "did you mean 'segment'?"
    with pytest.raises(InputError, match="no row has segment 'food'") as caught:
        rows_by_value(recipe(), "segment", ["fashion", "food"])
    assert caught.value.remedy == "the most common are fashion (6), travel (6)"
    shown = CliRunner().invoke(cli, ["run", "recipe.yaml", "--dry-run", "--matrix", "segment=a"])
    assert isinstance(shown.exception, InputError)


def test_briefs_for_segments_are_their_segments_rows(folder: Path) -> None:
    (folder / "segments.csv").write_text("name\nfashion\ntravel\n")
    write(
        folder / "briefs.jsonl",
        {"id": "a", "product": "Tea", "segment": "all"},
        {"id": "b", "product": "Tea"},
        {"id": "c", "product": "Tea", "segment": ["travel"]},
    )
    options = ["data.pairs=null", "data.briefs=briefs.jsonl", "data.audiences=segments.csv"]
    found = rows_by_value(recipe(*options), "segment", ["fashion", "travel"])
    assert found == {"fashion": {"a/fashion", "b"}, "travel": {"a/travel", "b", "c/travel"}}
