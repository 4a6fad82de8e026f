"""One update does not depend on how its examples are cut into batches."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import KdexportError
from kdexport.train import step as module
from kdexport.train.data import Encoded, collate
from kdexport.train.model import load_model
from kdexport.train.objective import Objective
from kdexport.train.step import Stepper
from kdexport.train.teacher import live_targets


@pytest.fixture
def examples() -> list[Encoded]:
    rng = np.random.default_rng(1)
    sizes = rng.integers(8, 16, size=8)
    return [Encoded(f"e{n}", rng.integers(3, 300, size=int(s)), 3, 3) for n, s in enumerate(sizes)]


def step(model: Any, examples: list[Encoded], cut: list[int], **wishes: Any) -> tuple[float, Any]:
    ends = list(itertools.accumulate(cut))
    group = [collate(examples[end - size : end]) for end, size in zip(ends, cut, strict=True)]
    targets = wishes.pop("targets", live_targets(copy.deepcopy(model), None, 1.0))
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=1.0), Objective(), **wishes)
    done = stepper.step(group, targets, 1.0, 0.5)
    return done.loss, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("cut", [[4, 4], [1, 3, 4], [1] * 8])
def test_how_a_group_is_cut_into_batches_changes_nothing(
    llama: Path, examples: list[Encoded], cut: list[int]
) -> None:
    loss, weights = step(load_model(llama), examples, [8])
    other, others = step(load_model(llama), examples, cut)
    assert other == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(others, weights, rtol=1e-4, atol=1e-6)


def test_what_a_frugal_step_gives_back_changes_nothing(
    llama: Path, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(module, "give_back", lambda: given_back.append(True))
    loss, weights = step(load_model(llama), examples, [4, 4])
    assert not given_back
    other, others = step(load_model(llama), examples, [4, 4], is_frugal=True)
    assert len(given_back) == 3  # before each backward pass, and after the update
    assert other == loss
    assert torch.equal(others, weights)


def test_a_step_without_finite_numbers_leaves_the_weights(
    llama: Path, examples: list[Encoded]
) -> None:
    model = load_model(llama)
    before = copy.deepcopy(model.state_dict())
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=1.0), Objective())
    with torch.no_grad():
        model.lm_head.weight[5, 3] = float("inf")
        before = copy.deepcopy(model.state_dict())
    done = stepper.step([collate(examples)], live_targets(load_model(llama), None, 1.0), 1.0, 0.5)
    assert done.skipped
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_where_memory_ends_the_step_is_made_in_smaller_batches(
    llama: Path, examples: list[Encoded], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = load_model(llama)
    live = live_targets(teacher, None, 1.0)

    def small(batch: Any) -> Any:
        if len(batch.examples) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return live(batch)

    loss, weights = step(load_model(llama), examples, [8], targets=live)
    other, others = step(load_model(llama), examples, [8], targets=small)
    assert other == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(others, weights, rtol=1e-4, atol=1e-6)
    assert "batches of 2 from here on" in capsys.readouterr().err


def test_where_one_example_is_too_much_it_says_so(llama: Path, examples: list[Encoded]) -> None:
    def never(_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(KdexportError, match=r"not memory enough.*max_length"):
        step(load_model(llama), examples, [8], targets=never)
