"""Searching a recipe's values: what may be searched, what comes next, and going on after a kill."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from kdexport.errors import InputError, KdexportError
from kdexport.pipeline import sweep as module
from kdexport.pipeline.run import open_run
from kdexport.pipeline.search import Search, check_searches, parse_search
from kdexport.pipeline.sweep import (
    Swept,
    Trial,
    Wish,
    is_behind,
    load_trials,
    next_params,
    run_sweep,
)
from kdexport.pipeline.watching import Watcher
from kdexport.recipe import load_recipe
from kdexport.train.checkpoint import list_checkpoints
from kdexport.train.trainer import Event
from tests.tea import make_tea_run

RECIPE = """\
name: tiny
teacher: {source: TEACHER}
data: {pairs: pairs.jsonl}
student: {n_layers: 3, vocab_size: 300}
train: {lambda: 4, lr: 3e-3, batch_size: 4, max_steps: 6, evaluate_steps: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tea_run(tmp_path_factory.mktemp("sweep"), RECIPE)


SEARCHES = ("train.lr=1e-3..3e-2", "student.n_layers=2,3")


def wish(folder: Path, **changes: Any) -> Wish:
    places = [f"output.runs={folder / 'runs'}", f"output.exported={folder / 'exported'}"]
    asked = {"minutes": 60.0, "n_trials": 3} | changes
    sets = [*places, *asked.pop("overrides", [])]
    return Wish(folder / "recipe.yaml", sets, SEARCHES, **asked)


def told(found: Swept) -> list[tuple[Any, ...]]:
    rows = sorted(found.trials, key=lambda trial: trial.number)
    return [(row.params, row.state, row.score, row.scores) for row in rows]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Swept:
    return run_sweep(wish(folder))


def test_a_sweep_ranks_its_trials_and_writes_the_best(folder: Path, whole: Swept) -> None:
    assert [trial.state for trial in whole.trials] == ["finished"] * 3
    scores = [trial.score for trial in whole.trials]
    assert scores == sorted(scores, key=lambda score: score or 0)
    assert len({*scores}) == 3
    first = next(trial for trial in whole.trials if trial.number == 0)
    assert first.params == {"student.n_layers": "3", "train.lr": 3e-3}  # the recipe's own
    best = load_recipe(whole.best)
    assert best.name == "tiny-best"
    assert best.train.lr == pytest.approx(whole.trials[0].params["train.lr"], rel=1e-3)
    assert str(best.student.n_layers) == whole.trials[0].params["student.n_layers"]
    assert best.train.kd_weight.end == 4 and best.train.max_steps == 6
    assert open_run(best).teacher.path == folder / "teacher"
    # Of the trials there remains what is told of them.
    names = {path.name for path in whole.folder.iterdir()} - {".lock"}
    assert names == {"trials.jsonl", "best.yaml"}


def test_a_sweep_that_is_done_trains_nothing(
    folder: Path, whole: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdexport.pipeline.training.train_trial", None)
    assert told(run_sweep(wish(folder))) == told(whole)


def test_a_killed_sweep_chooses_what_it_would_have_chosen(
    folder: Path, whole: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second trial, which goes on from its checkpoint."""
    steps: list[int] = []

    class Killed(Watcher):
        def step(self, event: Event) -> None:
            steps.append(event.step)
            if len(steps) == 6 + 5:
                raise KeyboardInterrupt
            super().step(event)

    monkeypatch.setattr("kdexport.pipeline.learning.Watcher", Killed)
    asked = wish(folder, overrides=["train.checkpoint_seconds=0.000001", "train.max_length=254"])
    with pytest.raises(KeyboardInterrupt):
        run_sweep(asked)
    assert told(run_sweep(asked)) == told(whole)
    # Step 5 of the second trial was made and not yet saved.
    assert steps == [*range(1, 7), *range(1, 6), *range(5, 7), *range(1, 7)]


def test_minutes_end_a_trial_which_goes_on_with_more(
    folder: Path, whole: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """A second passes at each look."""

        seconds = itertools.count()

        @classmethod
        def monotonic(cls) -> float:
            return float(next(cls.seconds))

    monkeypatch.setattr(module, "time", Clock)
    asked = {"n_trials": 1, "overrides": ["train.max_length=255"]}
    before = sweeps_of(folder)
    with pytest.raises(KdexportError, match=r"no trial has ended within 0\.1 minutes"):
        run_sweep(wish(folder, minutes=0.1, **asked))
    (new,) = sweeps_of(folder) - before
    assert list_checkpoints(new / "trial-000" / "checkpoints")
    assert told(run_sweep(wish(folder, minutes=60.0, **asked))) == told(whole)[:1]


def sweeps_of(folder: Path) -> set[Path]:
    return set((folder / "runs" / "tiny" / "sweeps").iterdir())


def test_a_trial_that_diverges_is_told_and_not_chosen(folder: Path, whole: Swept) -> None:
    before = sweeps_of(folder)
    overrides = ["train.lr=1e30", "train.evaluate_steps=1"]
    asked = Wish(
        folder / "recipe.yaml",
        [*wish(folder).overrides, *overrides],
        ["train.clip_norm=1.0,0.5"],
        60.0,
        1,
    )
    with pytest.raises(KdexportError, match="no trial has ended"):
        run_sweep(asked)
    (new,) = sweeps_of(folder) - before
    (trial,) = load_trials(new / "trials.jsonl")
    assert (trial.state, trial.score) == ("diverged", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=1e-4..1e-3", Search("train.lr", (), 1e-4, 1e-3, False, True)),
        ("train.lambda=1..5", Search("train.lambda", (), 1, 5)),
        ("train.batch_size=2..32", Search("train.batch_size", (), 2, 32, True, True)),
        ("train.epochs = 1..3", Search("train.epochs", (), 1, 3)),
        ("train.loss=jsd, skew_kl", Search("train.loss", ("jsd", "skew_kl"))),
    ],
)
def test_searches_are_read(text: str, expected: Search) -> None:
    assert parse_search(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.lr", "is not KEY=LOW..HIGH"),
        ("data.max_train=1..5", "all trials share teacher and data"),
        ("train=1..5", "all trials share"),
        ("student.vocab_size=300,310", "is not of the same thing"),
        ("train.lr=3..1", "its range is empty"),
        ("train.lr=a..1", "'a' is no number"),
        ("train.lr=1..inf", "'inf' is no number"),
        ("train.top_k=1.5..3", "whole numbers"),
        ("train.lr=0..1", "greater than 0"),
        ("train.batchsize=1..2", "did you mean 'batch_size'"),
        ("student.n_layers=1,2", "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_searched_is_one_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_searches(folder / "recipe.yaml", [], [parse_search(text)])
    assert message in str(caught.value)
    assert "--search" in caught.value.where


def test_a_field_is_searched_once(folder: Path) -> None:
    twice = [parse_search(text) for text in ("train.lr=1e-4..1e-3", "train.lr=1,2")]
    with pytest.raises(InputError, match="searched twice"):
        check_searches(folder / "recipe.yaml", [], twice)


def trials(*scores: list[float]) -> list[Trial]:
    return [
        Trial(n, {"train.lr": 1e-3 * (n + 1)}, "finished", min(one), one, 1.0)
        for n, one in enumerate(scores)
    ]


def test_values_follow_from_seed_and_trials_alone(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    searches = [parse_search("train.lr=1e-3..1e-1")]
    known = trials(*([1.0 + n] for n in range(7)))
    one, other = (next_params(known, searches, recipe) for _ in range(2))
    assert one == other
    assert one != next_params(known[:-1], searches, recipe)
    assert 1e-3 <= one["train.lr"] <= 1e-1
    # The recipe's own value is not among these: the first is drawn too.
    elsewhere = [parse_search("train.lr=1e-2..1e-1")]
    assert 1e-2 <= next_params([], elsewhere, recipe)["train.lr"] <= 1e-1


def test_values_come_from_where_the_score_is_low(folder: Path) -> None:
    """KL grows with the distance from 1e-2, in factors; the trials that diverged count, too."""
    import math

    recipe = load_recipe(folder / "recipe.yaml", ["train.lr=0.5"])
    searches = [parse_search("train.lr=1e-5..1")]
    known: list[Trial] = []
    for number in range(24):
        params = next_params(known, searches, recipe)
        away = abs(math.log10(params["train.lr"]) + 2)
        wild = params["train.lr"] > 0.3
        score = None if wild else away
        state = "diverged" if wild else "finished"
        known.append(Trial(number, params, state, score, [] if wild else [away], 1.0))
    scores = [trial.score for trial in known[-8:] if trial.score is not None]
    assert sorted(scores)[len(scores) // 2] < 1.0  # at random it is 1.25


def test_a_trial_above_the_median_is_given_up(folder: Path) -> None:
    searches = [parse_search("train.lr=1e-3..1e-1")]
    known = trials(*([3.0 - n / 10, 2.0 - n / 10] for n in range(6)))  # 2.5 to 3, then 1.5 to 2
    params = {"train.lr": 1e-2}
    assert not is_behind(known, searches, params, [2.7])
    assert is_behind(known, searches, params, [2.8])
    assert is_behind(known, searches, params, [2.7, 1.9])
    assert not is_behind(known[:4], searches, params, [9.0])  # too few to judge by


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    module._append(path, trials([1.0])[0])
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert load_trials(path) == trials([1.0])
