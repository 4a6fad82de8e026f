"""What is minimised, against numpy; and that the way it is computed changes nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from kdexport.train import objective as module
from kdexport.train import targets as targets_module
from kdexport.train.columns import hidden_form
from kdexport.train.data import Encoded, collate
from kdexport.train.model import load_model, lookups_share_gradient, read_batch
from kdexport.train.objective import Objective, Term, batch_loss
from kdexport.train.schedule import Schedule
from kdexport.train.targets import runs
from kdexport.train.teacher import live_targets, top_k_targets
from tests.models import make_llama

ALL = slice(None)


def loss_of(student: Any, batch: Any, targets: Any, **wishes: Any) -> float:
    precision = wishes.pop("precision", "float32")
    progress = wishes.pop("progress", 0.5)
    found = batch_loss(
        student, batch, targets(batch), Objective(**wishes), progress, precision=precision
    )
    return float(found.loss.detach())


def steady(value: float) -> Schedule:
    return Schedule(value, value)


def test_padding_changes_no_loss(student: Any, examples: list[Encoded], llama: Path) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    together = loss_of(student, collate(examples[:6]), targets)
    alone = sum(loss_of(student, collate([e]), targets) for e in examples[:6])
    assert together == pytest.approx(alone, rel=1e-5)


def test_the_loss_is_the_formula(student: Any, examples: list[Encoded], llama: Path) -> None:
    """a·L_task + λ·T²·Σ w·KL, against numpy."""
    teacher = load_model(llama)
    temperature = 2.0
    batch = collate(examples[:2])
    found = loss_of(
        student,
        batch,
        live_targets(teacher, None, temperature),
        temperature=temperature,
        kd_weight=Schedule(4.0, 0.0),
        task_weight=Schedule(0.0, 1.0),
        progress=0.25,
        terms=(Term("forward_kl", steady(0.5)), Term("reverse_kl", Schedule(0.0, 2.0))),
    )

    def logprobs(model: Any, scale: float) -> np.ndarray:
        with torch.no_grad():
            logits = model(batch.ids).logits[:, :-1][batch.targets].double().numpy() / scale
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, q = logprobs(teacher, temperature), logprobs(student, temperature)
    forward, reverse = (np.exp(p) * (p - q)).sum(), (np.exp(q) * (q - p)).sum()
    task = -logprobs(student, 1.0)[np.arange(len(p)), batch.labels.numpy()].sum()
    expected = 0.25 * task + 3.0 * temperature**2 * (0.5 * forward + 0.5 * reverse)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
def test_an_example_s_weight_multiplies_its_tokens(
    student: Any, examples: list[Encoded], llama: Path, prompt_weight: float
) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    own = [dataclasses.replace(e, first_target=1) for e in examples[:3]]
    alone = [loss_of(student, collate([e]), targets, prompt_weight=prompt_weight) for e in own]
    weights = (0.25, 1.0, 3.0)
    weighted = [dataclasses.replace(e, weight=w) for e, w in zip(own, weights, strict=True)]
    found = loss_of(student, collate(weighted), targets, prompt_weight=prompt_weight)
    expected = sum(w * loss for w, loss in zip(weights, alone, strict=True))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
def test_a_token_s_weight_multiplies_it(
    student: Any, examples: list[Encoded], llama: Path, prompt_weight: float
) -> None:
    """In both losses, beside its example's weight, against numpy; padded as packed."""
    teacher = load_model(llama)
    rng = np.random.default_rng(4)
    own = [
        dataclasses.replace(
            e, first_target=1, weight=w, token_weights=rng.choice([0.0, 0.5, 3.0], len(e.ids))
        )
        for e, w in zip(examples[:3], (0.25, 1.0, 3.0), strict=True)
    ]
    own[1] = dataclasses.replace(own[1], token_weights=None)
    expected = 0.0
    for e in own:
        with torch.no_grad():
            logits = [model(torch.from_numpy(e.ids)[None]).logits for model in (teacher, student)]
        z = [one[0, :-1].double().numpy() for one in logits]
        p, q = (one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in z)
        is_completion = np.arange(1, len(e.ids)) >= e.first_completion
        kl = (np.exp(p) * (p - q)).sum(-1) * np.where(is_completion, 1.0, prompt_weight)
        nats = -q[np.arange(len(q)), e.ids[1:]] * is_completion
        own_weights = 1.0 if e.token_weights is None else e.token_weights[1:]
        expected += float((e.weight * own_weights * (nats + 2.0 * kl)).sum())
    targets = live_targets(teacher, None, 1.0)
    wishes = {"kd_weight": steady(2.0), "prompt_weight": prompt_weight}
    for row_length in (None, 40):
        found = loss_of(student, collate(own, row_length), targets, **wishes)
        assert found == pytest.approx(expected, rel=1e-5)


def gradient(student: Any, loss: torch.Tensor) -> torch.Tensor:
    student.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["whole", "top-k"])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_chunks_give_the_gradient_of_the_plain_loss(
    student: Any, examples: list[Encoded], llama: Path, kind: str, rows: int
) -> None:
    whole = live_targets(load_model(llama), None, 1.0)
    ask = whole if kind == "whole" else top_k_targets(whole, 20)
    batch = collate(examples[:6])
    chunked = batch_loss(student, batch, ask(batch), Objective(), 0.5, chunk_rows=rows)
    found = gradient(student, chunked.loss)
    logits = read_batch(student, batch).to_logits(student)
    plain = (
        F.cross_entropy(logits, batch.labels, reduction="sum")
        + module.distance("forward_kl", logits, ask(batch).rows(ALL), 1.0).sum()
    )
    torch.testing.assert_close(chunked.loss, plain, rtol=1e-5, atol=0)
    expected = gradient(student, plain)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_lookups_add_to_the_gradient_of_the_head(
    examples: list[Encoded], llama: Path, tmp_path: Path, tied: bool
) -> None:
    """Where both are one table; and a second batch's gradient to the first one's."""
    teacher = live_targets(load_model(llama), None, 1.0)
    folder = make_llama(tmp_path / "model", n_layers=2, tied=tied)

    def gradients(shared: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = load_model(folder)
        if shared:
            lookups_share_gradient(model)
            assert model.get_input_embeddings().sparse == tied
        for texts in (examples[:6], examples[6:9]):
            batch = collate(texts)
            batch_loss(model, batch, teacher(batch), Objective(), 0.5).loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    found, expected = gradients(True), gradients(False)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert not grad.is_sparse
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-5)


def test_a_tied_table_has_one_gradient_in_memory(
    examples: list[Encoded], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the table's size, all along the backward pass."""
    monkeypatch.setattr(module, "ROWS_ADDED", 100)
    model = load_model(llama)
    batch, size = collate(examples[:6]), model.get_input_embeddings().weight.shape
    targets = live_targets(load_model(llama), None, 1.0)(batch)

    class Tables(TorchDispatchMode):
        n_made = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape == size and not out.is_sparse:
                given = [x for x in args if isinstance(x, torch.Tensor)]
                self.n_made += all(out.data_ptr() != x.data_ptr() for x in given if not x.is_sparse)
            return out

    def n_made() -> int:
        model.zero_grad(set_to_none=True)
        with Tables() as tables:
            batch_loss(model, batch, targets, Objective(), 0.5).loss.backward()
        return tables.n_made

    plain = n_made()
    lookups_share_gradient(model)
    assert n_made() == 1 < plain


class Largest(TorchDispatchMode):
    """Notes the most rows of any tensor that is as wide as the vocabulary, in both passes."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.n_rows = vocab_size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, torch.Tensor) and made.shape[-1:] == (self.vocab_size,):
                self.n_rows = max(self.n_rows, made.numel() // self.vocab_size)
        return out


@pytest.mark.parametrize("kind", ["live", "top-k", "hidden"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_tensor_is_larger_than_a_chunk_of_the_vocabulary(
    name: str, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward or backward, of the student or the teacher: here a chunk has 100 rows."""
    monkeypatch.setattr(targets_module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(targets_module, "LEAST_ROWS", 100)  # more than a head has
    student, teacher = (load_model(request.getfixturevalue(name)) for _ in range(2))
    rng = np.random.default_rng(0)
    texts = [Encoded(f"e{n}", rng.integers(3, 300, size=40), 1, 5) for n in range(6)]
    batch, size = collate(texts), student.config.vocab_size
    ask = live_targets(teacher, None, 1.0)
    if kind == "top-k":
        ask = top_k_targets(ask, 16)
    elif kind == "hidden":
        form = hidden_form(teacher, None, 1.0, "float32")
        ask = compose(form.read, form.ask)
    with Largest(size) as largest:
        batch_loss(student, batch, ask(batch), Objective(hidden_weight=0.0), 0.5).loss.backward()
    assert batch.n_targets == 234
    assert largest.n_rows == 100
    with Largest(size) as largest:
        read_batch(student, batch).to_logits(student)
    assert largest.n_rows == 234  # so it would be seen


def compose(outer: Any, inner: Any) -> Any:
    return lambda given: outer(inner(given))


def test_judging_takes_no_gradient(
    student: Any, examples: list[Encoded], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the head either, although it could be trained: its gradient is as large as it is."""
    batch = collate(examples[:6])
    asked = live_targets(load_model(llama), None, 1.0)(batch)
    trained = batch_loss(student, batch, asked, Objective(), 0.5).loss
    monkeypatch.setattr(torch.autograd, "grad", None)
    with torch.no_grad():
        judged = batch_loss(student, batch, asked, Objective(), 0.5).loss
    torch.testing.assert_close(judged, trained.detach())
    with pytest.raises(TypeError):
        batch_loss(student, batch, asked, Objective(), 0.5)  # so it would be seen


def test_runs_cover_every_row_once() -> None:
    for n in (0, 1, 31, 32, 33, 1000):
        for n_at_once in (None, 1, 5, 1000):
            covered = [row for rows in runs(n, 2**17, n_at_once) for row in range(n)[rows]]
            assert covered == list(range(n))


def test_hidden_states_add_their_distance(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    batch = collate(examples[:3])
    without, once, twice = (
        loss_of(student, batch, targets, hidden_weight=w, kd_weight=steady(3.0))
        for w in (0.0, 0.5, 1.0)
    )
    mine, asked = read_batch(student, batch).hidden, targets(batch).hidden
    assert mine is not None and asked is not None
    expected = float((3.0 * ((mine - asked) ** 2).sum(-1) / (asked**2).sum(-1)).sum().detach())
    assert twice - without == pytest.approx(expected, rel=1e-3)
    assert once - without == pytest.approx(expected / 2, rel=1e-3)


def test_bfloat16_is_near_float32(student: Any, examples: list[Encoded], llama: Path) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    batch = collate(examples[:6])
    exact, rough = (
        loss_of(student, batch, targets, precision=p) / batch.n_targets
        for p in ("float32", "bfloat16")
    )
    # 2^-8 of logits that reach 10 is 0.04
    assert rough == pytest.approx(exact, abs=0.04)
    assert rough != exact


def test_prompts_weigh_what_they_are_said_to(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    """Their tokens have no task loss; their divergence counts by the weight."""
    targets = live_targets(load_model(llama), None, 1.0)
    batch = collate([dataclasses.replace(e, first_target=1) for e in examples[:3]])
    none, half, one = (loss_of(student, batch, targets, prompt_weight=w) for w in (0.0, 0.5, 1.0))
    alone = loss_of(student, collate(examples[:3]), targets)
    assert none == pytest.approx(alone, rel=1e-5)
    assert half - none == pytest.approx((one - none) / 2, rel=1e-4)
    assert one > none
