"""Proofs that a recipe's divergences are their formulas on every path from texts to a gradient.

A path: a way to ask the teacher; rows of one text each, or packed; the head whole, or in chunks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from kdexport.errors import InputError
from kdexport.train import objective
from kdexport.train.case import WAYS, Case, Proof
from kdexport.train.data import Encoded, collate
from kdexport.train.formulas import REFERENCES
from kdexport.train.losses import LOSSES
from kdexport.train.model import check_packing, head_is_plain
from kdexport.train.objective import Term
from kdexport.train.proofs import (
    CHUNK_ROWS,
    FLOAT32,
    HALF,
    MIDDLE,
    gradient_of,
    read_alone,
    relative,
    relative_norm,
    weight_at,
)
from kdexport.train.schedule import ONE

N_TEXTS = 3  # the shortest ones
PARTS = ("cached", "sampled")  # ways that keep a part of a distribution
ROUGH = 5e-2  # of the gradient of |p - q| in half precision: where they cross, its sign turns


@dataclass(frozen=True)
class Sums:
    """A loss and its parts as `Parts` has them, and the loss's gradient, flat."""

    loss: float
    task: float
    divergence: float
    gradient: torch.Tensor

    def apart(self, other: "Sums") -> tuple[float, float]:
        """How far values and gradient are off, beside the other's."""
        values = ("loss", "task", "divergence")
        worst = max(relative(getattr(self, name), getattr(other, name)) for name in values)
        return worst, relative_norm(self.gradient, other.gradient)


def every_path_is_the_formula(case: Case) -> Iterator[Proof]:
    """Each divergence of the recipe, each way that the teacher can be asked; the worst of the rest.

    Values and gradient of the whole objective with it alone, each token at its place and with its
    weight, against float64 over texts that are read one by one. All tokens are drawn where some are
    sampled: drawn are then the whole distribution. Nothing where λ is 0.
    """
    if not case.objective.kd_weight.at(MIDDLE):
        return
    layouts = (None, None), (_row_length(case), CHUNK_ROWS)
    packed = "packed" if layouts[1][0] else "padded"
    note = f"rows padded; rows {packed}, the head by {CHUNK_ROWS} of them; relative"
    for term in case.objective.terms:
        wish = replace(
            case.objective, terms=(replace(term, weight=ONE),), hidden_weight=0.0, inside=None
        )
        alone = replace(
            case,
            examples=_few(case),
            objective=wish,
            n_sampled=int(case.student.config.vocab_size),
            folder=case.folder / "paths",
        )
        whole = by_hand(alone, term, None)
        for way in _ways(alone, term):
            expected = by_hand(alone, term, alone.n_kept) if way == "cached" else whole
            asked = replace(alone, way=way)
            found = [_by_batch(asked, *layout).apart(expected) for layout in layouts]
            value, gradient = (max(numbers) for numbers in zip(*found, strict=True))
            name, is_live = f"{term.loss} of {way} targets", way == "live"
            close = FLOAT32 if is_live else HALF
            yield Proof(f"{name} is its formula, from texts to loss", value, close, note)
            close = FLOAT32 if is_live else ROUGH
            yield Proof(f"{name} has its formula's gradient", gradient, close, note)


def _few(case: Case) -> Sequence[Encoded]:
    return sorted(case.examples, key=lambda example: len(example.ids))[:N_TEXTS]


def _ways(case: Case, term: Term) -> list[str]:
    """The ways in which the teacher can be asked for a divergence."""
    allowed = list(WAYS)
    if not head_is_plain(case.teacher):
        allowed.remove("hidden")
    if case.across or LOSSES[term.loss].whole:
        allowed = [way for way in allowed if way not in PARTS]
    return allowed


def _row_length(case: Case) -> int | None:
    """Of packed rows, of which one holds two texts; None where texts cannot be packed."""
    first, second, *others = (len(example.ids) for example in _few(case))
    row_length = max(first + second, *others, 0)
    models = case.teacher, case.student
    if row_length > min(int(model.config.max_position_embeddings) for model in models):
        return None
    try:
        for model in models:
            check_packing(model)
    except InputError:
        return None
    return row_length


def _by_batch(case: Case, row_length: int | None, chunk_rows: int | None) -> Sums:
    """As training has it."""
    batch = collate(case.examples, row_length)
    asked = WAYS[case.way](case)(batch)
    found = objective.batch_loss(
        case.student, batch, asked, case.objective, MIDDLE, chunk_rows=chunk_rows
    )
    gradient = gradient_of(case.student, found.loss).double()
    return Sums(float(found.loss.detach()), found.task, found.divergence, gradient)


def by_hand(case: Case, term: Term, n_kept: int | None) -> Sums:
    """Sums over all texts' tokens in float64; ``n_kept``: the likeliest tokens, the rest as one."""
    wish, loss = case.objective, LOSSES[term.loss]
    amount = (loss.parameter if term.parameter is None else term.parameter) or 0.0
    strength = wish.kd_weight.at(MIDDLE) * wish.temperature**2
    totals = torch.zeros(3, dtype=torch.float64)
    gradient = torch.zeros(())
    for example in case.examples:
        rows = slice(example.first_target - 1, len(example.ids) - 1)
        z_teacher, _, said = (of_text[rows] for of_text in read_alone(case, example))
        ids = torch.from_numpy(example.ids)
        z_student = case.student(ids[None].to(case.student.device), use_cache=False).logits[0, rows]
        z_student = z_student.double().cpu()
        places = range(example.first_target, len(ids))
        weights = torch.tensor([weight_at(example, t) for t in places], dtype=torch.float64)
        is_completion = torch.tensor([t >= example.first_completion for t in places])
        order = None if n_kept is None else z_teacher.topk(n_kept, dim=-1).indices
        apart = REFERENCES[term.loss](z_teacher, z_student, wish.temperature, amount, order)
        shares = weights * said * torch.where(is_completion, 1.0, wish.prompt_weight)
        soft = (shares * apart).sum() / wish.temperature ** (2 - loss.order)
        nats = -torch.log_softmax(z_student, -1)[range(len(places)), ids[example.first_target :]]
        task = (weights * is_completion * nats).sum()
        total = wish.task_weight.at(MIDDLE) * task + strength * soft
        gradient = gradient + gradient_of(case.student, total).double()
        totals += torch.stack([total, task, soft]).detach()
    return Sums(float(totals[0]), float(totals[1]), float(totals[2]), gradient)


ON_PATHS: Sequence[Callable[[Case], Iterator[Proof]]] = (every_path_is_the_formula,)
