"""A student's own samples: what they are, and that runs with them are as exact as others."""

import contextlib
import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.evaluate import evaluate
from kdexport.train.feed import Epochs
from kdexport.train.memory import Memory
from kdexport.train.model import load_model, read_batch
from kdexport.train.objective import Objective, Term, batch_loss
from kdexport.train.on_policy import OnPolicy, by_origin, end_ids_of, sample
from kdexport.train.schedule import Budget, Schedule
from kdexport.train.step import Stepper
from kdexport.train.teacher import live_targets
from kdexport.train.trainer import Hooks, Material, TrainSettings, distill
from kdexport.train.world import World
from tests.train.shortage import reads_at_most

NEVER = frozenset({10**6})


def policy(fraction: float, **wishes: Any) -> OnPolicy:
    usual = {
        "temperature": 1.0,
        "max_new_tokens": 6,
        "max_length": 32,
        "end_ids": frozenset({2}),
        "seed": 0,
    }
    return OnPolicy(Schedule(fraction, fraction), **(usual | wishes))


def drawn(model: Any, prompts: list[np.ndarray], seed: int = 0, **wishes: Any) -> list[list[int]]:
    rooms = wishes.pop("rooms", [6] * len(prompts))
    ends, temperature = wishes.pop("ends", NEVER), wishes.pop("temperature", 1.0)
    draws = np.random.default_rng(seed).random((len(prompts), max(rooms)))
    found = sample(model, prompts, rooms, temperature, ends, draws)
    return [text.tolist() for text in found]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_cold_samples_are_the_likeliest_tokens_whatever_the_batch(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Against whole readings without a cache; prompts of different lengths, samples too."""
    model = load_model(request.getfixturevalue(name))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 300, size=n) for n in (3, 9, 1, 5)]
    rooms = [6, 2, 5, 1]
    found = drawn(model, prompts, rooms=rooms, temperature=1e-4)
    for prompt, room, text in zip(prompts, rooms, found, strict=True):
        ids = torch.from_numpy(prompt)[None]
        for _ in range(room):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=-1)
        assert ids[0, len(prompt) :].tolist() == text


def test_draws_follow_the_student_s_distribution(llama: Path) -> None:
    model = load_model(llama)
    prompt = np.asarray([5, 9, 40])
    n = 4000
    found = drawn(model, [prompt] * n, rooms=[1] * n, temperature=2.0)
    with torch.no_grad():
        p = torch.softmax(model(torch.from_numpy(prompt)[None]).logits[0, -1] / 2.0, -1).numpy()
    counts = np.bincount([text[0] for text in found], minlength=len(p)) / n
    # Half of the L1 distance of n draws from V cells is about sqrt(V / (2 π n)) = 0.11 at most.
    assert np.abs(counts - p).sum() / 2 < 0.12
    assert np.abs(np.full(len(p), 1 / len(p)) - p).sum() / 2 > 0.2  # it would see another one


def test_samples_stop_at_the_end_of_a_text(llama: Path) -> None:
    model = load_model(llama)
    prompts = [np.asarray([5, 9, 40]), np.asarray([7])] * 8
    free = drawn(model, prompts, rooms=[12] * 16)
    ends = frozenset(text[2] for text in free)
    for text in drawn(model, prompts, rooms=[12] * 16, ends=ends):
        assert 1 <= len(text) <= 12
        assert not ends & {*text[:-1]}
        assert text[-1] in ends or len(text) == 12


def test_a_share_of_batches_is_written_anew(student: Any, examples: list[Encoded]) -> None:
    group = [collate(examples[:4])]
    own = [policy(0.25).renewed(student, group, step, 0.5)[0].is_own for step in range(60)]
    assert 5 <= sum(own) <= 27  # 15 expected, deviation 3.4
    (batch,) = policy(1.0).renewed(student, group, 0, 0.5)
    for before, after in zip(group[0].examples, batch.examples, strict=True):
        assert after.is_own and not before.is_own
        assert after.ids[:3].tolist() == before.ids[:3].tolist()
        assert (after.example_id, after.first_target) == (before.example_id, before.first_target)
        assert 1 <= after.n_completion <= 6
    assert student.training is False


def test_a_schedule_is_followed(student: Any, examples: list[Encoded]) -> None:
    late = OnPolicy(Schedule(0.0, 1.0), 1.0, 4, 32, NEVER, 0)
    group = [collate(examples[:2])]
    assert not late.renewed(student, group, 3, 0.0)[0].is_own
    assert late.renewed(student, group, 3, 1.0)[0].is_own


def test_samples_fit_the_longest_length(student: Any, examples: list[Encoded]) -> None:
    own = policy(1.0, max_length=5, end_ids=NEVER)
    (batch,) = own.renewed(student, [collate(examples[:4])], 0, 0.5)
    assert {len(example.ids) for example in batch.examples} == {5}


@pytest.mark.parametrize("size", [2, 3])
def test_processes_write_what_one_would(student: Any, examples: list[Encoded], size: int) -> None:
    """Batches of 5 and of 1: some processes have less of a batch, or nothing."""
    group = [collate(examples[:5]), collate(examples[5:6]), collate(examples[6:11])]
    was_own = set()
    for step in range(4):
        one = written(student, group, World(), step)
        parts = [written(student, group, World(rank, size), step) for rank in range(size)]
        assert {name: text for part in parts for name, text in part.items()} == one
        was_own |= {is_own for is_own, _ in one.values()}
    assert was_own == {True, False}


def written(
    student: Any, group: list[Batch], world: World, step: int = 0
) -> dict[str, tuple[bool, list[int]]]:
    found = policy(0.5, end_ids=NEVER).renewed(student, group, step, 0.5, world)
    return {e.example_id: (e.is_own, e.ids.tolist()) for batch in found for e in batch.examples}


def test_own_samples_have_no_cross_entropy(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    teacher = load_model(llama)
    targets = live_targets(teacher, None, 1.0)
    (batch,) = policy(1.0).renewed(student, [collate(examples[:4])], 0, 0.5)
    found = batch_loss(student, batch, targets(batch), Objective(), 0.5)
    assert found.task == 0 and found.divergence > 0
    assert float(found.loss.detach()) == pytest.approx(found.divergence, rel=1e-6)
    half, other = batch.of(batch.examples[:2]), batch.of(batch.examples[2:])
    parts = [batch_loss(student, b, targets(b), Objective(), 0.5) for b in (half, other)]
    assert sum(float(p.loss.detach()) for p in parts) == pytest.approx(found.divergence, rel=1e-5)


def test_where_memory_ends_samples_are_written_by_fewer_at_once(
    student: Any,
    examples: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each with its own draws: the texts are the same; and the student goes on training."""
    group, own = [collate(examples[:8]), collate(examples[8:14], 40)], policy(1.0)
    student.train()
    expected = own.renewed(student, group, 3, 0.5)
    given, memory = reads_at_most(3, student, monkeypatch), Memory()
    found = own.renewed(student, group, 3, 0.5, memory=memory)
    assert [batch.row_length for batch in found] == [None, 40]
    for one, other in zip(found, expected, strict=True):
        assert [e.ids.tolist() for e in one.examples] == [e.ids.tolist() for e in other.examples]
    assert student.training and memory.at_most == 2
    assert [n for n in given if n > 3] == [8, 4]  # and the second batch was not tried whole
    assert capsys.readouterr().err.count("out of memory") == 2


def test_weights_of_a_text_s_tokens_are_not_its_sample_s(
    student: Any, examples: list[Encoded]
) -> None:
    weighted = [
        dataclasses.replace(e, weight=2.0, token_weights=np.zeros(len(e.ids), np.float32))
        for e in examples[:4]
    ]
    (batch,) = policy(1.0).renewed(student, [collate(weighted)], 0, 0.5)
    assert batch.weights.tolist() == [2.0] * batch.n_targets


def test_the_teacher_is_asked_of_own_samples_where_a_cache_has_none(
    student: Any, examples: list[Encoded]
) -> None:
    asked: list[str] = []

    def source(name: str) -> Any:
        return lambda batch: asked.append(name)

    ask = by_origin(source("cache"), source("live"))
    given = collate(examples[:4])
    ask(given)
    ask(policy(1.0).renewed(student, [given], 0, 0.5)[0])
    assert asked == ["cache", "live"]


def run(
    student: Any, examples: list[Encoded], llama: Path, folder: Path, own: OnPolicy | None,
    *, stop_at: int = 0, max_steps: int = 8, **objective: Any
) -> list[float]:  # fmt: skip
    """The loss of each step, until it is killed while one is reported."""
    ask = live_targets(load_model(llama), None, 1.0)
    losses: list[float] = []

    def targets(batch: Batch) -> Any:
        assert own is None or own.fraction.at(0) < 1 or batch.is_own
        return ask(batch)

    def report(event: Any) -> None:
        losses.append(event.loss)
        if event.step == stop_at:
            raise KeyboardInterrupt

    settings = TrainSettings(
        Budget(max_steps=max_steps),
        Objective(**objective),
        lr=2e-3,
        batch_size=4,
        evaluate_steps=100,
        checkpoint_seconds=0.0,
    )
    material = Material(Epochs(examples[:20], 4, 0), targets, examples[20:], ask, own)
    with contextlib.suppress(KeyboardInterrupt):
        distill(
            student,
            material,
            settings,
            Hooks(report=report),
            checkpoints=folder,
            fingerprint="f",
        )
    return losses


def test_samples_of_packed_texts_are_packed_and_read_alone(
    student: Any, examples: list[Encoded]
) -> None:
    batch = collate(examples[:8], 40)
    (own,) = policy(1.0, max_length=40).renewed(student, [batch], 0, 0.0)
    assert own.is_own and own.row_length == 40 and own.ids.shape[1] <= 40
    assert [e.example_id for e in own.examples] == [e.example_id for e in batch.examples]
    alone = collate(own.examples)
    with torch.no_grad():
        packed, padded = (read_batch(student, b).to_logits(student) for b in (own, alone))
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)


def test_a_fraction_of_0_is_off_policy_to_the_bit(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    one, other = copy.deepcopy(student), copy.deepcopy(student)
    without = run(one, examples, llama, tmp_path / "a", None)
    assert run(other, examples, llama, tmp_path / "b", policy(0.0)) == without
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_run_with_own_samples_goes_on_to_the_bit(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    whole, broken, again = (copy.deepcopy(student) for _ in range(3))
    losses = run(whole, examples, llama, tmp_path / "a", policy(0.5))
    first = run(broken, examples, llama, tmp_path / "b", policy(0.5), stop_at=5)
    rest = run(again, examples, llama, tmp_path / "b", policy(0.5))
    assert first[:4] + rest == losses  # the last checkpoint is of step 4
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_own_samples_alone_bring_a_student_nearer(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    """The divergence on samples of its own, which it was made to lower; measured on fresh ones."""
    targets = live_targets(load_model(llama), None, 1.0)

    def apart(model: Any) -> float:
        (batch,) = policy(1.0, seed=99, end_ids=NEVER).renewed(
            model, [collate(examples[:20])], 0, 0.5
        )
        found = evaluate(model, list(batch.examples), targets, 8)
        assert found is not None and found.kl is not None
        return found.kl

    before = apart(student)
    run(
        student, examples, llama, tmp_path, policy(1.0), max_steps=40,
        terms=(Term("reverse_kl"),)
    )  # fmt: skip
    assert apart(student) < 0.9 * before


def test_a_student_without_finite_numbers_draws_and_its_step_is_skipped(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    with torch.no_grad():
        student.base_model.norm.weight[0] = float("nan")
    (batch,) = policy(1.0).renewed(student, [collate(examples[:4])], 0, 0.5)
    stepper = Stepper(student, torch.optim.SGD(student.parameters(), lr=1.0), Objective())
    assert stepper.step([batch], live_targets(load_model(llama), None, 1.0), 1.0, 0.5).skipped


def test_a_text_ends_where_tokenizer_or_model_say(student: Any) -> None:
    student.generation_config.eos_token_id = [2, 7]
    assert end_ids_of(student, 5) == {2, 5, 7}
    student.generation_config.eos_token_id = None
    assert end_ids_of(student, None) == frozenset()
