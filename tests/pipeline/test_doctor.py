"""`kdexport doctor RECIPE` through the command line, on a tiny teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdexport.commands.main import cli
from kdexport.describe import describe_proofs, proof_rows
from kdexport.train.case import Proof
from tests.models import byte_level_bpe, make_gpt2, make_llama

RECIPE = """\
name: tiny
teacher: teacher
data: {pairs: pairs.jsonl}
student: {n_layers: 2, vocab_size: 300}
train: {max_steps: 1, targets: hidden, hidden_weight: 1, prompt_weight: 1, temperature: 2}
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("doctor") / "teacher", n_layers=3)


@pytest.fixture
def folder(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("teacher: teacher", f"teacher: {teacher}"))
    rows = [{"prompt": f"Tea {n}", "completion": "Fresh " * n, "split": "train"} for n in (1, 2, 9)]
    write(tmp_path / "pairs.jsonl", *rows, {**rows[0], "prompt": "Cake", "split": "test"})
    return tmp_path


def write(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def examined(*options: str) -> tuple[int, list[dict[str, Any]]]:
    shown = CliRunner().invoke(cli, ["doctor", "recipe.yaml", "--json", *options])
    return shown.exit_code, json.loads(shown.stdout)


def test_a_recipe_is_proved_and_nothing_is_left(folder: Path) -> None:
    before = sorted(folder.iterdir())
    code, rows = examined()
    assert [row for row in rows if not row["ok"]] == []
    assert code == 0
    names = [row["name"] for row in rows]
    assert "jsd is its formula" in names and "cached hidden states are the live ones" in names
    assert sorted(folder.iterdir()) == before


def test_layers_and_own_samples_are_examined_where_they_are_asked_for(folder: Path) -> None:
    code, rows = examined(
        *("--set", "train.targets=live", "--set", "train.inside=[blocks,relations]"),
        *("--set", "train.on_policy.max_new_tokens=8"),
    )
    assert (code, [row for row in rows if not row["ok"]]) == (0, [])
    names = [row["name"] for row in rows]
    assert "blocks between layers is its formula" in names
    assert "relations between layers is its formula" in names
    assert "own samples have no cross-entropy" in names


def test_a_student_of_other_tokens_is_examined(folder: Path) -> None:
    texts = ["Frisches Brot aus dem Ofen.", "Zwei Paar Schuhe, ein Preis; das Meer."]
    make_gpt2(folder / "own", tokenizer=byte_level_bpe(400, texts))
    asked, place = (folder / "recipe.yaml").read_text(), "{init: checkpoint, from: own}"
    asked = asked.replace("{n_layers: 2, vocab_size: 300}", place)
    asked = asked.replace("hidden_weight: 1, prompt_weight: 1", "loss: uld")
    (folder / "recipe.yaml").write_text(asked)
    code, rows = examined()
    assert (code, [row for row in rows if not row["ok"]]) == (0, [])
    names = [row["name"] for row in rows]
    assert "paired tokens follow the same text" in names
    assert "jsd is its formula" not in names  # which wants one vocabulary


def test_a_text_in_two_splits_fails_and_is_told(folder: Path) -> None:
    with (folder / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Tea 2", "completion": "fresh fresh", "split": "test"}))
    options = ["--set", "train.targets=cached", "--set", "train.hidden_weight=0"]
    code, rows = examined(*options)
    assert (code, [row for row in rows if not row["ok"]]) == (0, [])  # as a run would drop it
    code, rows = examined(
        *options, "--set", "data.contamination=warn", "--set", "train.packing=true"
    )
    assert code == 1
    assert next(row for row in rows if row["name"] == "packing changes no gradient")["ok"]
    assert [row["name"] for row in rows if not row["ok"]] == ["test texts are not trained on"]
    assert next(row for row in rows if not row["ok"])["measured"] == 1


def test_briefs_stand_in_for_copy_that_is_not_written_yet(folder: Path) -> None:
    facts = {"facts": ["green", "loose"], "channel": "sms"}
    write(folder / "briefs.jsonl", *({"product": f"Tea {n}", **facts} for n in range(3)))
    data = ["--set", "data.pairs=null", "--set", f"data.briefs={folder / 'briefs.jsonl'}"]
    code, rows = examined(*data, "--set", "train.max_length=200")
    assert (code, [row for row in rows if not row["ok"]]) == (0, [])


def test_what_cannot_be_examined_is_one_line(folder: Path) -> None:
    from tests.calling import call

    code, said = call("doctor", "recipe.yaml", "--set", "train.max_length=2")
    assert code == 2
    assert "0 fit in 2 tokens" in said
    assert call("doctor", "--set", "train.lr=1")[0] == 2
    assert call("doctor", "none.yaml")[0] == 2


def test_a_measure_that_is_no_number_fails_and_stays_json() -> None:
    rows = proof_rows([Proof("a", 0.5, 1.0), Proof("[b]", float("nan"), 1.0, "why")])
    assert [row["ok"] for row in rows] == [True, False]
    assert rows[1]["measured"] is None
    from rich.console import Console

    console = Console(width=100, record=True, file=None)
    with console.capture() as shown:
        console.print(describe_proofs(rows))
    text = shown.get()
    assert "2 proofs, 1 failed" in text and "not finite" in text
    assert text.index("[b]") < text.index("ok")
