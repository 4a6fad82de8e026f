"""Students from a checkpoint, and cut in steps with a little training between."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdexport.errors import InputError
from kdexport.pipeline.cutting import check_student, make_student, step_run, student_asked
from kdexport.pipeline.run import Run
from kdexport.pipeline.training import train_student
from kdexport.train.model import load_facts, load_model, load_tokenizer
from tests.models import byte_level_bpe, make_llama, save_tokenizer

Open = Callable[..., Run]


def from_checkpoint(open_run: Open, folder: Path, *more: str) -> Run:
    return open_run("student.init=checkpoint", f"student.from={folder}", *more)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def test_a_checkpoint_of_another_shape_is_taken_as_it_is(
    open_run: Open, small_models: Path
) -> None:
    run = from_checkpoint(open_run, small_models / "other")
    check_student(run)
    make_student(run)
    student, ids = load_model(run.student_init), torch.arange(20)[None]
    torch.testing.assert_close(
        logits(student, ids), logits(load_model(small_models / "other"), ids)
    )
    assert load_facts(run.student_init)["kept_ids"] is None
    train_student(run)  # other widths are no hindrance
    assert (run.student / "model.safetensors").is_file()


def test_rows_beyond_the_tokens_go(open_run: Open, small_models: Path, tmp_path: Path) -> None:
    model = load_model(small_models / "other")
    n_tokens = model.config.vocab_size
    model.resize_token_embeddings(n_tokens + 24)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(tmp_path / "padded")
    save_tokenizer(tmp_path / "padded", byte_level_bpe())
    run = from_checkpoint(open_run, tmp_path / "padded")
    make_student(run)
    student, ids = load_model(run.student_init), torch.arange(20)[None]
    assert student.config.vocab_size == n_tokens
    assert student.generation_config.eos_token_id == [0, 2]  # texts of training end with 2
    assert load_facts(run.student_init)["kept_ids"] == list(range(n_tokens))
    torch.testing.assert_close(logits(student, ids), logits(model, ids)[..., :n_tokens])


def test_a_trimmed_student_can_be_a_checkpoint(open_run: Open, tmp_path: Path) -> None:
    first = open_run("student.vocab_size=290", "student.n_layers=3")
    make_student(first)
    place = first.student_init.rename(tmp_path / "earlier")
    kept_ids = load_facts(place)["kept_ids"]
    run = from_checkpoint(open_run, place)
    check_student(run)
    make_student(run)
    assert load_facts(run.student_init)["kept_ids"] == kept_ids
    fewer = from_checkpoint(open_run, place, "student.vocab_size=275")
    make_student(fewer)
    assert set(load_facts(fewer.student_init)["kept_ids"]) < set(kept_ids)
    tokens = [load_tokenizer(of).get_vocab() for of in (run.teacher.path, fewer.student_init)]
    assert all(
        tokens[0][token] == load_facts(fewer.student_init)["kept_ids"][number]
        for token, number in tokens[1].items()
    )


def test_other_tokens_are_refused_by_the_first_of_them(
    open_run: Open, small_models: Path, tmp_path: Path
) -> None:
    """As many of them as the teacher has: sizes prove nothing."""
    load_model(small_models / "other").save_pretrained(tmp_path / "alien")
    spec = json.loads(byte_level_bpe().to_str())
    merges = spec["model"]["merges"]
    old = "".join(merges[-1] if isinstance(merges[-1], list) else merges[-1].split(" "))
    merges[-1] = ["q", "z"]
    spec["model"]["vocab"]["qz"] = spec["model"]["vocab"].pop(old)
    from tokenizers import Tokenizer

    save_tokenizer(tmp_path / "alien", Tokenizer.from_str(json.dumps(spec)))
    with pytest.raises(InputError, match='"qz", the teacher lacks') as caught:
        check_student(from_checkpoint(open_run, tmp_path / "alien"))
    assert caught.value.where == "student.from"


def test_a_changed_checkpoint_makes_a_new_student(
    open_run: Open, small_models: Path, tmp_path: Path
) -> None:
    place = make_llama(tmp_path / "changing", n_layers=2)
    run = from_checkpoint(open_run, place)
    before = student_asked(run)
    assert student_asked(run) == before
    make_llama(place, n_layers=3)
    assert student_asked(run) != before


STEPS = ["student.steps=[4, 3, 2]", "student.between.max_steps=1"]


def test_layers_go_in_steps_with_training_between(
    open_run: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(*STEPS, "student.vocab_size=290", "train.freeze_embeddings=true")
    check_student(run)
    make_student(run)
    kept = [load_facts(step_run(run, n).student)["kept_layers"] for n in (4, 3)]
    kept.append(load_facts(run.student_init)["kept_layers"])
    assert [len(layers) for layers in kept] == [4, 3, 2]
    assert kept[2] == [0, 4]  # as the teacher numbers them
    assert set(kept[2]) < set(kept[1]) < set(kept[0])
    first = step_run(run, 4)
    inits = [load_model(of) for of in (first.student_init, first.student)]
    assert not torch.equal(*(m.model.layers[0].mlp.up_proj.weight for m in inits))  # it has learnt
    last, before = load_model(run.student_init), load_model(step_run(run, 3).student)
    torch.testing.assert_close(
        last.model.layers[1].mlp.up_proj.weight, before.model.layers[2].mlp.up_proj.weight
    )
    assert "teacher's targets" in capsys.readouterr().err
    make_student(run)
    told = capsys.readouterr().err
    assert told.count("done before") == 6
    train_student(run)
    assert len(list(run.targets.iterdir())) == 2  # of training and validation, asked once


def test_an_interrupted_step_is_gone_on_with(
    open_run: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdexport.pipeline import cutting

    run, cuts = open_run(*STEPS), []
    whole = cutting.cut

    def killed(of: Run, before: Path | None) -> None:
        cuts.append(of.recipe.student.final_layers)
        if cuts == [4, 3]:
            raise KeyboardInterrupt
        whole(of, before)

    monkeypatch.setattr(cutting, "cut", killed)
    with pytest.raises(KeyboardInterrupt):
        make_student(run)
    make_student(run)
    assert cuts == [4, 3, 3, 2]  # the first is not made again


def test_what_is_trained_between_is_part_of_the_student(open_run: Open) -> None:
    one = student_asked(open_run(*STEPS))
    assert student_asked(open_run(*STEPS, "train.lr=1e-5")) != one
    assert student_asked(open_run(*STEPS, "train.max_steps=9")) == one  # of the final training
    with pytest.raises(InputError, match="9 layers asked of a teacher that has 5"):
        check_student(open_run("student.steps=[9, 2]", STEPS[1]))


@pytest.mark.parametrize(
    ("sizes", "is_told"),
    [
        ([], True),  # the teacher's own configuration
        (["student.init=scratch"], True),
        (["student.n_layers=4"], False),
        (["student.intermediate_size=96"], False),
        (["student.vocab_size=290"], False),
        (["student.n_kv_heads=1"], False),
        (["student.init=scratch", "student.hidden_size=32", "student.n_heads=2"], False),
    ],
)
def test_a_student_that_is_no_smaller_is_told(
    open_run: Open, capsys: pytest.CaptureFixture[str], sizes: list[str], is_told: bool
) -> None:
    run = open_run(*sizes)
    make_student(run)
    n_own, n_teacher = (
        load_model(of).num_parameters() for of in (run.student_init, run.teacher.path)
    )
    assert (n_own == n_teacher) == is_told
    assert ("no smaller than its teacher" in capsys.readouterr().err) == is_told
