"""Proofs that a distillation computes what it says, on a teacher, a student and texts of anyone's.

Each is one trap that real projects fell into. They run on what training runs on, `batch_loss`,
`Stepper` and the targets, and hold it against a few lines of float64 that share nothing with it.
Knows no recipes and no files but a folder to write in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from kdexport.train import losses, objective
from kdexport.train.case import WAYS, Case, Proof, cached, hidden, live
from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.evaluate import evaluate
from kdexport.train.formulas import REFERENCES
from kdexport.train.memory import Memory
from kdexport.train.model import head_is_plain
from kdexport.train.objective import Objective, Term
from kdexport.train.on_policy import by_origin
from kdexport.train.step import Stepper
from kdexport.train.targets import Targets, runs
from kdexport.train.teacher import top_k_targets

MIDDLE = 0.5  # the progress at which schedules are looked at
N_ROWS = 64  # tokens that losses are tried on
CHUNK_ROWS = 5  # of the head at once, where chunks are looked at: any text has several
FAR = 64.0  # a temperature at which every distribution is flat
FLOAT32 = 1e-4  # of sums that are ordered otherwise
HALF = 1e-2  # of what is kept in half precision


# Losses, at some tokens


def losses_are_their_formulas(case: Case) -> Iterator[Proof]:
    """Value and gradient of every loss, whole and with top k and tail, against float64."""
    z_teacher, z_student = _logits(case)
    order = z_teacher.topk(case.n_kept, dim=-1).indices
    for name in case.losses:
        loss = losses.LOSSES[name]
        worst = _apart(case, name, z_teacher, z_student, None)
        note = "value and gradient, whole"
        if not loss.whole:
            worst = max(worst, _apart(case, name, z_teacher, z_student, order))
            note += f", and of {case.n_kept} tokens and the rest as one"
        yield Proof(f"{name} is its formula", worst, 1e-3, note)


def _apart(
    case: Case, name: str, z_teacher: torch.Tensor, z_student: torch.Tensor, order: Any
) -> float:
    """The largest error of value and gradient, relative to the largest of each."""
    temperature = case.objective.temperature
    amount = losses.LOSSES[name].parameter or 0.0
    rough = z_student.float().requires_grad_()
    whole = torch.log_softmax(z_teacher / temperature, -1)
    if order is None:
        asked = Targets(whole.float())
    else:
        best = whole.gather(-1, order)
        tail = torch.log1p(-best.exp().sum(-1))
        asked = Targets(best.float(), order, tail.float())
    found = losses.distance(name, rough, asked, temperature)
    exact = z_student.clone().requires_grad_()
    expected = REFERENCES[name](z_teacher, exact, temperature, amount, order)
    pairs = [(found.detach(), expected.detach())]
    gradients = [torch.autograd.grad(x.sum(), z)[0] for x, z in ((found, rough), (expected, exact))]
    pairs.append((gradients[0], gradients[1]))
    return max(
        float((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-12))
        for one, other in pairs
    )


def gradients_keep_their_size(case: Case) -> Iterator[Proof]:
    """T² (T for a loss of first order) times the gradient, where T doubles and all is flat."""
    if case.across:  # two vocabularies are not equally flat
        return
    z_teacher, z_student = (z.float() for z in _logits(case))

    def norm(name: str, temperature: float) -> float:
        z = z_student.clone().requires_grad_()
        soft = Targets(torch.log_softmax(z_teacher / temperature, -1))
        wish = Objective(terms=(Term(name),), temperature=temperature)
        apart = objective.soft_distance(z, soft, wish, MIDDLE).sum()
        (gradient,) = torch.autograd.grad(temperature**2 * apart, z)
        return float(gradient.norm())

    for name in case.losses:
        ratio = norm(name, 2 * FAR) / norm(name, FAR)
        note = f"the gradient at T = {2 * FAR:.0f} beside that at {FAR:.0f}"
        yield Proof(f"{name} keeps its gradient as T grows", abs(ratio - 1), 0.1, note)


@torch.no_grad()
def _logits(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Both models' logits [N, V] of some target tokens, float64, each example read alone."""
    both: list[list[torch.Tensor]] = [[], []]
    for example in case.examples:
        theirs, own, said = read_alone(case, example)
        said[: example.first_target - 1] = False
        for found, z in zip(both, (theirs, own), strict=True):
            found.append(z[said])
    z_teacher, z_student = (torch.cat(found) for found in both)
    every = max(1, len(z_teacher) // N_ROWS)
    return z_teacher[::every], z_student[::every]


@torch.no_grad()
def read_alone(case: Case, example: Encoded) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What teacher and student say over one example: no batch, no padding, no chunks.

    Logits [n, V] of both, and where the teacher says something of the next token, bool [n].
    """
    ids = torch.from_numpy(example.ids)
    own = case.student(ids[None].to(case.student.device), use_cache=False).logits[0]
    said = torch.arange(len(ids)) < len(ids) - 1
    theirs = ids if case.kept_ids is None else torch.as_tensor(case.kept_ids)[ids]
    if case.across:
        pair = case.across.pairs[example.example_id]
        theirs = torch.from_numpy(pair.teacher.ids)
    asked = case.teacher(theirs[None].to(case.teacher.device), use_cache=False).logits[0]
    if case.kept_ids is not None:
        asked = asked[:, torch.as_tensor(case.kept_ids)]
    if case.across:
        places = torch.zeros(len(ids), dtype=torch.long)
        said[: example.first_completion - 1] = False
        for number, partner in enumerate(pair.partners.tolist(), example.first_completion - 1):
            said[number] = partner >= 0
            places[number] = pair.teacher.first_completion - 1 + max(partner, 0)
        asked = asked[places.to(asked.device)]
    return asked.double().cpu(), own.double().cpu(), said


# A step


def one_mask_is_shifted(case: Case) -> Iterator[Proof]:
    """Labels, student and teacher are read at one place: a loop over tokens gives the same sums."""
    task, soft = summed_alone(case, case.examples)
    found = summed_at_once(case, collate(case.examples))
    note = "a loop over single texts, nats"
    yield Proof("texts are read at the shifted places", relative(found.task, task), FLOAT32, note)
    name = "teacher and student are read at the same places"
    yield Proof(name, relative(found.divergence, soft), FLOAT32, note)


def summed_alone(case: Case, examples: Sequence[Encoded]) -> tuple[float, float]:
    """Cross-entropy on texts and divergence, nats: a loop over their tokens."""
    task = soft = 0.0
    (term,) = case.plain.terms
    for example in examples:
        z_teacher, z_student, said = read_alone(case, example)
        for t in range(example.first_target, len(example.ids)):
            is_prompt = t < example.first_completion
            weight = weight_at(example, t)
            if said[t - 1]:
                share = case.objective.prompt_weight if is_prompt else 1.0
                rows = slice(t - 1, t)
                apart = REFERENCES[term.loss](z_teacher[rows], z_student[rows], 1.0, 0.0, None)
                soft += weight * share * float(apart)
            q = torch.log_softmax(z_student[t - 1], -1)
            task -= 0.0 if is_prompt else weight * float(q[example.ids[t]])
    return task, soft


def weight_at(example: Encoded, t: int) -> float:
    """What a token counts: by its text, and by itself."""
    own = 1.0 if example.token_weights is None else float(example.token_weights[t])
    return example.weight * own


@torch.no_grad()
def summed_at_once(case: Case, batch: Batch) -> objective.Parts:
    """The same as training sums it; own samples are asked of as beside kept targets."""
    plain = replace(case.plain, prompt_weight=case.objective.prompt_weight)
    at_one = replace(case, objective=plain)
    ask = by_origin(WAYS[case.way](at_one), live(at_one)) if batch.is_own else live(at_one)
    return objective.batch_loss(case.student, batch, ask(batch), plain, MIDDLE)


def steps_do_not_depend_on_batches(case: Case) -> Iterator[Proof]:
    """The gradient of a step, whatever its examples are cut into."""
    examples = list(case.examples)
    batch = collate(examples)
    whole = step_gradient(case, [batch])
    wide = replace(batch, ids=F.pad(batch.ids, (0, 16)), targets=F.pad(batch.targets, (0, 16)))
    halves = [collate(examples[::2]), collate(examples[1::2])]
    ways = {
        "padding changes no gradient": step_gradient(case, [wide]),
        "batches of other texts change no gradient": step_gradient(case, halves[::-1]),
        "accumulation changes no gradient": step_gradient(case, [collate([e]) for e in examples]),
        "halved batches change no gradient": step_gradient(case, [batch], memory=Memory(1)),
    }
    if case.row_length is not None:
        packed = collate(examples, case.row_length)
        ways["packing changes no gradient"] = step_gradient(case, [packed])
    for name, gradient in ways.items():
        note = f"{len(examples)} texts; relative"
        yield Proof(name, relative_norm(gradient, whole), FLOAT32, note)


def judging_does_not_depend_on_batches(case: Case) -> Iterator[Proof]:
    """KL and perplexity on held-out texts are the same one by one and all at once."""
    ask = None if case.across else live(case)
    found = [evaluate(case.student, case.examples, ask, size) for size in (1, len(case.examples))]
    one, all_at_once = (f for f in found if f is not None)
    judged = (("kl", "KL"), ("perplexity", "perplexity"))
    for name, shown in judged[1:] if case.across else judged:
        apart = relative(getattr(one, name), getattr(all_at_once, name))
        yield Proof(f"{shown} does not depend on batches", apart, FLOAT32, "relative")


def chunks_are_the_plain_loss(case: Case) -> Iterator[Proof]:
    """Head and loss in small chunks give the gradient of the loss of all logits at once."""
    batch = collate(case.examples)
    plain = replace(case.objective, hidden_weight=0.0, inside=None)
    asked = WAYS[case.way](case)(batch)
    chunked = objective.batch_loss(
        case.student, batch, asked, plain, MIDDLE, chunk_rows=CHUNK_ROWS
    ).loss
    found = gradient_of(case.student, chunked)
    logits = case.student(batch.ids.to(case.student.device), use_cache=False).logits
    logits = logits[:, :-1][batch.targets.to(logits.device)].float()
    share = batch.weights * torch.where(batch.is_completion, 1.0, plain.prompt_weight)
    task = F.cross_entropy(logits, batch.labels.to(logits.device), reduction="none")
    rows = asked.to(logits.device).rows(slice(None))
    soft = objective.soft_distance(logits, rows, plain, MIDDLE)
    of_task = (batch.weights * batch.is_completion).to(logits.device)
    loss = plain.task_weight.at(MIDDLE) * (of_task * task).sum()
    strength = plain.kd_weight.at(MIDDLE) * plain.temperature**2
    loss = loss + strength * (share.to(logits.device) * soft).sum()
    apart = relative_norm(gradient_of(case.student, loss), found)
    n_chunks = len(runs(len(logits), n_at_once=CHUNK_ROWS))
    yield Proof("chunks give the plain gradient", apart, 1e-5, f"{n_chunks} chunks; relative")


def gradient_of(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss by all that is learnt of a model, flat; 0 where it does not reach."""
    own = [p for p in model.parameters() if p.requires_grad]
    found: tuple[Any, ...] = torch.autograd.grad(loss, own, allow_unused=True)
    filled = (torch.zeros_like(p) if g is None else g for p, g in zip(own, found, strict=True))
    return torch.cat([g.flatten().cpu() for g in filled])


class _Watched(torch.optim.Optimizer):
    """Takes no step, and keeps the gradient that it was given."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.gradient = torch.full((1,), torch.nan)

    def step(self, closure: Any = None) -> Any:
        """Keep the gradient."""
        own = [p.grad for group in self.param_groups for p in group["params"]]
        self.gradient = torch.cat([g.flatten().cpu() for g in own if g is not None])


def step_gradient(case: Case, group: Sequence[Batch], **wishes: Any) -> torch.Tensor:
    """The gradient by which a step over these batches would move the student, flat."""
    wish = case.objective
    watched = _Watched([p for p in wish.learner(case.student).parameters() if p.requires_grad])
    stepper = Stepper(case.student, watched, wish, clip_norm=float("inf"), **wishes)
    stepper.step(group, WAYS[case.way](case) if wish.kd_weight.at(MIDDLE) else None, 0.0, MIDDLE)
    return watched.gradient


# The teacher


def teacher_is_at_rest(case: Case) -> Iterator[Proof]:
    """It says the same twice, alone and among others; it is not trained and shares nothing."""
    batch, ask = collate(case.examples), live(case)
    case.student.train()
    try:
        asked = ask(batch).rows(slice(None))
        busy = sum(module.training for module in case.teacher.modules())
        step_gradient(case, [batch])
    finally:
        case.student.eval()
    again = ask(batch).rows(slice(None))
    apart = float((asked.logprobs.exp() - again.logprobs.exp()).abs().max())
    yield Proof("the teacher says the same twice", apart, 1e-6, "largest difference of p")
    alone = [ask(collate([e])).rows(slice(None)).logprobs for e in case.examples]
    apart = float((torch.cat(alone).exp() - again.logprobs.exp()).abs().max())
    yield Proof("the teacher says the same of a text alone", apart, 1e-4, "largest difference of p")
    yield Proof("the teacher stays in evaluation mode", busy, 0, "modules in training mode")
    moved = sum(p.grad is not None for p in case.teacher.parameters())
    moved += asked.logprobs.requires_grad
    yield Proof("the teacher gets no gradient", moved, 0, "parameters that got one")
    own = {p.data_ptr() for p in case.student.parameters()}
    shared = sum(p.data_ptr() in own for p in case.teacher.parameters())
    yield Proof("teacher and student share no weights", shared, 0, "parameters in both")


def caches_are_near_the_teacher(case: Case) -> Iterator[Proof]:
    """What is kept on disk gives the divergence that the teacher gives when asked live."""
    batch, ask = collate(case.examples), live(case)
    whole = _divergence(case, batch, ask(batch))
    if not case.across:
        yield _top_k_is_near(case, batch, whole)
    if head_is_plain(case.teacher):
        apart = relative(_divergence(case, batch, hidden(case)(batch)), whole)
        yield Proof("cached hidden states are the live ones", apart, HALF, "relative")


def _top_k_is_near(case: Case, batch: Batch, whole: float) -> Proof:
    found = _divergence(case, batch, cached(case)(batch))
    same = _divergence(case, batch, top_k_targets(live(case), case.n_kept)(batch))
    less = 100 * (1 - same / max(whole, 1e-12))
    note = f"relative; {case.n_kept} tokens and the rest as one see {less:.1f} % less than all"
    return Proof("cached targets are the live ones", relative(found, same), HALF, note)


@torch.no_grad()
def _divergence(case: Case, batch: Batch, asked: Any) -> float:
    """The plainest divergence of a batch, nats."""
    wish = replace(case.plain, temperature=case.objective.temperature, prompt_weight=1.0)
    return objective.batch_loss(case.student, batch, asked, wish, MIDDLE).divergence


def relative(found: float, expected: float) -> float:
    """How far a number is off, beside what it should be."""
    return abs(found - expected) / max(abs(expected), 1e-12)


def relative_norm(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far a vector is off, beside the length that it should have."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


PROOFS: Sequence[Callable[[Case], Iterator[Proof]]] = (
    losses_are_their_formulas,
    gradients_keep_their_size,
    one_mask_is_shifted,
    steps_do_not_depend_on_batches,
    judging_does_not_depend_on_batches,
    chunks_are_the_plain_loss,
    teacher_is_at_rest,
    caches_are_near_the_teacher,
)
