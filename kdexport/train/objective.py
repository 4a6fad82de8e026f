"""L = a·L_task + λ·T²·(L_KD + …) of a batch, and its gradient, a chunk of tokens at a time.

Knows a student's last hidden states and a teacher's targets; not where either comes from, nor what
is done with the gradient. The matrix [tokens x vocabulary] exists for one chunk only.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from kdexport.train.data import Batch
from kdexport.train.inside import Inside, Seen
from kdexport.train.losses import LOSSES, distance, hidden_distance
from kdexport.train.model import Reading, head_of, lookups_add, low_precision, read_batch
from kdexport.train.schedule import ONE, Schedule
from kdexport.train.targets import TargetRows, Targets, runs

ROWS_ADDED = 2**12  # of the head's gradient at once: a CPU's cache has room for them

RowsLoss = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Term:
    """One divergence of the sum: its name in `LOSSES`, its weight, its parameter (None: usual)."""

    loss: str = "forward_kl"
    weight: Schedule = ONE
    parameter: float | None = None


@dataclass(frozen=True)
class Objective:
    """What is minimised: a·L_task + λ·(T²·Σ w·L_KD + μ·L_hidden + L_inside).

    ``kd_weight`` is λ, ``task_weight`` a. ``prompt_weight``: what a prompt's token counts in the
    divergence, a completion's counting 1. ``hidden_weight`` is μ. ``inside``: the losses between
    layers, for targets that it has watched.
    """

    terms: tuple[Term, ...] = (Term(),)
    kd_weight: Schedule = ONE
    task_weight: Schedule = ONE
    temperature: float = 1.0
    prompt_weight: float = 0.0
    hidden_weight: float = 0.0
    inside: Inside | None = None

    def learner(self, student: Any) -> torch.nn.Module:
        """All that is trained: the student, and what its losses inside need beside it."""
        if self.inside is None or not list(self.inside.parameters()):
            trained: torch.nn.Module = student
            return trained
        return torch.nn.ModuleDict({"student": student, "inside": self.inside})


@dataclass(frozen=True)
class Parts:
    """Sums over a batch's tokens: the whole loss, cross-entropy on the texts, divergence."""

    loss: torch.Tensor
    task: float
    divergence: float


def batch_loss(
    student: Any,
    batch: Batch,
    targets: TargetRows | None,
    objective: Objective,
    progress: float,
    *,
    precision: str = "float32",
    chunk_rows: int | None = None,
) -> Parts:
    """The loss of a batch as a sum over its target tokens, ready for ``backward``.

    L_task counts completions only: nobody asks a student for prompts. The teacher's distribution
    over a prompt's tokens teaches language all the same, at hardly any cost: the student has read
    the prompt anyway. Each token counts as much as its example's weight and its own say. Nor does
    L_task count what the student wrote itself. ``chunk_rows``: of the head at once; None: as many
    as are quick.
    """
    asked = None if targets is None else targets.to(student.device)
    labels = batch.labels.to(student.device)
    is_completion = batch.is_completion.to(student.device)
    given = batch.weights.to(student.device)
    weight = given * torch.where(is_completion, 1.0, objective.prompt_weight)
    task_share = given * is_completion * (not batch.is_own)
    kd_weight = objective.kd_weight.at(progress)
    task_weight = objective.task_weight.at(progress)

    def of_rows(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        task = F.cross_entropy(logits, labels[rows], reduction="none") * task_share[rows]
        total = task_weight * task.sum()
        soft = torch.zeros((), device=logits.device)
        if asked is not None and kd_weight:
            apart = soft_distance(logits, asked.rows(rows), objective, progress)
            soft = (weight[rows] * apart).sum()
            total = total + kd_weight * objective.temperature**2 * soft
        return total, torch.stack([task.detach().sum(), soft.detach()])

    inside = objective.inside if kd_weight else None
    watched = inside.watch(student) if inside else nullcontext(Seen())
    with low_precision(student, precision), watched as seen:
        reading = read_batch(student, batch)
    loss, parts = summed_over_rows(student, reading, of_rows, precision, chunk_rows)
    if asked is not None and kd_weight and objective.hidden_weight:
        assert reading.hidden is not None and asked.hidden is not None
        apart = hidden_distance(reading.hidden, asked.hidden)
        loss = loss + kd_weight * objective.hidden_weight * (weight * apart).sum()
    if asked is not None and inside is not None:
        loss = loss + kd_weight * inside(seen, asked, batch, weight, progress)
    return Parts(loss, float(parts[0]), float(parts[1]))


def soft_distance(
    logits: torch.Tensor, targets: Targets, objective: Objective, progress: float
) -> torch.Tensor:
    """The weighted sum of an objective's divergences, float [N] from student logits [N, V].

    It is to be multiplied by T²; a loss that wants less is divided by the rest here.
    """
    total = torch.zeros(len(logits), device=logits.device)
    for term in objective.terms:
        share = term.weight.at(progress)
        if share:
            values = distance(term.loss, logits, targets, objective.temperature, term.parameter)
            total = total + share * objective.temperature ** (LOSSES[term.loss].order - 2) * values
    return total


def summed_over_rows(
    student: Any,
    reading: Reading,
    of_rows: RowsLoss,
    precision: str = "float32",
    chunk_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of ``of_rows`` over all tokens, and its parts; chunked where the head is plain."""
    if reading.hidden is None:
        assert reading.logits is not None
        return of_rows(reading.logits.float(), slice(0, len(reading.logits)))
    weight, bias = head_of(student)
    if not torch.is_grad_enabled():  # a Function is not told so
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    summed: tuple[torch.Tensor, torch.Tensor] = _Chunked.apply(  # type: ignore[no-untyped-call]
        reading.hidden, weight, bias, of_rows, dtype, chunk_rows, lookups_add(student)
    )
    return summed


class _Chunked(torch.autograd.Function):
    """Head and loss of one chunk of rows after another; the gradient is taken while logits exist.

    As in fused linear cross-entropy (Hsu et al. 2024, Liger Kernel, section 3.2): since the loss is
    a sum, its gradient is known up to the factor that ``backward`` is given, so each chunk's
    logits are made once and dropped. ``lookups_add``: the head's goes into ``.grad`` straight, as a
    product's does in Megatron-LM, since a sum on the way there would be another of its size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        of_rows: RowsLoss,
        dtype: torch.dtype,
        chunk_rows: int | None,
        lookups_add: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = weight.detach().to(dtype)
        shift = None if bias is None else bias.detach().to(dtype)
        asks = list(ctx.needs_input_grad[:3])
        grads = [
            torch.zeros_like(of, dtype=torch.float32) if of is not None and needs else None
            for of, needs in zip((hidden, weight, bias), asks, strict=True)
        ]
        total, parts = torch.zeros((), device=hidden.device), None
        for rows in runs(len(hidden), len(weight), chunk_rows):
            inputs = hidden[rows].detach().to(dtype)
            logits = F.linear(inputs, head, shift).float().requires_grad_(any(asks))
            with torch.enable_grad():
                loss, of_chunk = of_rows(logits, rows)
            total = total + loss.detach()
            parts = of_chunk if parts is None else parts + of_chunk
            if loss.requires_grad:
                slope = torch.autograd.grad(loss, [logits])[0].to(dtype)
                if grads[0] is not None:
                    grads[0][rows] = slope @ head
                if grads[1] is not None:
                    _add_product(grads[1], slope.t(), inputs)
                if grads[2] is not None:
                    grads[2] += slope.sum(0)
        ctx.weight = weight if lookups_add else None
        ctx.save_for_backward(*grads)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        assert parts is not None  # there is always a run, if an empty one
        ctx.mark_non_differentiable(parts)
        return total, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Any) -> Any:
        # In place: of a large vocabulary's head a second copy is a good part of all memory.
        scaled = [
            None if grad is None else grad.mul_(outputs[0]).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        if ctx.weight is not None and scaled[1] is not None:
            before = ctx.weight.grad
            ctx.weight.grad = scaled[1] if before is None else before.add_(scaled[1])
            scaled[1] = None
        return (*scaled, None, None, None, None)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left [V, N] @ right [N, H] to a float32 total [V, H], some rows at a time."""
    for begin in range(0, len(total), ROWS_ADDED):
        rows = slice(begin, begin + ROWS_ADDED)
        total[rows] += left[rows] @ right
