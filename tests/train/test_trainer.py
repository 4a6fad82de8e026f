import contextlib
import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import KdexportError
from kdexport.train.data import Encoded, collate
from kdexport.train.model import load_model, read_targets
from kdexport.train.schedule import Budget
from kdexport.train.student import StudentSpec, prune
from kdexport.train.teacher import live_targets
from kdexport.train.trainer import (
    Event,
    TrainSettings,
    distill,
    evaluate,
    make_optimizer,
    token_losses,
    train_step,
)


@pytest.fixture
def examples() -> list[Encoded]:
    rng = np.random.default_rng(1)
    return [
        Encoded(f"e{n}", rng.integers(3, 300, size=int(size)), 3, 3)
        for n, size in enumerate(rng.integers(8, 16, size=24))
    ]


@pytest.fixture
def student(llama: Path) -> Any:
    torch.manual_seed(0)
    return prune(load_model(llama), StudentSpec(n_layers=3), None, [torch.arange(40)[None]]).model


def test_frozen_parameters_stay(student: Any, examples: list[Encoded], llama: Path) -> None:
    student.get_input_embeddings().requires_grad_(False)
    before = student.get_input_embeddings().weight.clone()
    first = next(iter(student.base_model.layers.parameters())).clone()
    optimizer = make_optimizer(student, settings())
    targets = live_targets(load_model(llama), None, 1.0)
    train_step(student, optimizer, [collate(examples[:4])], targets, settings(), 1e-3)
    assert torch.equal(student.get_input_embeddings().weight, before)
    assert not torch.equal(next(iter(student.base_model.layers.parameters())), first)


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(
        **{"budget": Budget(max_steps=12), "lr": 1e-3, "batch_size": 4, "evaluate_steps": 4}
        | changes
    )


def train(
    student: Any, examples: list[Encoded], llama: Path, folder: Path, **options: Any
) -> list[Event]:
    targets = live_targets(load_model(llama), None, 1.0)
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if event.step == options.get("stop_at"):
            raise KeyboardInterrupt

    arguments = (student, examples[:20], examples[20:], targets, targets)
    loop = settings(**options.get("changes", {}))
    with contextlib.suppress(KeyboardInterrupt):
        distill(
            *arguments,
            loop,
            checkpoint=folder / "last",
            fingerprint="f",
            keep_best=options.get("keep_best", lambda _: None),
            report=report,
        )
    return events


def test_the_student_comes_nearer(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    kept: list[float] = []
    targets = live_targets(load_model(llama), None, 1.0)

    def keep(model: Any) -> None:
        kept.append(evaluate(model, examples[20:], targets, 4).kl)

    before = evaluate(student, examples[20:], targets, 4).kl
    events = train(
        student,
        examples,
        llama,
        tmp_path,
        keep_best=keep,
        changes={"budget": Budget(max_steps=40), "kd_weight": 10.0},
    )
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < before
    assert [event.step for event in events if event.evaluation] == list(range(4, 41, 4))
    assert events[-1].progress == 1.0


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    """Bit for bit: order of batches, moments, schedule and random state all come back."""
    always = {"checkpoint_seconds": 0.0}
    whole, broken = copy.deepcopy(student), copy.deepcopy(student)
    events = train(whole, examples, llama, tmp_path / "a", changes=always)
    # Killed while step 8 was reported: the last checkpoint is of step 7.
    first = train(broken, examples, llama, tmp_path / "b", changes=always, stop_at=8)
    again = copy.deepcopy(student)
    rest = train(again, examples, llama, tmp_path / "b", changes=always)
    assert [e.step for e in first + rest] == [*range(1, 9), *range(8, 13)]
    assert [e.loss for e in rest] == [e.loss for e in events[7:]]
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_something_else_is_passed_over(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    from kdexport.train.checkpoint import load_checkpoint

    train(student, examples, llama, tmp_path, changes={"budget": Budget(max_steps=2)})
    optimizer = make_optimizer(student, settings())
    assert load_checkpoint(tmp_path / "last", student, optimizer, "another") is None
    assert load_checkpoint(tmp_path / "last", student, optimizer, "f") is not None


def test_a_damaged_checkpoint_is_one_line(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    from kdexport.errors import InputError
    from kdexport.train.checkpoint import load_checkpoint

    train(student, examples, llama, tmp_path, changes={"budget": Budget(max_steps=2)})
    weights = tmp_path / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(tmp_path / "last", student, make_optimizer(student, settings()), "f")


def test_a_run_that_diverges_ends_in_one_line(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    kept: list[Any] = []
    with pytest.raises(KdexportError, match=r"diverged.*lower train\.lr"):
        train(student, examples, llama, tmp_path, keep_best=kept.append, changes={"lr": 1e30})
    assert not kept


def test_how_a_group_is_cut_into_batches_changes_nothing(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    results = []
    for cut in ([8], [4, 4], [1, 3, 4]):
        model = copy.deepcopy(student)
        ends = list(itertools.accumulate(cut))
        group = [collate(examples[end - size : end]) for end, size in zip(ends, cut, strict=True)]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loss = train_step(model, optimizer, group, targets, settings(), 1.0)
        results.append((loss, torch.cat([p.detach().flatten() for p in model.parameters()])))
    for loss, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        torch.testing.assert_close(weights, results[0][1], rtol=1e-4, atol=1e-6)


def test_padding_changes_no_loss(student: Any, examples: list[Encoded], llama: Path) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    together = token_losses(student, collate(examples[:6]), targets, settings())
    alone = [token_losses(student, collate([e]), targets, settings()) for e in examples[:6]]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_formula(student: Any, examples: list[Encoded], llama: Path) -> None:
    """L_task + λ·T²·KL(teacher ‖ student), against numpy."""
    teacher = load_model(llama)
    temperature, weight = 2.0, 3.0
    batch = collate(examples[:2])
    loss = token_losses(
        student,
        batch,
        live_targets(teacher, None, temperature),
        settings(temperature=temperature, kd_weight=weight),
    )

    def logprobs(model: Any, scale: float) -> np.ndarray:
        with torch.no_grad():
            logits = model(batch.ids).logits[:, :-1][batch.targets].double().numpy() / scale
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, q = logprobs(teacher, temperature), logprobs(student, temperature)
    kl = (np.exp(p) * (p - q)).sum(-1)
    task = -logprobs(student, 1.0)[np.arange(len(p)), batch.labels.numpy()]
    expected = task + weight * temperature**2 * kl
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_hidden_states_add_their_distance(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    batch = collate(examples[:3])
    without, once, twice = (
        token_losses(student, batch, targets, settings(hidden_weight=w, kd_weight=3.0))
        for w in (0.0, 0.5, 1.0)
    )
    mine, asked = read_targets(student, batch.ids, batch.targets).hidden, targets(batch).hidden
    assert mine is not None and asked is not None
    expected = 3.0 * ((mine - asked) ** 2).sum(-1) / (asked**2).sum(-1)
    torch.testing.assert_close(twice - without, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(once - without, expected / 2, rtol=1e-3, atol=1e-3)


def test_bfloat16_is_near_float32(student: Any, examples: list[Encoded], llama: Path) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    batch = collate(examples[:6])
    exact, rough = (
        token_losses(student, batch, targets, settings(precision=p)).mean()
        for p in ("float32", "bfloat16")
    )
    # 2^-8 of logits that reach 10 is 0.04
    assert rough.item() == pytest.approx(exact.item(), abs=0.04)
    assert rough.item() != exact.item()


def test_prompts_weigh_what_they_are_said_to(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    """Their tokens have no task loss; their divergence counts by the weight."""
    targets = live_targets(load_model(llama), None, 1.0)
    batch = collate([dataclasses.replace(e, first_target=1) for e in examples[:3]])
    none, half, one = (
        token_losses(student, batch, targets, settings(prompt_weight=w)) for w in (0.0, 0.5, 1.0)
    )
    prompts = ~batch.is_completion
    assert prompts.sum() == 3 * 2
    assert (none[prompts] == 0).all()
    torch.testing.assert_close(half[prompts], one[prompts] / 2)
    assert torch.equal(none[~prompts], one[~prompts])
    alone = token_losses(student, collate(examples[:3]), targets, settings())
    torch.testing.assert_close(one[~prompts], alone, rtol=1e-4, atol=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    one, eight = (evaluate(student, examples, targets, size) for size in (1, 8))
    assert one.kl == pytest.approx(eight.kl, rel=1e-5)
    assert one.perplexity == pytest.approx(eight.perplexity, rel=1e-5)
    assert one.top1 == eight.top1


def test_a_teacher_is_at_no_distance_from_itself(llama: Path, examples: list[Encoded]) -> None:
    teacher = load_model(llama)
    itself = evaluate(teacher, examples, live_targets(teacher, None, 1.0), 4)
    assert itself.kl == pytest.approx(0.0, abs=1e-5)
    assert itself.top1 == 1.0
