from pathlib import Path
from typing import Any

import pytest
import torch

from kdexport.errors import InputError
from kdexport.train.depth import block_influence, cut_depth, fill, most_influential
from kdexport.train.model import load_model

TEXTS = [torch.arange(3, 40)[None], torch.arange(60, 90)[None]]


@pytest.fixture(params=["llama", "gpt2"])
def teacher(request: pytest.FixtureRequest) -> Any:
    folder: Path = request.getfixturevalue(request.param)
    return load_model(folder)


def test_trimming_the_vocabulary_keeps_the_kept_logits(teacher: Any) -> None:
    kept = [0, 1, 2, *range(20, 120)]
    student = cut_depth(teacher, range(teacher.config.num_hidden_layers), kept)
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        expected = teacher(torch.tensor(kept)[ids]).logits[..., kept]
        torch.testing.assert_close(student(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_student_ends_its_texts_where_the_teacher_does(teacher: Any) -> None:
    kept = [0, 2, *range(20, 120)]
    teacher.generation_config.eos_token_id = [2, 21]
    student = cut_depth(teacher, [0, 1], kept)
    assert student.generation_config.eos_token_id == [1, 3]


def test_a_layer_that_adds_nothing_has_no_influence(teacher: Any) -> None:
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if ".2." in name and ("o_proj" in name or "down_proj" in name or "c_proj" in name):
                parameter.zero_()
    influence = block_influence(teacher, TEXTS)
    assert influence[2] == pytest.approx(0.0, abs=1e-6)
    kept = most_influential(influence, len(influence) - 1)
    assert kept == [n for n in range(len(influence)) if n != 2]
    with torch.no_grad():
        found = cut_depth(teacher, kept, None)(TEXTS[0]).logits
        torch.testing.assert_close(found, teacher(TEXTS[0]).logits)


def test_first_and_last_layer_stay_with_those_of_most_influence() -> None:
    assert most_influential([0.0, 0.1, 0.3, 0.2, 0.0], 4) == [0, 2, 3, 4]
    assert most_influential([0.0, 0.1, 0.3, 0.2, 0.0], 2) == [0, 4]


def test_tensors_without_a_counterpart_are_refused(llama: Path) -> None:
    model = load_model(llama)
    state = {n: t.clone() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    fill(model, dict(state))
    name = "model.layers.0.mlp.up_proj.weight"
    for wrong in (
        {n: t for n, t in state.items() if n != name},
        state | {"extra": torch.ones(1)},
        state | {name: torch.ones(2, 2)},
    ):
        with pytest.raises(InputError, match="cannot be cut"):
            fill(model, wrong)
