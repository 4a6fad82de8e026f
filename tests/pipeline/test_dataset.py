"""From the user's own pairs to a run's: what is dropped, counted and refused."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdexport.data.card import in_words
from kdexport.data.pairs import Pair, load_pairs, write_pairs
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.measuring.asking import requests_of
from kdexport.pipeline.dataset import make_pairs
from kdexport.pipeline.plan import sizes_of
from kdexport.pipeline.preflight import check_data
from kdexport.pipeline.run import Run, data_fingerprint
from kdexport.pipeline.splits import encode_splits
from kdexport.pipeline.stages import make_student, train_student
from kdexport.pipeline.training import feed_of
from kdexport.pipeline.watching import Watcher
from kdexport.recipe import load_recipe
from kdexport.sources import ResolvedModel
from kdexport.train.model import load_model, load_tokenizer
from tests.models import make_llama

LONG = "Fruit tarts from our oven are twenty percent off until Sunday evening at nine o'clock"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("dataset") / "model")


def run_with(folder: Path, model: Path, text: str, *overrides: str) -> Run:
    (folder / "data.csv").write_text(text, "utf-8")
    (folder / "recipe.yaml").write_text(
        "name: mine\nteacher: teacher\ndata: {pairs: data.csv}\ntrain: {max_steps: 1}\n"
    )
    runs = folder / "runs"
    runs.mkdir()
    teacher = ResolvedModel(model, "teacher", "its fingerprint", None)
    return Run(load_recipe(folder / "recipe.yaml", overrides), runs, folder / "exported", teacher)


def card_of(run: Run) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((run.folder / "data_card.json").read_text("utf-8"))
    return card


def test_a_review_is_told_in_the_card(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    briefs = "".join(f'{{"product": "Tea {n}", "channel": "ad_headline"}}\n' for n in range(15))
    (tmp_path / "briefs.jsonl").write_text(briefs, "utf-8")
    ways = {"temperature": 1, "best_of": 4, "variants": 2}
    sets = [f"data.generate.{name}={value}" for name, value in ways.items()]
    sets += ["data.pairs=null", f"data.briefs={tmp_path / 'briefs.jsonl'}"]
    run = run_with(tmp_path, llama, "", *sets, "data.generate.review=keep")
    export_bundle(llama, run.teacher_bundle, name="teacher")
    make_pairs(run)
    kept = card_of(run)
    told = kept["review"]
    n_kept = sum(one["count"] for one in told["kept"].values())
    assert n_kept and "kept though they fail the review" in capsys.readouterr().err
    assert kept["candidates"]["written"] == 15 * 2 * 4
    assert told["faults"].keys() >= {*told["kept"], "truncated"}
    assert in_words(kept)[f"fails by {next(iter(told['kept']))}"].endswith(" kept")
    for review in ("drop", "null"):
        recipe = load_recipe(tmp_path / "recipe.yaml", [*sets, f"data.generate.review={review}"])
        make_pairs(replace(run, recipe=recipe))
        card = card_of(run)
        if review == "drop":
            assert card["review"] == {"faults": told["faults"], "kept": {}}
            n_pairs = [one["splits"]["train"]["pairs"] for one in (kept, card)]
            assert n_pairs[0] - n_pairs[1] == n_kept
            assert card["dropped"].keys() >= told["kept"].keys()
    assert "review" not in card and card["candidates"]["written"] == 15 * 2 * 4


ROWS = f"""\
id,text,split
a,{LONG},test
b,{LONG.upper()},train
c,"{LONG}, and {LONG}",validation
d,"{LONG}, and {LONG}, too",train
e,Rye bread is new,train
f,Cake,train
g,Pie,train
"""


def test_what_is_held_out_is_dropped_before_the_limits(tmp_path: Path, llama: Path) -> None:
    run = run_with(tmp_path, llama, ROWS, "data.max_train=2")
    make_pairs(run)
    assert [pair.id for pair in load_pairs(run.pairs)] == ["e", "f", "c", "a"]
    card = card_of(run)
    assert card["dropped"] == {
        "equal to a held-out text": {"count": 1, "examples": ["b"]},
        "nearly a held-out text": {"count": 1, "examples": ["d"]},
        "over the limit": {"count": 1, "examples": ["g"]},
    }
    assert [card["splits"][split]["pairs"] for split in ("train", "validation", "test")] == [
        2,
        1,
        1,
    ]
    assert card["splits"]["test"]["completion_characters"]["max"] == len(LONG)


def test_nearness_is_the_recipe_s(tmp_path: Path, llama: Path) -> None:
    run = run_with(tmp_path, llama, ROWS, "data.near_duplicate=1")
    make_pairs(run)
    assert [pair.id for pair in load_pairs(run.pairs)] == ["d", "e", "f", "g", "c", "a"]


def test_data_that_is_all_held_out_is_refused(tmp_path: Path, llama: Path) -> None:
    run = run_with(tmp_path, llama, "text,split\nTea,train\ntea,test\n")
    with pytest.raises(InputError, match="no pair is left to train on: 1 equal or") as caught:
        make_pairs(run)
    assert "'line-2' is like 'line-3' (equal)" in str(caught.value)
    assert "data.contamination" in caught.value.remedy
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("wish", "kept", "told"),
    [
        ("drop", "efgca", "2 training texts equal or nearly equal a held-out one: dropped; 'b' is"),
        ("warn", "bdefgca", "2 training texts equal or nearly equal a held-out one: kept, as data"),
        ("ignore", "bdefgca", None),
    ],
)
def test_what_becomes_of_them_is_the_recipe_s(
    tmp_path: Path,
    llama: Path,
    capsys: pytest.CaptureFixture[str],
    wish: str,
    kept: str,
    told: str | None,
) -> None:
    run = run_with(tmp_path, llama, ROWS, f"data.contamination={wish}")
    make_pairs(run)
    assert [pair.id for pair in load_pairs(run.pairs)] == list(kept)
    said = capsys.readouterr().err
    assert (told in said) if told else ("held-out" not in said)
    assert card_of(run)["held_out_too"]["count"] == (0 if wish == "ignore" else 2)


WORDS = ("fresh", "bread", "oven", "spring", "shoes", "delivery", "weekend", "mountains", "fox")


def many_rows(n: int) -> str:
    """Texts of 4 to 30 words that are far apart; every sixth is held out."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) for _ in range(n)]
    splits = ["train"] * 4 + ["validation", "test"]
    rows = [f"{number},{text},{splits[number % 6]}" for number, text in enumerate(texts)]
    return "\n".join(["id,text,split", *rows, "7,used twice and held by no one,train"])


STREAMED = ("data.stream=true", "data.shuffle_buffer=9", "train.targets=live")


def test_streamed_pairs_are_the_same_in_the_file(tmp_path: Path, llama: Path) -> None:
    found = []
    for name, options in (("whole", ()), ("streamed", STREAMED)):
        (tmp_path / name).mkdir()
        text = many_rows(60).removesuffix("7,used twice and held by no one,train")
        run = run_with(tmp_path / name, llama, text, *options, "data.max_train=30")
        make_pairs(run)
        found.append((run.pairs.read_bytes(), card_of(run)))
    assert found[0] == found[1]
    assert [json.loads(line)["split"] for line in found[0][0].splitlines()] == [
        *["train"] * 30,
        *["validation"] * 10,
        *["test"] * 10,
    ]


@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_streamed_run_goes_on_at_the_very_example(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    """Killed in its second epoch, it ends with the weights of a run that was not."""
    wishes = (
        "train.batch_size=2",
        f"train.packing={packing}",
        "train.epochs=1.75",
        "train.max_steps=null",
    )
    often = ("train.checkpoint_seconds=1e-9", "train.evaluate_steps=1000", "train.max_length=60")
    weights, logs = [], []
    for name, killed in (("whole", False), ("killed", True)):
        (tmp_path / name).mkdir()
        run = run_with(tmp_path / name, llama, many_rows(36), *STREAMED, *wishes, *often)
        make_pairs(run)
        make_student(run)
        if killed:
            with monkeypatch.context() as patch:
                patch.setattr(Watcher, "step", kill_at(len(logs[0]) * 2 // 3))
                with pytest.raises(KeyboardInterrupt):
                    train_student(run)
        steps: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(Watcher, "step", lambda _, event, steps=steps: steps.append(event.step))
            train_student(run)
        logs.append(steps)
        weights.append((run.student / "model.safetensors").read_bytes())
    assert logs[1] == logs[0][-len(logs[1]) :] and len(logs[1]) < len(logs[0])
    assert weights[0] == weights[1]


def kill_at(step: int) -> Any:
    def report(_: Watcher, event: Any) -> None:
        if event.step == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("data.stream=true",), "data.stream needs train.targets: live"),
        (
            ("data.stream=true", "data.pairs=null", "data.briefs=data.csv"),
            "stream is for pairs",
        ),
        (
            (
                *("data.stream=true", "train.targets=live", "train.loss=uld"),
                *("student.init=checkpoint", "student.from=teacher"),
            ),
            "uld pairs all texts beforehand",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    tmp_path: Path, llama: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_with(tmp_path, llama, many_rows(6), *options)


def test_weights_of_parts_go_with_their_texts(tmp_path: Path, llama: Path) -> None:
    """Into the run's file, its card, and the tokens of every epoch, streamed or not."""
    rows = ["text,split,weight,weights", 'Fresh bread,train,2,"[[0, 5, 0.5], [6, 11, 3]]"']
    rows += ["Rye bread is new,train,,", "Cake,validation,,"]
    found = []
    for name, options in (("whole", ()), ("streamed", STREAMED)):
        (tmp_path / name).mkdir()
        run = run_with(tmp_path / name, llama, "\n".join(rows), *options)
        make_pairs(run)
        card = card_of(run)["splits"]
        assert [card[s]["pairs_with_weighted_spans"] for s in ("train", "validation")] == [1, 0]
        data = encode_splits(run, load_tokenizer(llama), load_model(llama))
        (batch,) = feed_of(run.recipe, data).group(1)
        found.append({e.example_id: e.target_weights.tolist() for e in batch.examples})
    tokens = load_tokenizer(llama).tokenize("Fresh bread")
    assert tokens == ["Fre", "sh", "Ġbrea", "d"]
    assert found[0]["line-2"] == [1.0, 6.0, 6.0, 2.0]  # all but the first, and the text's end
    assert {*found[0]["line-3"]} == {1.0}
    assert found[0] == found[1]


def test_spans_beyond_a_text_are_refused_before_the_first_stage(
    tmp_path: Path, llama: Path
) -> None:
    run = run_with(tmp_path, llama, 'text,weights\nTea,"[[0, 3, 2]]"\nCake,"[[0, 5, 2]]"\n')
    with pytest.raises(InputError, match=r"weights: \[0, 5, 2\] is not within") as caught:
        check_data(run)
    assert caught.value.where == f"{tmp_path / 'data.csv'}:3"


def test_a_pair_with_nothing_to_learn_is_refused_before_the_first_stage(
    tmp_path: Path, llama: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "…"}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    run = run_with(tmp_path, folder, "prompt,completion\nBread?,Fresh!\nCake?,…\n")
    with pytest.raises(InputError, match="no token of it can be learnt") as caught:
        check_data(run)
    assert caught.value.where == f"{tmp_path / 'data.csv'}:3"


def test_a_file_whose_training_pairs_stand_behind_others_is_not_streamed(
    tmp_path: Path, llama: Path
) -> None:
    run = run_with(tmp_path, llama, many_rows(12), *STREAMED)
    write_pairs(run.pairs, [Pair("a", "test", (), "tea"), Pair("b", "train", (), "bread")])
    model = load_model(llama)
    data = encode_splits(run, load_tokenizer(llama), model)
    with pytest.raises(InputError, match="its training pairs do not come first"):
        feed_of(run.recipe, data).group(1)


def with_both(folder: Path, model: Path, own: list[dict[str, Any]], *overrides: str) -> Run:
    """Four briefs, and texts of one's own beside them."""
    briefs = [{"id": f"b{n}", "product": f"Tea {n}", "channel": "ad_headline"} for n in range(4)]
    for name, rows in (("briefs", briefs), ("own", own)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    sets = ["data.pairs=null", f"data.briefs={folder / 'briefs.jsonl'}"]
    sets += [f"data.own={folder / 'own.jsonl'}", "data.generate.temperature=1"]
    return run_with(folder, model, "", *sets, *overrides)


OWN = [
    {"prompt": "A headline for tea", "completion": "Tea, as it was meant.", "weight": 2},
    {"text": "Ships have sailed for tea."},
    {"id": "b0", "prompt": "Of cake", "completion": "Cake for all.", "split": "test"},
]


def test_own_texts_are_learnt_beside_the_teacher_s(tmp_path: Path, llama: Path) -> None:
    run = with_both(tmp_path, llama, OWN)
    export_bundle(llama, run.teacher_bundle, name="teacher")
    check_data(run)
    make_pairs(run)
    found = {pair.id: pair for pair in load_pairs(run.pairs)}
    given = {name: pair for name, pair in found.items() if name.startswith("own/")}
    assert {name: (pair.split, pair.weight) for name, pair in given.items()} == {
        "own/line-1": ("train", 2.0),
        "own/line-2": ("train", 1.0),
        "own/b0": ("test", 1.0),
    }
    assert given["own/line-2"].messages == () and given["own/line-1"].messages
    wrote = found.keys() - given.keys()
    assert wrote and wrote <= {f"b{n}" for n in range(4)}
    assert card_of(run)["splits"]["train"]["weighted_pairs"] == 1
    copied, _ = requests_of(run)  # of a bench: briefs alone
    assert not {pair.id for pair in copied} & given.keys()


def test_of_a_limited_split_own_texts_come_first(tmp_path: Path, llama: Path) -> None:
    run = with_both(tmp_path, llama, OWN, "data.max_train=2")
    export_bundle(llama, run.teacher_bundle, name="teacher")
    make_pairs(run)
    trained = [pair.id for pair in load_pairs(run.pairs) if pair.split == "train"]
    assert trained == ["own/line-1", "own/line-2"]
    assert sizes_of(run).n_examples == 3  # one is to test


def test_another_file_of_own_texts_is_other_data(tmp_path: Path, llama: Path) -> None:
    run = with_both(tmp_path, llama, OWN)
    before = data_fingerprint(run)
    (tmp_path / "own.jsonl").write_text(json.dumps(OWN[0]) + "\n")
    assert data_fingerprint(run) != before
    with pytest.raises(InputError, match=r"own\.jsonl:1: completion is missing"):
        (tmp_path / "own.jsonl").write_text('{"prompt": "x"}\n')
        check_data(run)
    with pytest.raises(InputError, match="there is no such file"):
        (tmp_path / "own.jsonl").unlink()
        data_fingerprint(run)


def test_own_texts_go_beside_briefs_alone(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(InputError, match="own goes beside briefs"):
        run_with(tmp_path, llama, "", "data.own=own.jsonl")
