"""Two students of one teacher, and how often each passes; on a tiny model, in one process."""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from bench import document, passing
from bench.quality import ours
from kdexport.content.briefs import Brief
from kdexport.verdict.pass_rates import Passed
from tests.models import make_llama

RECIPE = """\
name: tiny
teacher: {source: teacher}
data: {briefs: briefs.jsonl, generate: {variants: 2}}
student: {n_layers: 2, vocab_size: 300}
train: {lambda: 4, lr: 3e-3, batch_size: 4, evaluate_steps: 4, max_minutes: 1}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_llama(tmp_path / "teacher", n_layers=3)
    splits = ["train"] * 18 + ["validation"] * 3 + ["test"] * 4
    rows = [
        {"id": f"b{n}", "product": f"Tea {n}", "channel": "ad_headline", "split": split}
        for n, split in enumerate(splits)
    ]
    (tmp_path / "briefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_teacher_and_both_students_write_for_the_same_briefs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def here(command: list[str], n_threads: int) -> Any:
        commands.append(command)
        monkeypatch.setattr(sys, "argv", command[2:])
        said = StringIO()
        with redirect_stdout(said):
            ours.main()
        return json.loads(said.getvalue().splitlines()[-1])

    monkeypatch.setattr(passing, "answer_of", here)
    monkeypatch.chdir(folder)
    words = ["--recipe", "recipe.yaml", "--set", "data.generate.temperature=1.0"]
    words += ["--work", "work", "--out", "passing.json", "--threads", "1", "--minutes", "0.01"]
    words += ["--candidates", "1", "3", "--seeds", "0", "1", "--raw", "data.generate.scorer=checks"]
    passing.main(words)
    table = capsys.readouterr().out
    found = json.loads(Path("passing.json").read_text())
    assert len(commands) == 4
    raw, filtered = found["data"]["raw"], found["data"]["filtered"]
    assert filtered["pairs"]["train"] and raw["pairs"]["train"]
    assert filtered["dropped"] != raw["dropped"]
    assert raw["candidates"]["written"] == filtered["candidates"]["written"] == 25 * 2 * 4
    assert found["n_briefs"] == 4
    assert {name: list(one) for name, one in found["best"].items()} == {
        "teacher": ["0"],
        "raw": ["0", "1"],
        "filtered": ["0", "1"],
    }
    assert all(
        [len(one[n]) for n in ("1", "3")] == [4, 4]
        for by_seed in found["best"].values()
        for one in by_seed.values()
    )
    assert all(one["n_steps"] > 0 for by in found["did"].values() for one in by.values())
    assert table.splitlines()[2].startswith("| 1 | all | 4 | ")
    assert table.count("bar ≥ 0.95") == 2
    passing.main(words)  # nothing is trained again
    assert len(commands) == 4
    again = json.loads(Path("passing.json").read_text())
    assert [again[name] for name in ("best", "compared")] == [
        found[name] for name in ("best", "compared")
    ]
    (folder / "passing.json").write_text(json.dumps(found))
    lines = list(document.sections([folder / "passing.json"]))
    assert any(line.startswith("| 3 | all | 4 |") for line in lines)


def briefs(n: int) -> list[Brief]:
    return [Brief(id=str(at), product="Tea", channel="sms") for at in range(n)]


def seed(*best: int) -> passing.Passes:
    return {2: [Passed(float(one), one / 2, {"length": 1 - one}) for one in best]}


def compared(found: Any, n: int) -> dict[str, Any]:
    text = json.dumps(passing.compare(briefs(n), found, [2]), default=vars)
    return {"compared": json.loads(text)}


def test_bars_are_of_means_over_seeds() -> None:
    half = [1] * 20 + [0] * 20
    found = compared(
        {
            "teacher": {0: seed(*[1] * 40)},
            "raw": {0: seed(*half), 1: seed(*half)},
            "filtered": {0: seed(*[1] * 40), 1: seed(*[1] * 38, 0, 0)},
        },
        40,
    )
    (row,) = passing.table(found)[2:]
    assert row.startswith("| 2 | all | 40 | 100.0 % | 50.0 % | 97.5 % | 47.5 (")
    more, near = passing.verdicts(found)
    assert more.startswith("2 a brief, filtered - raw: 47.5 (") and more.endswith("above 0: met")
    assert near.startswith("2 a brief, filtered / teacher: 0.975 (") and near.endswith("0.95: met")


def test_what_is_within_noise_or_too_few_meets_no_bar() -> None:
    noise = [1, 0] * 8
    found = compared(
        {
            "teacher": {0: seed(*noise)},
            "raw": {0: seed(*noise)},
            "filtered": {0: seed(*noise[::-1])},
        },
        16,
    )
    more, near = passing.verdicts(found)
    assert more.endswith("above 0: NOT met")
    assert "too few" in near and near.endswith("NOT met")


def test_a_recipe_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    words = ["--recipe", str(tmp_path / "x.yaml"), "--work", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"x\.yaml"):
        passing.main(words)
