"""The teacher as a service of targets, in runs of a tiny model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kdexport.commands.main import cli
from kdexport.errors import InputError
from kdexport.pipeline.importing import check_imported, import_targets, write_texts
from kdexport.pipeline.run import Run
from kdexport.pipeline.service import FORMS, Service
from kdexport.pipeline.splits import Splits, encode_splits
from kdexport.pipeline.stages import STAGES, make_pairs, make_student
from kdexport.pipeline.training import train_student
from kdexport.recipe import load_recipe
from kdexport.runtime.quality import load_reference
from kdexport.sources import ResolvedModel
from kdexport.system.journal import fingerprint
from kdexport.system.metrics import read_curve
from kdexport.train.cache import fingerprint_examples
from kdexport.train.model import load_model, load_tokenizer
from tests.models import make_llama

RECIPE = """\
name: mine
teacher: {source: teacher}
data: {pairs: pairs.jsonl}
student: {n_layers: 2}
train: {max_steps: 3, evaluate_steps: 3, batch_size: 4, lr: 1e-3, n_threads: 1, device: cpu}
"""
Open = Callable[..., Run]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose stages before distillation are done."""
    folder = tmp_path_factory.mktemp("service")
    make_llama(folder / "teacher", n_layers=3)
    rows = [
        {"text": f"Fresh bread from our oven {n}", "split": ["train", "validation"][n > 15]}
        for n in range(20)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    run = opened(folder, folder / "runs" / "mine")
    make_pairs(run)
    make_student(run)
    return folder


def opened(base: Path, folder: Path, *overrides: str) -> Run:
    recipe = load_recipe(base / "recipe.yaml", overrides)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = ResolvedModel(base / "teacher", "teacher", "its fingerprint", None)
    return Run(recipe, folder, base / "exported", teacher)


@pytest.fixture
def open_run(base: Path, tmp_path: Path) -> Open:
    """Opens a run in a folder of its own; named again, the same."""

    def of(*overrides: str, name: str = "run") -> Run:
        shutil.copytree(base / "runs" / "mine", tmp_path / name, dirs_exist_ok=True)
        return opened(base, tmp_path / name, *overrides)

    return of


def losses(run: Run) -> list[float]:
    return [point.row["loss"] for point in read_curve(run.metrics)]


@pytest.mark.parametrize("targets", ["cached", "sampled"])
def test_a_run_says_what_its_kept_targets_cost(
    open_run: Open, capsys: pytest.CaptureFixture[str], targets: str
) -> None:
    train_student(open_run(f"train.targets={targets}"))
    said = capsys.readouterr().err
    assert "kept targets against live ones: loss" in said
    assert float(said.split("cosine of the gradients ")[1].split()[0]) > 0.9
    train_student(open_run(f"train.targets={targets}", "train.max_steps=1"))
    assert "against live ones" not in capsys.readouterr().err  # of the same cache, once


def kept(run: Run) -> set[str]:
    return {folder.name for folder in run.targets.iterdir()}


def test_too_large_a_cache_is_refused_before_the_teacher_is_asked(
    open_run: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run("train.cache_gb=1e-5", "train.top_k=100")
    monkeypatch.setattr(
        "kdexport.pipeline.service.fill_cache", lambda *_, **__: pytest.fail("was asked")
    )
    with pytest.raises(InputError) as caught:
        train_student(run)
    n = sum(e.n_targets for e in encoded(run).train)
    whole = (n * 402 + held_out_bytes(run)) / 1e9
    assert str(caught.value) == (
        f"train.cache_gb: the teacher's targets for {n} tokens would take {whole:.3g} GB, "
        "402 bytes each; the cap is 1e-05 GB; raise it, lower train.top_k, or set train.targets to "
        f"sampled ({n * 50 / 1e9:.3g} GB)"
    )
    assert not run.targets.exists()


def encoded(run: Run) -> Splits:
    tokenizer = load_tokenizer(run.student_init)
    return encode_splits(run, tokenizer, load_model(run.student_init))


def held_out_bytes(run: Run) -> int:
    """64 likeliest tokens, 64 draws, and the tail's mass, of the validation pairs."""
    return sum(e.n_targets for e in encoded(run).validation) * (128 * 4 + 2)


def test_older_caches_go_when_there_is_no_room(open_run: Open) -> None:
    found = []
    for top_k in (100, 90):
        run = open_run(f"train.top_k={top_k}")
        train_student(run)
        found.append(kept(run))
    (newer,) = found[1] - found[0]  # held-out pairs are asked in one way
    left = sum(file.stat().st_size for file in (run.targets / newer).iterdir())
    needed = sum(e.n_targets for e in encoded(run).train) * (80 * 4 + 2) + held_out_bytes(run)
    run = open_run("train.top_k=80", f"train.cache_gb={(needed + left) / 1e9}")
    train_student(run)
    assert newer in kept(run) and len(kept(run) & found[0]) == 1 and len(kept(run)) == 3


def test_a_cache_is_of_one_teacher_vocabulary_text_and_way_of_asking(open_run: Open) -> None:
    """Each of what its targets depend on gives it another folder; what they do not, the same."""

    def place(*overrides: str, **changes: Any) -> str:
        run = open_run(*overrides)
        run = replace(run, teacher=replace(run.teacher, **changes.pop("teacher", {})))
        examples = changes.pop("examples", encoded(run).train)
        precision = changes.pop("precision", "float32")
        service = Service(run, load_model(run.student_init), changes.get("kept"), precision)
        return service._place(examples, FORMS[run.recipe.train.targets](service)).folder.name

    texts = encoded(open_run()).train
    first, *others = texts
    last = replace(first, ids=np.append(first.ids[:-1], first.ids[-1] + 1))  # one token of one text
    renamed = replace(first, example_id="another")
    learnt_from = replace(first, first_target=first.first_target + 1)
    made = [
        place(),
        place(teacher={"fingerprint": "another teacher"}),
        place(kept=list(range(300))),
        place(kept=[*range(299), 300]),
        place("train.temperature=2"),
        place("train.top_k=32"),
        place("train.targets=sampled"),
        place("train.targets=hidden"),
        place(precision="bfloat16"),
        place(examples=[last, *others]),
        place(examples=[renamed, *others]),
        place(examples=[learnt_from, *others]),
        place(examples=others),  # as another train.max_length would leave
    ]
    assert len({*made}) == len(made)
    same = ["train.lr=1", "train.loss=jsd", "train.batch_size=2", "seed=7", "train.lambda=3"]
    assert place(*same, examples=texts) == made[0]
    weighted = replace(first, weight=3.0, token_weights=np.zeros(len(first.ids), np.float32))
    assert place(examples=[weighted, *others]) == made[0]
    assert place("train.targets=hidden", "train.temperature=3") == made[7]


def test_a_student_depends_on_the_weights_of_its_texts(open_run: Open) -> None:
    """And without any, checkpoints are those of before there were weights of tokens."""
    data = encoded(open_run())
    first, second, *others = data.train
    assert data.key == fingerprint(fingerprint_examples(data.train), [1.0] * len(data.train))
    own = np.ones(len(first.ids), np.float32)
    ways = [
        [first, second],
        [replace(first, weight=2.0), second],
        [replace(first, token_weights=own), second],
        [replace(first, token_weights=2 * own), second],
        [first, replace(second, token_weights=own)],
    ]
    keys = {replace(data, train=[*texts, *others]).key for texts in ways}
    assert len(keys) == len(ways)


def test_room_on_the_disk_changes_no_student(open_run: Open) -> None:
    one, other = open_run(), open_run("train.cache_gb=3")
    assert one.recipe.train.fingerprinted == other.recipe.train.fingerprinted
    assert open_run("train.lr=1").recipe.train.fingerprinted != one.recipe.train.fingerprinted


def answered(asked: Path, model: Any, *, cut: int = 0) -> Path:
    """What another program would write of ``texts.jsonl``; ``cut``: so many of the least likely."""
    out = asked.with_name("targets.jsonl")
    with out.open("w") as file, torch.no_grad():
        for line in asked.read_text("utf-8").splitlines():
            row = json.loads(line)
            logits = model(torch.tensor([row["ids"]])).logits[0, row["first"] - 1 : -1]
            best = torch.log_softmax(logits, -1).topk(logits.shape[-1] - cut)
            row["top_ids"] = best.indices.tolist()
            row["top_logprobs"] = best.values.tolist()
            file.write(json.dumps(row) + "\n")
    return out


def test_imported_targets_train_as_our_own_do(
    open_run: Open, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses, step by step; half precision may round the tail's mass apart."""
    own = open_run("train.evaluate_steps=1", name="own")
    train_student(own)

    run = open_run("train.evaluate_steps=1", "train.targets=imported", name="imported")
    monkeypatch.setattr("kdexport.pipeline.importing.open_run", lambda recipe: run)
    monkeypatch.setattr("kdexport.pipeline.importing.run_stages", lambda run, until: None)
    with pytest.raises(InputError, match="there are no imported targets"):
        check_imported(run)
    assert write_texts(run.recipe, tmp_path / "texts.jsonl") == 20
    file = answered(tmp_path / "texts.jsonl", load_model(base / "teacher"), cut=1)
    whole = file.read_text("utf-8")
    before = stage_prints(run)
    file.write_text("".join(whole.splitlines(keepends=True)[:16]))
    import_targets(run.recipe, [file])
    check_imported(run)
    assert stage_prints(run) != before
    train_student(run)
    assert losses(run) == pytest.approx(losses(own), rel=1e-3)
    assert len(kept(run)) == 1  # of held-out pairs; the teacher was asked for no others

    file.write_text("".join(whole.splitlines(keepends=True)[:18]))
    with pytest.raises(InputError, match="2 of 4 held-out texts are in no file"):
        import_targets(run.recipe, [file])
    file.write_text(whole)
    import_targets(run.recipe, [file])
    shutil.rmtree(run.targets)
    monkeypatch.setattr("kdexport.pipeline.training.model_on", without(base / "teacher"))
    train_student(run)
    assert losses(run) == pytest.approx(losses(own), rel=1e-3)
    assert not run.targets.exists()  # nobody was asked
    lower, exact = (
        [p.evaluation["kl"] for p in read_curve(of.metrics) if p.evaluation] for of in (run, own)
    )
    assert len(lower) == len(exact) == 3  # the tail as one event, of a teacher that knows nothing
    assert all(0.7 * b < a < b for a, b in zip(lower, exact, strict=True))
    found, expected = (load_reference(of.reference) for of in (run, own))
    assert np.array_equal(found.ids, expected.ids) and np.array_equal(found.target, expected.target)
    monkeypatch.undo()
    monkeypatch.setattr("kdexport.pipeline.importing.open_run", lambda recipe: run)

    mixed = ("train.targets=imported", "train.on_policy.fraction=1", "train.max_steps=1")
    train_student(open_run(*mixed, name="imported"))  # its own samples are in no file


def without(folder: Path) -> Any:
    """A loader of models that refuses one of them."""
    from kdexport.pipeline.training import model_on

    def load(device: str, path: Path) -> Any:
        assert path != folder, "the teacher's weights were opened"
        return model_on(device, path)

    return load


def stage_prints(run: Run) -> object:
    return next(stage for stage in STAGES if stage.name == "distill").depends(run)


def test_what_is_imported_is_for_these_texts(
    open_run: Open, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run("train.targets=imported")
    monkeypatch.setattr("kdexport.pipeline.importing.open_run", lambda recipe: run)
    monkeypatch.setattr("kdexport.pipeline.importing.run_stages", lambda run, until: None)
    write_texts(run.recipe, tmp_path / "texts.jsonl")
    file = answered(tmp_path / "texts.jsonl", load_model(base / "teacher"))
    import_targets(run.recipe, [file])
    whole = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(whole[1:]))
    with pytest.raises(InputError, match="1 of 16 texts are in no file"):  # of those to train on
        import_targets(run.recipe, [file])
    assert (run.imported / "imported.json").is_file()  # what was there before
    with pytest.raises(InputError, match="there is no such file"):
        import_targets(run.recipe, [tmp_path / "none.jsonl"])
    small = run.recipe.train.model_copy(update={"cache_gb": 1e-6})
    with pytest.raises(InputError, match="the cap is 1e-06 GB; raise it, or lower"):
        import_targets(run.recipe.model_copy(update={"train": small}), [file])
    shorter = open_run("train.targets=imported", "data.max_train=15")
    with pytest.raises(InputError, match="of other texts, or of another tokenizer"):
        train_student(shorter)


def test_either_files_or_texts_are_named() -> None:
    for arguments in ([], ["targets.jsonl", "--texts", "texts.jsonl"]):
        found = CliRunner().invoke(cli, ["import-targets", "recipe.yaml", *arguments])
        assert isinstance(found.exception, InputError)
        assert "give either files of targets or --texts" in str(found.exception)
