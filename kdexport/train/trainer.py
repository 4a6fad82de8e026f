"""The training loop: L = L_task + λ·T²·KL(teacher ‖ student) over target tokens.

Knows batches, a function that gives targets, and a student; not where any of them come from.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from kdexport.errors import KdexportError
from kdexport.train.checkpoint import load_checkpoint, save_checkpoint
from kdexport.train.data import Batch, Encoded, ordered_batches, token_batches
from kdexport.train.losses import LOSSES, Loss, forward_kl, hidden_distance
from kdexport.train.model import low_precision, read_targets
from kdexport.train.schedule import Budget, learning_rate
from kdexport.train.teacher import TargetFn


@dataclass(frozen=True)
class TrainSettings:
    """How to train. ``kd_weight`` is λ; a weight of 0 trains on the texts alone.

    ``prompt_weight``: what a prompt's token counts in the divergence, a completion's counting 1.
    ``hidden_weight``: what the distance of the last hidden states counts beside the divergence.
    """

    budget: Budget
    loss: str = "forward_kl"
    kd_weight: float = 1.0
    prompt_weight: float = 0.0
    hidden_weight: float = 0.0
    precision: str = "float32"
    temperature: float = 1.0
    lr: float = 5e-4
    batch_size: int = 8
    accumulate: int = 1
    warmup_fraction: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    seed: int = 0
    checkpoint_seconds: float = 60.0
    evaluate_steps: int = 100


@dataclass(frozen=True)
class Evaluation:
    """Fidelity on held-out pairs: nats per token, share of equal top tokens, exp(cross-entropy)."""

    kl: float
    top1: float
    perplexity: float


@dataclass(frozen=True)
class Event:
    """One line of the log; ``evaluation`` only where one was made."""

    step: int
    tokens: int
    elapsed_s: float
    progress: float
    loss: float
    lr: float
    evaluation: Evaluation | None = None


@dataclass
class Position:
    """Where a run is; all of it goes into the checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    best_kl: float = field(default=float("inf"))


def distill(
    student: Any,
    examples: Sequence[Encoded],
    held_out: Sequence[Encoded],
    targets: TargetFn,
    held_out_targets: TargetFn,
    settings: TrainSettings,
    *,
    checkpoint: Path,
    fingerprint: str,
    keep_best: Callable[[Any], None],
    report: Callable[[Event], None],
) -> Position:
    """Train ``student`` in place until the budget is used, from the checkpoint where there is one.

    ``targets`` are at the training temperature, ``held_out_targets`` at 1.
    ``keep_best`` is called with the student whenever the KL on ``held_out`` is the lowest yet,
    ``report`` after every step.
    """
    optimizer = make_optimizer(student, settings)
    at = Position()
    saved = load_checkpoint(checkpoint, student, optimizer, fingerprint)
    if saved:
        at = Position(**saved["position"])
    started = time.monotonic() - at.elapsed_s
    last_saved = time.monotonic()
    batches = _endless(examples, settings, at)
    progress = settings.budget.progress(at.step, at.elapsed_s)
    student.train()
    while progress < 1.0:
        lr = learning_rate(progress, settings.lr, settings.warmup_fraction)
        group = [next(batches) for _ in range(settings.accumulate)]
        loss = train_step(student, optimizer, group, targets, settings, lr)
        at.step += 1
        _check_finite(loss, at.step)
        at.tokens += sum(batch.n_targets for batch in group)
        at.elapsed_s = time.monotonic() - started
        progress = settings.budget.progress(at.step, at.elapsed_s)
        evaluation = None
        if at.step % settings.evaluate_steps == 0 or progress >= 1.0:
            evaluation = evaluate(student, held_out, held_out_targets, settings.batch_size)
            _check_finite(evaluation.kl, at.step)
            if evaluation.kl < at.best_kl:
                at.best_kl = evaluation.kl
                keep_best(student)
        report(Event(at.step, at.tokens, at.elapsed_s, progress, loss, lr, evaluation))
        if progress >= 1.0 or time.monotonic() - last_saved > settings.checkpoint_seconds:
            state = {"fingerprint": fingerprint, "position": vars(at)}
            save_checkpoint(checkpoint, student, optimizer, state)
            last_saved = time.monotonic()
    student.eval()
    return at


def _check_finite(value: float, step: int) -> None:
    """End a run that has diverged: nothing good comes of going on."""
    if not math.isfinite(value):
        raise KdexportError(
            f"training has diverged: the loss of step {step} is {value}",
            where="distill",
            remedy="lower train.lr, or train.lambda",
        )


def train_step(
    student: Any,
    optimizer: torch.optim.Optimizer,
    group: Sequence[Batch],
    targets: TargetFn,
    settings: TrainSettings,
    lr: float,
) -> float:
    """One update from an accumulated group of batches; returns the loss per completion token.

    Sums are divided by the completions' tokens of the whole group, so that how the group is cut
    into batches changes nothing.
    """
    for parameters in optimizer.param_groups:
        parameters["lr"] = lr
    n_tokens = sum(batch.n_completion for batch in group)
    total = 0.0
    for batch in group:
        loss = token_losses(student, batch, targets, settings).sum() / n_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def token_losses(
    student: Any, batch: Batch, targets: TargetFn, settings: TrainSettings
) -> torch.Tensor:
    """L_task + λ·(T²·L_KD + μ·L_hidden) of every target token, float [N].

    L_task counts completions only: nobody asks a student for prompts. The teacher's distribution
    over a prompt's tokens teaches language all the same, at hardly any cost: the student has read
    the prompt anyway.
    """
    with low_precision(student, settings.precision):
        reading = read_targets(student, batch.ids, batch.targets)
    logits = reading.logits.float()
    is_completion = batch.is_completion.to(logits.device)
    loss = F.cross_entropy(logits, batch.labels.to(logits.device), reduction="none")
    loss = loss * is_completion
    if settings.kd_weight:
        asked = targets(batch).to(logits.device)
        divergence: Loss = LOSSES[settings.loss]
        distance = settings.temperature**2 * divergence(logits, asked, settings.temperature)
        if settings.hidden_weight:
            assert reading.hidden is not None and asked.hidden is not None
            distance = distance + settings.hidden_weight * hidden_distance(
                reading.hidden, asked.hidden
            )
        weight = torch.where(is_completion, 1.0, settings.prompt_weight)
        loss = loss + settings.kd_weight * weight * distance
    return loss


@torch.no_grad()
def evaluate(
    student: Any, held_out: Sequence[Encoded], targets: TargetFn, batch_size: int
) -> Evaluation:
    """KL to the teacher, top-1 agreement and perplexity, each over all target tokens at once."""
    was_training = student.training
    student.eval()
    kl = agree = nats = 0.0
    n_tokens = 0
    for batch in ordered_batches(held_out, batch_size):
        logits = read_targets(student, batch.ids, batch.targets).logits.float()
        asked = targets(batch).to(logits.device)
        kl += float(forward_kl(logits, asked, 1.0).sum())
        agree += float((logits.argmax(-1) == asked.top1()).sum())
        nats += float(F.cross_entropy(logits, batch.labels.to(logits.device), reduction="sum"))
        n_tokens += batch.n_targets
    student.train(was_training)
    n_tokens = max(n_tokens, 1)
    perplexity = float(torch.tensor(nats / n_tokens, dtype=torch.float64).exp())
    return Evaluation(kl / n_tokens, agree / n_tokens, perplexity)


def make_optimizer(student: Any, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only (Loshchilov & Hutter 2019)."""
    matrices = [p for p in student.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in student.parameters() if p.requires_grad and p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=settings.betas,
        fused=True,
    )


def _endless(examples: Sequence[Encoded], settings: TrainSettings, at: Position) -> Iterator[Batch]:
    """Batches epoch after epoch, from where ``at`` stands; ``at`` follows."""
    while True:
        start = at.batch
        for batch in token_batches(
            examples, settings.batch_size, seed=settings.seed, epoch=at.epoch, start=start
        ):
            at.batch += 1
            yield batch
        at.epoch += 1
        at.batch = 0
