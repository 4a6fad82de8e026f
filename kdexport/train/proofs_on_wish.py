"""Proofs of what only some recipes ask for: losses between layers, own samples, other tokens.

They stand beside `proofs` and are made as those are. Each yields nothing where it is not asked for.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kdexport.train import objective
from kdexport.train.anatomy import decoder_layers
from kdexport.train.case import Case, Proof, live
from kdexport.train.data import Encoded, collate
from kdexport.train.formulas import STATE_REFERENCES, relation_kl
from kdexport.train.inside import INSIDE, InnerTerm, Inside
from kdexport.train.objective import Objective, Term
from kdexport.train.on_policy import OnPolicy
from kdexport.train.proofs import (
    FLOAT32,
    MIDDLE,
    gradient_of,
    read_alone,
    relative,
    relative_norm,
    summed_alone,
    summed_at_once,
    weight_at,
)
from kdexport.train.schedule import ONE, Schedule
from kdexport.train.uld import NO_PARTNER

NOTHING = Schedule(0.0, 0.0)
COLD = 1e-4  # a temperature at which the likeliest token is drawn
STEP = 3  # the number of some step
DEVIATIONS = 4.0  # by which a mean may be off

# Losses between layers


def inner_losses_are_their_formulas(case: Case) -> Iterator[Proof]:
    """Value and gradient of each, over texts that are read alone, against float64."""
    inside = case.objective.inside
    if inside is None:
        return
    batch = collate(case.examples)
    for number, term in enumerate(inside.terms):
        alone = _alone(inside, number)
        wish = Objective(
            (Term(weight=NOTHING),),
            task_weight=NOTHING,
            prompt_weight=case.objective.prompt_weight,
            inside=alone,
        )
        asked = live(replace(case, objective=wish))(batch)
        found = objective.batch_loss(case.student, batch, asked, wish, MIDDLE).loss
        expected = _by_hand(case, inside, number)
        apart = relative(float(found.detach()), float(expected.detach()))
        learner = wish.learner(case.student)
        gradients = [gradient_of(learner, loss).double() for loss in (found, expected)]
        worst = max(apart, relative_norm(*gradients))
        layers = ", ".join(f"{mine} to {theirs}" for mine, theirs in term.layers or ())
        note = f"value and gradient; the student's layers {layers} of the teacher"
        yield Proof(f"{term.loss} between layers is its formula", worst, 1e-3, note)


def projections_are_learnt(case: Case) -> Iterator[Proof]:
    """What brings states to the teacher's width is trained, and not written with the student."""
    inside = case.objective.inside
    if inside is None:
        return
    learnt = {id(p) for p in case.objective.learner(case.student).parameters()}
    own = {id(p) for p in case.student.parameters()}
    projections = list(inside.parameters())
    wrong = sum(id(p) not in learnt or id(p) in own for p in projections)
    yield Proof("projections are learnt beside the student", wrong, 0, f"of {len(projections)}")


def _alone(inside: Inside, number: int) -> Inside:
    """The same with one of its losses, at a weight of 1."""
    alone = copy.copy(inside)
    alone.terms = tuple(
        replace(term, weight=ONE if n == number else NOTHING) for n, term in enumerate(inside.terms)
    )
    return alone


@dataclass(frozen=True)
class _Held:
    """What a model held over one text, float64: states [n, H], those of the embeddings first;
    queries, keys and values [n, width] of some layers.
    """

    states: Sequence[torch.Tensor]
    heads: Mapping[int, Sequence[torch.Tensor]]


def _held(model: Any, ids: torch.Tensor, inside: Inside, side: int) -> _Held:
    last: list[Any] = []  # transformers tells the last layer's output behind the final norm
    hook = decoder_layers(model)[-1].register_forward_hook(lambda _, __, out: last.append(out))
    try:
        with inside.watch(model, side) as seen:
            asked = {"output_hidden_states": True, "use_cache": False}
            found = model.base_model(ids[None].to(model.device), **asked).hidden_states
    finally:
        hook.remove()
    end = last[0][0] if isinstance(last[0], tuple) else last[0]
    heads = {
        layer: [x[0].transpose(0, 1).flatten(1).double() for x in every]
        for layer, every in seen.heads.items()
    }
    return _Held([h[0].double() for h in (*found[:-1], end)], heads)


def _by_hand(case: Case, inside: Inside, number: int) -> torch.Tensor:
    """The sum over all texts of one of the losses; of its layers the mean."""
    term = inside.terms[number]
    kept = None if case.kept_ids is None else torch.as_tensor(case.kept_ids)
    total = torch.zeros((), dtype=torch.float64, device=case.student.device)
    for example in case.examples:
        ids = torch.from_numpy(example.ids)
        mine = _held(case.student, ids, inside, 0)
        with torch.no_grad():
            theirs = _held(case.teacher, ids if kept is None else kept[ids], inside, 1)
        where = slice(example.first_target - 1, len(ids) - 1)
        places = torch.arange(example.first_target, len(ids), device=total.device)
        share = (places < example.first_completion) * (case.objective.prompt_weight - 1.0) + 1.0
        values = _values(inside, number, term, mine, theirs)
        counts = [weight_at(example, t) for t in range(example.first_target, len(ids))]
        share = share * torch.tensor(counts, dtype=torch.float64, device=total.device)
        total = total + (share * values[where]).sum()
    return total


def _values(
    inside: Inside, number: int, term: InnerTerm, mine: _Held, theirs: _Held
) -> torch.Tensor:
    """One of the losses at each token of a text, float64 [n]."""
    pairs = term.layers or ()
    found = torch.zeros(len(mine.states[0]), dtype=torch.float64, device=mine.states[0].device)
    for pair, before in zip(pairs, ((-1, -1), *pairs), strict=False):
        if INSIDE[term.loss].of_heads:
            for own, other in zip(mine.heads[pair[0]], theirs.heads[pair[1]], strict=True):
                found = found + relation_kl(own, other, term.n_heads or 1) / len(pairs)
            continue
        h, t = (held.states[layer + 1] for held, layer in zip((mine, theirs), pair, strict=True))
        if term.loss == "blocks":
            h, t = h - mine.states[before[0] + 1], t - theirs.states[before[1] + 1]
        project = inside.projections[f"{number}-{pair[0]}-{pair[1]}"]
        if isinstance(project, torch.nn.Linear):
            h = h @ project.weight.double().T
        found = found + STATE_REFERENCES[term.loss](h, t) / len(pairs)
    return found


# Own samples


def own_samples_are_the_student_s(case: Case) -> Iterator[Proof]:
    """What the student writes: after its prompts, by its own distribution, the same every time."""
    if case.own is None:
        return
    case.student.train()
    try:
        own = _written(case, case.own)
        again = _written(case, case.own)
        asleep = sum(not module.training for module in case.student.modules())
    finally:
        case.student.eval()
    note = f"of {len(own)} texts"
    wrong = sum(not _goes_on(case.own, *two) for two in zip(case.examples, own, strict=True))
    yield Proof("own samples go on from their prompts, and end", wrong, 0, note)
    moved = sum(list(a.ids) != list(b.ids) for a, b in zip(own, again, strict=True))
    yield Proof("a step draws the same samples again", moved, 0, note)
    yield Proof("training goes on after samples", asleep, 0, "modules left in evaluation mode")
    off, n_tokens = _surprise(case, own, case.own.temperature)
    note = f"deviations of the mean surprise of {n_tokens} tokens"
    yield Proof("own samples are drawn by the student's distribution", abs(off), DEVIATIONS, note)
    cold = _written(case, replace(case.own, temperature=COLD))
    below = max(_below_best(case, example) for example in cold)
    yield Proof("cold samples are the likeliest tokens", below, 1e-2, "nats below the likeliest")


def own_samples_are_judged_by_the_teacher(case: Case) -> Iterator[Proof]:
    """The divergence on them is that of a loop over single texts; they are no texts to learn."""
    if case.own is None:
        return
    batch = collate(_written(case, case.own))
    _, soft = summed_alone(case, batch.examples)
    found = summed_at_once(case, batch)
    yield Proof("own samples have no cross-entropy", abs(found.task), 0, "nats")
    name = "teacher and student read own samples at the same places"
    yield Proof(name, relative(found.divergence, soft), FLOAT32, "a loop over single texts, nats")


def _written(case: Case, own: OnPolicy) -> Sequence[Encoded]:
    always = replace(own, fraction=ONE)
    (batch,) = always.renewed(case.student, [collate(case.examples)], STEP, MIDDLE)
    return batch.examples


def _goes_on(own: OnPolicy, given: Encoded, written: Encoded) -> bool:
    """Whether a sample has its prompt before it and ends where it is to end."""
    n_prompt = given.first_completion
    new = written.ids[n_prompt:].tolist()
    room = min(own.max_new_tokens, own.max_length - n_prompt)
    ended = bool(new) and (new[-1] in own.end_ids or len(new) == room)
    goes_on = list(written.ids[:n_prompt]) == list(given.ids[:n_prompt])
    return goes_on and ended and len(new) <= room and not own.end_ids & {*new[:-1]}


def _surprise(case: Case, examples: Sequence[Encoded], temperature: float) -> tuple[float, int]:
    """By how many deviations the samples' surprise is off its mean, and of how many tokens."""
    off = variance = 0.0
    n_tokens = 0
    for example in examples:
        logs = torch.log_softmax(_own_logits(case, example) / temperature, -1)
        mean = (logs.exp() * logs).sum(-1)
        drawn = logs.gather(-1, torch.from_numpy(example.ids[example.first_completion :])[:, None])
        off += float((mean - drawn[:, 0]).sum())
        variance += float(((logs.exp() * logs**2).sum(-1) - mean**2).sum())
        n_tokens += example.n_completion
    return off / max(variance, 1e-12) ** 0.5, n_tokens


def _below_best(case: Case, example: Encoded) -> float:
    logs = torch.log_softmax(_own_logits(case, example), -1)
    drawn = logs.gather(-1, torch.from_numpy(example.ids[example.first_completion :])[:, None])
    return float((logs.max(-1).values - drawn[:, 0]).max())


def _own_logits(case: Case, example: Encoded) -> torch.Tensor:
    """The student's logits of a sample's tokens, float64 [n, V], the text read alone."""
    _, logits, _ = read_alone(case, example)
    return logits[example.first_completion - 1 : -1]


# Other tokens


def other_tokens_are_paired(case: Case) -> Iterator[Proof]:
    """Teacher and student have read the same text where they are compared."""
    across = case.across
    if across is None:
        return
    wrong = n_pairs = n_tokens = without = 0
    for example in case.examples:
        pair = across.pairs[example.example_id]
        paired = [(n, m) for n, m in enumerate(pair.partners.tolist()) if m != NO_PARTNER]
        begins = [
            0 if example.example_id in across.plain else e.first_completion
            for e in (example, pair.teacher)
        ]
        for n, m in paired:
            mine = example.ids[begins[0] : example.first_completion + n]
            theirs = pair.teacher.ids[begins[1] : pair.teacher.first_completion + m]
            wrong += across.student_spells(mine) != across.teacher_spells(theirs)
        n_pairs += len(paired)
        n_tokens += example.n_completion
        without += not paired
    note = f"of {n_pairs} pairs, {100 * n_pairs / max(n_tokens, 1):.0f} % of the student's tokens"
    yield Proof("paired tokens follow the same text", wrong, 0, note)
    yield Proof("every text has paired tokens", without, 0, f"of {len(case.examples)} texts")


ON_WISH: Sequence[Callable[[Case], Iterator[Proof]]] = (
    inner_losses_are_their_formulas,
    projections_are_learnt,
    own_samples_are_the_student_s,
    own_samples_are_judged_by_the_teacher,
    other_tokens_are_paired,
)
