"""Texts that share a row are read as if each were alone: logits, loss and gradient."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdexport.errors import InputError
from kdexport.train import targets as targets_module
from kdexport.train.cache import TargetCache, fill_cache
from kdexport.train.columns import Form, hidden_form, top_k_form
from kdexport.train.data import Encoded, collate, token_batches
from kdexport.train.memory import Memory
from kdexport.train.model import check_packing, load_model, read_batch, recompute_activations
from kdexport.train.objective import Objective, batch_loss
from kdexport.train.packing import best_fit, next_fit
from kdexport.train.schedule import Schedule
from kdexport.train.step import Stepper
from kdexport.train.teacher import TargetFn, live_targets
from kdexport.train.world import ALONE, World
from tests.models import make_family

ROW = 48


@st.composite
def lengths_in_rows(draw: st.DrawFn) -> tuple[list[int], int]:
    row_length = draw(st.integers(1, 60))
    return draw(st.lists(st.integers(1, row_length), max_size=60)), row_length


@given(lengths_in_rows())
def test_texts_fill_rows_that_can_be_found_again(drawn: tuple[list[int], int]) -> None:
    lengths, row_length = drawn
    rows = best_fit(lengths, row_length)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    filled = [sum(lengths[number] for number in row) for row in rows]
    assert all(total <= row_length for total in filled)
    # Two rows that are half empty would have been one.
    assert sum(2 * total <= row_length for total in filled) <= 1
    if lengths:
        in_order = [number for row in rows for number in row]
        again = next_fit([lengths[number] for number in in_order], row_length)
        assert [in_order[row] for row in again] == rows


def example(name: str, n: int, first: int = 1, completion: int = 1, weight: float = 1.0) -> Encoded:
    return Encoded(name, np.arange(1, n + 1, dtype=np.int64), first, completion, weight)


def test_a_packed_row_is_laid_out_one_text_after_another() -> None:
    texts = [example("a", 4, 2, 3, 2.0), example("b", 3), example("c", 5, 1, 2)]
    batch = collate(texts, 8)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 1, 2, 3], [1, 2, 3, 4, 5, 0, 0]]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 0, 1]]
    # The last token of one text does not predict the first of the next.
    assert batch.targets.int().tolist() == [[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 0]]
    alone = collate(texts)
    for name in ("labels", "is_completion", "weights"):
        assert getattr(batch, name).tolist() == getattr(alone, name).tolist()
    assert batch.n_completion == alone.n_completion
    first, second = batch.of(batch.examples[:1]), batch.of(batch.examples[1:])
    assert first.row_length == second.row_length == 8
    assert (first.examples, second.examples) == (tuple(texts[:1]), tuple(texts[1:]))


@given(
    st.lists(st.integers(2, 20), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(0, 5),
    st.data(),
)
def test_an_epoch_has_every_example_once_and_can_begin_anywhere(
    lengths: list[int], batch_size: int, epoch: int, data: st.DataObject
) -> None:
    texts = [example(str(n), length) for n, length in enumerate(lengths)]

    def names(start: int) -> list[list[str]]:
        batches = token_batches(texts, batch_size, seed=3, epoch=epoch, start=start, row_length=20)
        found = []
        for batch in batches:
            assert len(batch.ids) <= batch_size and batch.ids.shape[1] <= 20
            found.append([e.example_id for e in batch.examples])
        return found

    whole = names(0)
    assert sorted(name for batch in whole for name in batch) == sorted(map(str, range(len(texts))))
    start = data.draw(st.integers(0, len(whole)))
    assert names(start) == whole[start:]


@pytest.fixture
def texts() -> list[Encoded]:
    rng = np.random.default_rng(2)
    sizes = rng.integers(4, ROW // 2, size=9)
    return [
        Encoded(f"e{n}", rng.integers(3, 300, size=int(s)), 1, int(s) // 2, 1.0 + n % 2)
        for n, s in enumerate(sizes)
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "family", ["gpt2", "smollm2", "mistral", "qwen2-windows", "gemma3", "phi3"]
)
def test_logits_are_those_of_a_text_alone(
    tmp_path: Path, family: str, attention: str, texts: list[Encoded]
) -> None:
    """Windows of 16 tokens are shorter than a row, so that their masks are seen, too."""
    model = load_model(make_family(tmp_path / family, family), attention=attention)
    check_packing(model)
    with torch.no_grad():
        packed = read_batch(model, collate(texts, ROW)).to_logits(model)
        alone = torch.cat([read_batch(model, collate([t])).to_logits(model) for t in texts])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def live(teacher: Any, texts: list[Encoded], folder: Path) -> TargetFn:
    return live_targets(teacher, None, 1.0)


def kept(form: Form, texts: list[Encoded], folder: Path) -> TargetFn:
    fill_cache(folder, texts, form.ask, batch_size=4)
    return form.targets(TargetCache(folder))


def top_k(teacher: Any, texts: list[Encoded], folder: Path) -> TargetFn:
    return kept(top_k_form(live_targets(teacher, None, 1.0), 320, 16), texts, folder)


def drawn(teacher: Any, texts: list[Encoded], folder: Path) -> TargetFn:
    return kept(top_k_form(live_targets(teacher, None, 1.0), 320, 16, 8), texts, folder)


def hidden(teacher: Any, texts: list[Encoded], folder: Path) -> TargetFn:
    return kept(hidden_form(teacher, None, 1.0, "float32"), texts, folder)


def loss_and_gradient(
    student: Any, batches: list[Any], targets: TargetFn, objective: Objective
) -> tuple[float, torch.Tensor]:
    student.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = batch_loss(student, batch, targets(batch), objective, 0.5).loss
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in student.parameters()])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", [live, top_k, drawn, hidden])
def test_loss_and_gradient_are_those_of_the_texts_alone(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    texts: list[Encoded],
    family: str,
    kind: Callable[..., TargetFn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every kind of targets, through several chunks of the head."""
    monkeypatch.setattr(targets_module, "CHUNK_ELEMENTS", 1)  # 32 rows at a time
    teacher = load_model(request.getfixturevalue(family), attention="eager")
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    targets = kind(teacher, texts, tmp_path / "cache")
    hidden_weight = 0.3 if kind in (live, hidden) else 0.0
    objective = Objective(
        kd_weight=Schedule(2.0, 2.0), prompt_weight=0.5, hidden_weight=hidden_weight
    )
    loss, gradient = loss_and_gradient(student, [collate([t]) for t in texts], targets, objective)
    batch = collate(texts, ROW)
    assert len(batch.ids) < len(texts) // 2 + 1
    packed, of_packed = loss_and_gradient(student, [batch], targets, objective)
    assert packed == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(
        of_packed, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max())
    )


def test_where_memory_ends_a_packed_step_is_the_same(llama: Path, texts: list[Encoded]) -> None:
    found = []
    for most in (None, 2):
        model = load_model(llama)
        stepper = Stepper(
            model, torch.optim.SGD(model.parameters(), lr=1.0), Objective(), memory=Memory(most)
        )
        targets = live_targets(load_model(llama), None, 2.0)
        found.append(stepper.step([collate(texts, ROW)], targets, 1.0, 0.5))
    assert found[1].loss == pytest.approx(found[0].loss, rel=1e-5)
    assert found[1].norm == pytest.approx(found[0].norm, rel=1e-4)


def stepped(llama: Path, group: list[Any], world: World = ALONE) -> tuple[float, Any]:
    """The loss of a step, and the weights after it: plain descent, so that its size is seen."""
    student = load_model(llama)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten() for p in student.parameters()])
    stepper = Stepper(student, optimizer, Objective(), clip_norm=float("inf"), world=world)
    done = stepper.step(group, live_targets(load_model(llama), None, 1.0), 1.0, 0.5)
    return done.loss, torch.cat([p.detach().flatten() for p in student.parameters()]) - before


def test_a_step_has_one_size_however_its_texts_are_cut(llama: Path, texts: list[Encoded]) -> None:
    """Padded, in other company, one after the other, packed, and packed in parts."""
    loss, moved = stepped(llama, [collate(texts)])
    ways = [
        [collate(texts[1::2]), collate(texts[::2])],
        [collate([text]) for text in texts],
        [collate(texts, ROW)],
        [collate(texts[5:], ROW), collate(texts[:5], ROW)],
        [collate(texts[:4], ROW), collate(texts[4:])],
    ]
    for group in ways:
        found, by = stepped(llama, group)
        assert found == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(by, moved, rtol=1e-4, atol=1e-5 * float(moved.abs().max()))


def test_processes_share_a_packed_batch_by_its_texts(texts: list[Encoded]) -> None:
    batch = collate(texts, ROW)
    shares = [batch.share(World(rank, 2)) for rank in range(2)]
    found = []
    for share in shares:
        assert share is not None and share.row_length == ROW and share.ids.shape[1] <= ROW
        found += share.examples
    assert sorted(e.example_id for e in found) == [e.example_id for e in texts]
    assert sum(share.n_completion for share in shares if share) == batch.n_completion


def test_layers_that_are_computed_again_keep_texts_apart(llama: Path, texts: list[Encoded]) -> None:
    gradients = []
    for again in (False, True):
        model = load_model(llama)
        if again:
            recompute_activations(model)
        model.train()
        targets = live_targets(load_model(llama), None, 1.0)
        batch = collate(texts, ROW)
        gradients.append(loss_and_gradient(model, [batch], targets, Objective())[1])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_model_that_looks_across_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(llama)
    forward = model.base_model.forward

    def blind(position_ids: Any = None, **inputs: Any) -> Any:
        return forward(**inputs)

    monkeypatch.setattr(model.base_model, "forward", blind)
    with pytest.raises(InputError, match="does not keep packed texts apart") as caught:
        check_packing(model)
    assert caught.value.where == "train.packing"
