"""The training loop: batches, targets, a step, and now and then an evaluation and a checkpoint.

Knows a feed of batches, a function that gives targets, and a student; not where any of them come
from. What is minimised is told in `objective`, how one update is made in `step`.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdexport.errors import KdexportError
from kdexport.system.files import write_whole
from kdexport.system.interrupts import Interrupted
from kdexport.train.ahead import ahead
from kdexport.train.checkpoint import State, list_checkpoints, load_checkpoint, save_checkpoint
from kdexport.train.data import Batch, Encoded
from kdexport.train.evaluate import Evaluation, evaluate
from kdexport.train.feed import Feed
from kdexport.train.model import lookups_share_gradient
from kdexport.train.objective import Objective
from kdexport.train.on_policy import OnPolicy
from kdexport.train.rounding import Rounding
from kdexport.train.schedule import Budget, learning_rate
from kdexport.train.step import Done, Stepper, exact
from kdexport.train.teacher import TargetFn
from kdexport.train.world import ALONE, World

SKIPS_IN_A_ROW = 3  # steps without finite numbers that end a run
NAMED = 8  # texts of such a step in a line; more are in a file
DIVERGED = "diverged.json"  # that file, beside the checkpoints


@dataclass(frozen=True)
class TrainSettings:
    """How to train. ``is_frugal``: freed memory goes back to the system within each step.

    ``rounded_from``: the progress at which the student's weights are rounded; ``rounded_lr``: the
    peak from there on, where a second schedule begins.
    """

    budget: Budget
    objective: Objective = field(default_factory=Objective)
    precision: str = "float32"
    lr: float = 5e-4
    batch_size: int = 8
    accumulate: int = 1
    warmup_fraction: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    checkpoint_seconds: float = 60.0
    evaluate_steps: int = 100
    is_frugal: bool = False
    rounded_from: float = 1.0
    rounded_lr: float = 1e-4


@dataclass(frozen=True)
class Event:
    """One step as it is reported.

    ``loss`` and its parts ``task`` and ``divergence`` in nats per completion token.
    """

    step: int
    tokens: int
    elapsed_s: float
    progress: float
    loss: float
    task: float
    divergence: float
    norm: float
    lr: float
    skipped: int


@dataclass
class Position:
    """Where a run is; all of it goes into the checkpoint.

    ``max_examples``: at once, where memory has ended (`Memory`).
    """

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    evaluated: int = 0
    best_score: float = float("inf")
    skipped: int = 0
    skipped_in_a_row: int = 0
    is_rounded: bool = False
    max_examples: int | None = None


@dataclass(frozen=True)
class Material:
    """What is learnt from, and what the student is judged by.

    ``targets`` are at the training temperature, ``held_out_targets`` at 1; None: no teacher is
    asked, and the best student is the one of lowest perplexity. ``own``: how the student writes
    some of the batches itself; None: it writes none. ``in_step``: all processes have to ask for
    ``targets`` equally often.
    """

    feed: Feed
    targets: TargetFn | None
    held_out: Sequence[Encoded]
    held_out_targets: TargetFn | None
    own: OnPolicy | None = None
    in_step: bool = False


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: where it begins; for the best student yet, every step, every evaluation;
    to be stopped.

    ``rounding``: how the student's weights are rounded from `TrainSettings.rounded_from` on; None:
    never. Students are then judged, and kept, as they are within its blocks.
    """

    keep_best: Callable[[Any], None] = lambda student: None
    report: Callable[[Event], None] = lambda event: None
    evaluated: Callable[[Position, Evaluation], None] = lambda at, evaluation: None
    interrupted: Callable[[], bool] = lambda: False
    begins: Callable[[Position], None] = lambda at: None
    rounding: Rounding | None = None


class DivergedError(KdexportError):
    """Training gives no finite numbers any more; raised in all processes."""


def distill(
    student: Any,
    material: Material,
    settings: TrainSettings,
    hooks: Hooks,
    *,
    checkpoints: Path,
    fingerprint: str,
    world: World = ALONE,
) -> Position:
    """Train ``student`` in place until the budget is used, from the newest checkpoint if any.

    All processes of ``world`` call it with the same arguments but for the hooks; the first writes.
    Raises Interrupted where `Hooks.interrupted` says so in any of them, also within an evaluation,
    with all saved; the evaluation is made up for when it goes on. Raises DivergedError.
    """
    learner = _learner(student, settings.objective, hooks.rounding)
    optimizer = make_optimizer(learner, settings)
    stepper = _stepper(student, optimizer, settings, world)
    seed = torch.initial_seed()
    load = partial(load_checkpoint, checkpoints, learner, optimizer, fingerprint)
    at = _place(_loaded(load, world), material.feed)
    stepper.memory.at_most = at.max_examples
    hooks.begins(at)
    started = time.monotonic() - at.elapsed_s
    last_saved = time.monotonic()

    def save() -> None:
        at.max_examples = stepper.memory.at_most
        state = {"fingerprint": fingerprint, "position": vars(at), "feed": material.feed.state()}
        if world.is_first:
            save_checkpoint(checkpoints, at.step, learner, optimizer, state)

    student.train()
    while True:
        progress = settings.budget.progress(at.step, at.elapsed_s)
        if _rounds_now(at, progress, settings, hooks):
            save()  # what is interrupted here begins here again
            _round(at, student, hooks, world)
        stepper.rounding = hooks.rounding if at.is_rounded and hooks.rounding else exact
        if _is_due(at, progress, settings.evaluate_steps):
            _look(at, student, stepper, material, settings, hooks)
        if world.any(hooks.interrupted()):
            save()
            raise Interrupted(f"at step {at.step}")
        if progress >= 1.0 or time.monotonic() - last_saved > settings.checkpoint_seconds:
            save()
            last_saved = time.monotonic()
        if progress >= 1.0:
            break
        group = material.feed.group(settings.accumulate)
        world.reseed(seed, at.step)
        own = _own_part(group, material, stepper, at.step, progress)
        lr = _rate(at, progress, settings)
        done = stepper.step(own, _targets_of(own, group, material), lr, progress)
        _advance(at, done, stepper, started)
        _count_skips(at, done, group, checkpoints, world)
        hooks.report(_event(at, done, settings.budget, lr))
    student.eval()
    return at


def _stepper(
    student: Any, optimizer: torch.optim.Optimizer, settings: TrainSettings, world: World
) -> Stepper:
    return Stepper(
        student,
        optimizer,
        settings.objective,
        settings.clip_norm,
        settings.precision,
        world,
        is_frugal=settings.is_frugal,
    )


def _look(
    at: Position,
    student: Any,
    stepper: Stepper,
    material: Material,
    settings: TrainSettings,
    hooks: Hooks,
) -> None:
    """Judge the student, rounded where training is; keep the best."""
    with stepper.rounding(student):
        found = _judge(student, material, settings, hooks, stepper)
        if found is not None:
            _note(at, found, student, hooks)


def _advance(at: Position, done: Done, stepper: Stepper, started: float) -> None:
    """A step lies behind; the first process's clock counts."""
    at.step += 1
    at.tokens += done.n_targets
    at.elapsed_s = stepper.world.first(time.monotonic() - started)


def _loaded(load: Callable[[], State | None], world: World) -> State | None:
    """What all read of the newest checkpoint; the first mends what a kill left before."""
    first = load() if world.is_first else None
    world.wait()
    found = first if world.is_first else load()
    world.wait()
    return found


def _place(saved: State | None, feed: Feed) -> Position:
    """Where a run goes on, its feed included; at the beginning without a checkpoint."""
    if saved is None:
        return Position()
    feed.restore(saved["feed"])
    return Position(**saved["position"])


def _own_part(
    group: Sequence[Batch], material: Material, stepper: Stepper, step: int, progress: float
) -> Sequence[Batch]:
    """This process's share of each batch, some written by the student as it computes now."""
    if material.own is None:
        shares = (batch.share(stepper.world) for batch in group)
        return [share for share in shares if share is not None]
    with stepper.rounding(stepper.student):
        return material.own.renewed(
            stepper.student, group, step, progress, stepper.world, stepper.memory
        )


def _targets_of(
    own: Sequence[Batch], group: Sequence[Batch], material: Material
) -> TargetFn | None:
    """Who is asked for a step's targets: the teacher, in the step or before it."""
    if material.targets is None or not material.in_step:
        return material.targets
    return ahead(material.targets, own, group)


def _learner(student: Any, objective: Objective, rounding: Rounding | None) -> torch.nn.Module:
    """All that is trained, some of it at times only."""
    lookups_share_gradient(student)
    learner = objective.learner(student)
    if rounding is None:
        return learner
    return torch.nn.ModuleDict({"learner": learner, "factors": rounding.factors})


def _rounds_now(at: Position, progress: float, settings: TrainSettings, hooks: Hooks) -> bool:
    return hooks.rounding is not None and not at.is_rounded and progress >= settings.rounded_from


def _round(at: Position, student: Any, hooks: Hooks, world: World) -> None:
    """Round the student's weights; from here on it is judged against rounded ones only."""
    assert hooks.rounding is not None
    hooks.rounding.begin(student, lambda: world.any(hooks.interrupted()))
    at.is_rounded = True
    at.best_score = float("inf")


def _rate(at: Position, progress: float, settings: TrainSettings) -> float:
    """The learning rate: of one schedule, or of two where weights are rounded in between."""
    begin, end, peak = 0.0, settings.rounded_from, settings.lr
    if at.is_rounded:
        begin, end, peak = end, 1.0, settings.rounded_lr
    part = (progress - begin) / (end - begin) if end > begin else 1.0
    return learning_rate(part, peak, settings.warmup_fraction)


def _is_due(at: Position, progress: float, evaluate_steps: int) -> bool:
    """Whether the student of this step is to be evaluated, and was not yet."""
    if at.is_rounded and at.best_score == float("inf"):
        return True  # what rounding left is the first to be bettered
    ends = at.step % evaluate_steps == 0 or progress >= 1.0
    return at.step > at.evaluated and ends


def _judge(
    student: Any, material: Material, settings: TrainSettings, hooks: Hooks, stepper: Stepper
) -> Evaluation | None:
    return evaluate(
        student,
        material.held_out,
        material.held_out_targets,
        settings.batch_size,
        interrupted=hooks.interrupted,
        world=stepper.world,
        memory=stepper.memory,
    )


def _note(at: Position, found: Evaluation, student: Any, hooks: Hooks) -> None:
    at.evaluated = at.step
    if not math.isfinite(found.score):
        raise DivergedError(
            f"training has diverged: the student of step {at.step} gives {found.score} on held-out "
            "texts",
            where="distill",
            remedy="lower train.lr, or train.lambda",
        )
    if found.score < at.best_score:
        at.best_score = found.score
        hooks.keep_best(student)
    hooks.evaluated(at, found)


def _count_skips(
    at: Position, done: Done, group: Sequence[Batch], checkpoints: Path, world: World
) -> None:
    """Count steps without finite numbers; end a run that has three in a row."""
    at.skipped_in_a_row = at.skipped_in_a_row + 1 if done.skipped else 0
    at.skipped += done.skipped
    if at.skipped_in_a_row < SKIPS_IN_A_ROW:
        return
    saved = "".join(f"; the last good checkpoint is {c}" for c in list_checkpoints(checkpoints)[:1])
    names = [example.example_id for batch in group for example in batch.examples]
    shown = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        listed = checkpoints / DIVERGED
        if world.is_first:
            content = json.dumps({"step": at.step, "examples": names}, ensure_ascii=False, indent=1)
            checkpoints.mkdir(parents=True, exist_ok=True)
            write_whole(listed, [content])
        shown += f" and {len(names) - NAMED} more, all of them in {listed}"
    raise DivergedError(
        f"training has diverged: loss or gradient of {SKIPS_IN_A_ROW} steps in a row were not "
        f"finite, the last at step {at.step} on {shown}",
        where="distill",
        remedy=f"lower train.lr or train.lambda{saved}",
    )


def _event(at: Position, done: Done, budget: Budget, lr: float) -> Event:
    return Event(
        step=at.step,
        tokens=at.tokens,
        elapsed_s=at.elapsed_s,
        progress=budget.progress(at.step, at.elapsed_s),
        loss=done.loss,
        task=done.task,
        divergence=done.divergence,
        norm=done.norm,
        lr=lr,
        skipped=at.skipped,
    )


def make_optimizer(learner: Any, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only (Loshchilov & Hutter 2019)."""
    matrices = [p for p in learner.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in learner.parameters() if p.requires_grad and p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=settings.betas,
        fused=True,
    )
