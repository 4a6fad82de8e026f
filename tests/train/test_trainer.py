import copy
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdexport.errors import KdexportError
from kdexport.pipeline.rounding import kernel_of
from kdexport.system.interrupts import Interrupted
from kdexport.train.checkpoint import list_checkpoints
from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.evaluate import Evaluation, evaluate
from kdexport.train.feed import Epochs
from kdexport.train.fresh import from_scratch
from kdexport.train.inside import InnerTerm, Inside
from kdexport.train.memory import Memory
from kdexport.train.model import load_model
from kdexport.train.objective import Objective
from kdexport.train.rounding import Rounding
from kdexport.train.schedule import Budget, Schedule
from kdexport.train.sizes import StudentSpec
from kdexport.train.step import Stepper
from kdexport.train.teacher import TargetFn, live_targets
from kdexport.train.trainer import (
    DivergedError,
    Event,
    Hooks,
    Material,
    Position,
    TrainSettings,
    distill,
    make_optimizer,
)
from tests.train.shortage import for_at_most, reads_at_most


def test_frozen_parameters_stay(student: Any, examples: list[Encoded], llama: Path) -> None:
    student.get_input_embeddings().requires_grad_(False)
    before = student.get_input_embeddings().weight.clone()
    first = next(iter(student.base_model.layers.parameters())).clone()
    optimizer = make_optimizer(student, settings())
    targets = live_targets(load_model(llama), None, 1.0)
    Stepper(student, optimizer, Objective()).step([collate(examples[:4])], targets, 1e-3, 0.5)
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
    teacher = load_model(llama)
    targets = held_out = live_targets(teacher, None, 1.0)
    if "inside" in options:
        targets = options["inside"].of_teacher(targets, teacher)
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if event.step == options.get("stop_at"):
            raise KeyboardInterrupt

    def evaluated(at: Position, _: Evaluation) -> None:
        options.get("evaluations", []).append(at.step)

    loop = settings(**options.get("changes", {}))
    hooks = Hooks(
        options.get("keep_best", lambda _: None),
        report,
        evaluated,
        interrupted=lambda: bool(events) and events[-1].step == options.get("ask_at"),
        rounding=options.get("rounding"),
    )
    try:
        distill(
            student,
            Material(Epochs(examples[:20], loop.batch_size, 0), targets, examples[20:], held_out),
            loop,
            hooks,
            checkpoints=folder,
            fingerprint="f",
        )
    except KeyboardInterrupt as error:
        options.get("stopped", []).append(error)
    return events


def score(model: Any, held_out: list[Encoded], targets: Any) -> float:
    found = evaluate(model, held_out, targets, 4)
    assert found is not None and found.kl is not None
    return found.kl


def test_the_student_comes_nearer(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    kept: list[float] = []
    evaluations: list[int] = []
    targets = live_targets(load_model(llama), None, 1.0)

    def keep(model: Any) -> None:
        kept.append(score(model, examples[20:], targets))

    before = score(student, examples[20:], targets)
    events = train(
        student,
        examples,
        llama,
        tmp_path,
        keep_best=keep,
        evaluations=evaluations,
        changes={
            "budget": Budget(max_steps=40),
            "objective": Objective(kd_weight=Schedule(10.0, 10.0)),
        },
    )
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < before
    assert evaluations == list(range(4, 41, 4))
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


def rounding_of(student: Any, examples: list[Encoded]) -> Rounding:
    return Rounding(student, kernel_of("block4"), kernel_of("wide8"), examples[:6])


@pytest.mark.parametrize("stop_at", [6, 7, 9])  # before its last checkpoint, its first step, later
def test_a_run_goes_on_within_its_rounded_part(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path, stop_at: int
) -> None:
    """Bit for bit, with factors, their moments, and whole numbers that are made once."""
    always = {"checkpoint_seconds": 0.0, "rounded_from": 0.5, "rounded_lr": 1e-2}
    whole, broken = copy.deepcopy(student), copy.deepcopy(student)
    rounding, first = rounding_of(whole, examples), rounding_of(broken, examples)
    judged: list[int] = []
    events = train(
        whole,
        examples,
        llama,
        tmp_path / "a",
        changes=always,
        rounding=rounding,
        evaluations=judged,
    )
    assert judged == [4, 6, 8, 12]  # 6: what rounding left
    # A schedule each: the second begins anew, and both end at a fiftieth of their peaks.
    rates = [event.lr for event in events]
    assert max(rates[:6]) == pytest.approx(1e-3, rel=0.1) and rates[5] < 2e-4
    assert max(rates[6:]) == pytest.approx(1e-2, rel=0.1) and rates[11] < 2e-3
    train(broken, examples, llama, tmp_path / "b", changes=always, rounding=first, stop_at=stop_at)
    resumed = copy.deepcopy(student)
    again = rounding_of(resumed, examples)
    train(resumed, examples, llama, tmp_path / "b", changes=always, rounding=again)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(rounding.factors, again.factors, strict=True):
        assert torch.equal(one, other) and one.abs().max() > 0


def test_a_wish_to_stop_is_heard_while_weights_are_rounded(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    rounding = rounding_of(student, examples)
    hooks = Hooks(interrupted=lambda: True, rounding=rounding)
    targets = live_targets(load_model(llama), None, 1.0)
    material = Material(Epochs(examples[:20], 4, 0), targets, examples[20:], targets)
    loop = settings(rounded_from=0.0)
    with pytest.raises(Interrupted):
        distill(student, material, loop, hooks, checkpoints=tmp_path, fingerprint="f")
    state = json.loads((list_checkpoints(tmp_path)[0] / "state.json").read_text())
    assert not state["position"]["is_rounded"]  # and the weights are the exact ones
    kept = load_file(list_checkpoints(tmp_path)[0] / "model.safetensors")
    assert all(torch.equal(kept[f"learner.{name}"], value) for name, value in before.items())


def test_projections_are_trained_and_come_back_with_a_run(
    examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    """Of a narrower student: bit for bit, and the student that is kept has none of them."""
    torch.manual_seed(0)
    spec = StudentSpec(n_layers=2, hidden_size=32, n_heads=2)
    teacher = load_model(llama)
    student = from_scratch(teacher, spec, None)
    names = {name for name, _ in student.named_parameters()}

    def run(folder: Path, stop_at: int | None = None) -> tuple[list[Event], Any, Inside]:
        mine = copy.deepcopy(student)
        inside = Inside([InnerTerm("hidden")], mine, teacher)
        changes = {
            "checkpoint_seconds": 0.0,
            "budget": Budget(max_steps=6),
            "objective": Objective(inside=inside),
        }
        events = train(
            mine, examples, llama, folder, changes=changes, stop_at=stop_at, inside=inside
        )
        return events, mine, inside

    events, whole, inside = run(tmp_path / "a")
    before = Inside([InnerTerm("hidden")], student, teacher)
    for one, other in zip(before.parameters(), inside.parameters(), strict=True):
        assert not torch.equal(one, other)
    first, _, _ = run(tmp_path / "b", stop_at=4)
    rest, again, others = run(tmp_path / "b")
    assert [e.loss for e in first[:3] + rest] == [e.loss for e in events]
    for kind in ((whole, again), (inside, others)):
        for one, other in zip(*(of.parameters() for of in kind), strict=True):
            assert torch.equal(one, other)
    assert {name for name, _ in whole.named_parameters()} == names


@pytest.mark.parametrize("stop_at", [6, 8])
def test_what_is_asked_to_stop_saves_at_once(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path, stop_at: int
) -> None:
    """At step 8 within its evaluation, which is made up for; the end is an unbroken run's."""
    whole, again = copy.deepcopy(student), copy.deepcopy(student)
    evaluations: list[int] = []
    train(whole, examples, llama, tmp_path / "a")
    options = {"evaluations": evaluations, "stopped": []}
    train(student, examples, llama, tmp_path / "b", ask_at=stop_at, **options)
    assert [str(error) for error in options["stopped"]] == [f"at step {stop_at}"]
    assert [place.name for place in list_checkpoints(tmp_path / "b")] == [f"step-{stop_at:06d}"]
    assert evaluations == [4]
    train(again, examples, llama, tmp_path / "b", evaluations=evaluations)
    assert evaluations == [4, 8, 12]
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_that_diverges_ends_in_one_line(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    kept: list[Any] = []
    always = {"lr": 1e30, "checkpoint_seconds": 0.0}
    with pytest.raises(KdexportError, match=r"diverged.*lower train\.lr.*checkpoint is .*step-0"):
        train(student, examples, llama, tmp_path, keep_best=kept.append, changes=always)
    assert not kept


def straying(targets: TargetFn, on: Callable[[int], bool]) -> TargetFn:
    """Targets that are no numbers at some calls, counted from 1."""
    calls = itertools.count(1)

    def ask(batch: Batch) -> Any:
        found = targets(batch).rows(slice(None))
        return replace(found, logprobs=found.logprobs * math.nan) if on(next(calls)) else found

    return ask


@pytest.mark.parametrize("size", [4, 7])
def test_three_steps_in_a_row_without_finite_numbers_end_a_run_and_name_its_texts(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path, size: int
) -> None:
    """From step 7 on; what is named is the batches of step 9, and the checkpoint is whole."""
    folder = tmp_path / "checkpoints"
    asked: list[list[str]] = []
    right = live_targets(load_model(llama), None, 1.0)
    stray = straying(right, lambda call: call > 12)  # two batches a step

    def noted(batch: Batch) -> Any:
        asked.append([example.example_id for example in batch.examples])
        return stray(batch)

    always = 0.0 if size == 4 else 60.0
    loop = settings(accumulate=2, checkpoint_seconds=always, evaluate_steps=100)
    events: list[Event] = []
    with pytest.raises(DivergedError) as caught:
        distill(
            student,
            Material(Epochs(examples[:21], size, 0), noted, examples[20:], right),
            loop,
            Hooks(report=events.append),
            checkpoints=folder,
            fingerprint="f",
        )
    assert [event.skipped for event in events] == [0] * 6 + [1, 2]  # the third ends it
    assert len(asked) == 18
    names = asked[16] + asked[17]
    listed = folder / "diverged.json"
    shown = ", ".join(names[:8])
    if size > 4:  # and nothing was saved yet
        assert len(names) == 14
        shown += f" and 6 more, all of them in {listed}"
        assert json.loads(listed.read_text("utf-8")) == {"step": 9, "examples": names}
    assert f"the last at step 9 on {shown};" in str(caught.value)
    assert listed.exists() == (size > 4)
    if size > 4:
        return
    good = folder / "step-000008"
    assert str(caught.value).endswith(f"the last good checkpoint is {good}")
    own = load_file(good / "model.safetensors")
    assert own and all(weights.isfinite().all() for weights in own.values())


def test_steps_without_finite_numbers_that_are_not_in_a_row_are_counted_alone(
    student: Any, examples: list[Encoded], llama: Path, tmp_path: Path
) -> None:
    right = live_targets(load_model(llama), None, 1.0)
    events: list[Event] = []
    distill(
        student,
        Material(Epochs(examples, 4, 0), straying(right, lambda n: n % 3 > 0), [], right),
        settings(evaluate_steps=100, budget=Budget(max_steps=11)),
        Hooks(report=events.append),
        checkpoints=tmp_path,
        fingerprint="f",
    )
    assert [event.skipped for event in events] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8]
    assert all(math.isfinite(event.loss) == (event.step % 3 == 0) for event in events)


def test_evaluation_does_not_depend_on_the_batch_size(
    student: Any, examples: list[Encoded], llama: Path
) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    one, eight = (evaluate(student, examples, targets, size) for size in (1, 8))
    assert one is not None and eight is not None
    assert one.kl == pytest.approx(eight.kl, rel=1e-5)
    assert one.perplexity == pytest.approx(eight.perplexity, rel=1e-5)
    assert one.top1 == eight.top1


@pytest.mark.parametrize("ends_in", ["teacher", "student"])
def test_where_memory_ends_an_evaluation_goes_on_in_smaller_batches(
    student: Any,
    examples: list[Encoded],
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ends_in: str,
) -> None:
    targets = live_targets(load_model(llama), None, 1.0)
    whole, memory = evaluate(student, examples, targets, 8), Memory()
    if ends_in == "teacher":
        targets = for_at_most(3, targets)
    else:
        reads_at_most(3, student, monkeypatch)
    for _ in range(2):
        found = evaluate(student, examples, targets, 8, memory=memory)
        assert found is not None and whole is not None
        assert found.kl == pytest.approx(whole.kl, rel=1e-5)
        assert found.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
        assert found.top1 == whole.top1
    assert capsys.readouterr().err.count("out of memory") == 2


def test_what_memory_holds_is_known_in_samples_steps_evaluations_and_checkpoints(
    student: Any,
    examples: list[Encoded],
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found out once, by the first of them to need it; a run that goes on knows it."""
    teacher = load_model(llama)
    held_out = for_at_most(3, live_targets(teacher, None, 1.0))  # the first evaluation ends it
    given, fed = list[int](), live_targets(teacher, None, 1.0)

    def targets(batch: Batch) -> Any:
        given.append(len(batch.examples))
        return fed(batch)

    def run(n_steps: int) -> Position:
        return distill(
            student,
            Material(Epochs(examples[:16], 8, 0), targets, examples[16:], held_out),
            settings(batch_size=8, evaluate_steps=1, budget=Budget(max_steps=n_steps)),
            Hooks(),
            checkpoints=tmp_path,
            fingerprint="f",
        )

    assert run(3).max_examples == 2
    assert given == [8, *[2] * 4, *[2] * 4]
    assert run(5).max_examples == 2
    assert given[9:] == [2] * 8
    assert capsys.readouterr().err.count("out of memory") == 2


def test_a_teacher_is_at_no_distance_from_itself(llama: Path, examples: list[Encoded]) -> None:
    teacher = load_model(llama)
    itself = evaluate(teacher, examples, live_targets(teacher, None, 1.0), 4)
    assert itself is not None
    assert itself.kl == pytest.approx(0.0, abs=1e-5)
    assert itself.top1 == 1.0
