"""What kept targets cost training, told by one function; k = 64 within bounds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdexport.train.cache import TargetCache, fill_cache
from kdexport.train.columns import Form, hidden_form, sampled_form, top_k_form
from kdexport.train.data import Encoded
from kdexport.train.fidelity import Fidelity, compare_targets
from kdexport.train.model import load_model
from kdexport.train.objective import Objective
from kdexport.train.teacher import live_targets
from tests.train.shortage import for_at_most


@pytest.fixture
def teacher(llama: Path) -> Any:
    """One that is as sure of itself as a trained one: 98 % of its mass is on 64 of 320 tokens."""
    model = load_model(llama)
    with torch.no_grad():
        model.base_model.norm.weight.mul_(2.0)
    return model


def told(student: Any, teacher: Any, form: Form, examples: list[Encoded], folder: Path) -> Fidelity:
    fill_cache(folder, examples, form.ask, batch_size=16)
    kept, live = form.targets(TargetCache(folder)), live_targets(teacher, None, 1.0)
    return compare_targets(student, examples, kept, live, Objective(), batch_size=4)


def test_live_targets_differ_in_nothing(
    student: Any, teacher: Any, examples: list[Encoded]
) -> None:
    live = live_targets(teacher, None, 1.0)
    found = compare_targets(student, examples, live, live, Objective(), batch_size=4)
    assert found.live == found.kept and found.bias == 0.0
    assert found.cosine == pytest.approx(1.0) and found.length == pytest.approx(1.0)
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("ends_in", ["live", "kept"])
def test_where_memory_ends_fewer_texts_are_compared_at_once(
    student: Any, teacher: Any, examples: list[Encoded], ends_in: str
) -> None:
    """Also where a part of the gradient was summed up already: it is begun anew."""
    ask, n_asked = live_targets(teacher, None, 1.0), 0

    def short(batch: Any) -> Any:
        nonlocal n_asked
        n_asked += 1
        return (for_at_most(2, ask) if n_asked > 2 else ask)(batch)

    asked = (short, ask) if ends_in == "live" else (ask, short)
    found = compare_targets(student, examples, *asked, Objective(), batch_size=4)
    assert found.bias == pytest.approx(0.0, abs=1e-5)
    assert found.cosine == pytest.approx(1.0) and found.length == pytest.approx(1.0)


def test_64_tokens_give_nearly_the_live_loss(
    student: Any, teacher: Any, examples: list[Encoded], tmp_path: Path
) -> None:
    """The tail as one event makes it a lower bound: by 1.1 % here, and 0.4 % off the gradient."""
    form = top_k_form(live_targets(teacher, None, 1.0), 320, 64)
    found = told(student, teacher, form, examples, tmp_path)
    assert -0.02 < found.bias < 0
    assert found.cosine > 0.9999 and found.length == pytest.approx(1.0, abs=0.01)


def test_hidden_states_give_the_live_loss(
    student: Any, teacher: Any, examples: list[Encoded], tmp_path: Path
) -> None:
    found = told(student, teacher, hidden_form(teacher, None, 1.0, "float32"), examples, tmp_path)
    assert abs(found.bias) < 1e-4  # half precision
    assert found.cosine > 0.9999 and found.length == pytest.approx(1.0, abs=1e-3)


def test_twelve_drawn_tokens_are_biased_less_than_the_twelve_likeliest(
    student: Any, teacher: Any, examples: list[Encoded], tmp_path: Path
) -> None:
    live = live_targets(teacher, None, 1.0)
    drawn = told(student, teacher, sampled_form(live, 320, 12), examples, tmp_path / "drawn")
    likeliest = told(student, teacher, top_k_form(live, 320, 12), examples, tmp_path / "top")
    assert abs(drawn.bias) < 0.02 and likeliest.bias < -0.08  # 0.4 % and 11 %
    assert drawn.cosine > 0.97 and drawn.length == pytest.approx(1.0, abs=0.04)
