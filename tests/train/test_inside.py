"""Losses between layers: each against numpy, and what must not change them."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import InputError
from kdexport.train import objective as objective_module
from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.inside import INSIDE, InnerTerm, Inside, layer_map, settled
from kdexport.train.model import load_model, read_batch
from kdexport.train.objective import Objective, Term, batch_loss
from kdexport.train.schedule import Schedule
from kdexport.train.sizes import StudentSpec
from kdexport.train.step import Stepper
from kdexport.train.student import Origin, prune, scratch
from kdexport.train.teacher import live_targets

PROBE = [torch.arange(40)[None]]
NO_KD = (Term("forward_kl", Schedule(0.0, 0.0)),)
KEPT = [0, 2, 5]
N_HEADS = 4


@dataclasses.dataclass
class Two:
    teacher: Any
    student: Any
    kept_layers: list[int] | None


@pytest.fixture(params=["llama", "gpt2", "narrower"])
def two(request: pytest.FixtureRequest, llama: Path, gpt2: Path) -> Two:
    """A teacher and a student: cut from it, or of half its width."""
    torch.manual_seed(0)
    teacher = load_model(gpt2 if request.param == "gpt2" else llama, attention="eager")
    if request.param == "narrower":
        spec = StudentSpec(n_layers=3, hidden_size=32, n_heads=2)
        return Two(teacher, scratch(Origin(teacher, None, PROBE), spec).model, None)
    made = prune(Origin(teacher, None, PROBE), StudentSpec(n_layers=3))
    return Two(teacher, made.model, made.kept_layers)


def inside_of(two: Two, *terms: InnerTerm) -> Inside:
    return Inside(terms, two.student, two.teacher, two.kept_layers)


def value(two: Two, inside: Inside, batch: Batch, **wishes: Any) -> Any:
    """The inner losses alone: no cross-entropy, no divergence."""
    wishes = {"terms": NO_KD, "task_weight": Schedule(0.0, 0.0)} | wishes
    ask = inside.of_teacher(live_targets(two.teacher, None, 1.0), two.teacher)
    return batch_loss(two.student, batch, ask(batch), Objective(inside=inside, **wishes), 0.5).loss


def states_of(model: Any, batch: Batch) -> list[np.ndarray]:
    """What layers are given and give, float64 [N, H] each; the first is the embeddings."""
    with torch.no_grad():
        found = model.base_model(batch.ids, output_hidden_states=True).hidden_states
    return [h[:, :-1][batch.targets].double().numpy() for h in found]


def projections_of(inside: Inside) -> list[np.ndarray | None]:
    found = [getattr(module, "weight", None) for module in inside.projections.values()]
    return [None if w is None else w.detach().double().numpy() for w in found]


def squares(h: np.ndarray, t: np.ndarray) -> float:
    return float((((h - t) ** 2).sum(-1) / (t**2).sum(-1)).sum())


def cosines(h: np.ndarray, t: np.ndarray) -> float:
    norms = np.linalg.norm(h, axis=-1) * np.linalg.norm(t, axis=-1)
    return float((1 - (h * t).sum(-1) / norms).sum())


@pytest.mark.parametrize("name", ["hidden", "hidden_cosine", "blocks"])
def test_states_are_compared_as_the_formula_says(
    two: Two, examples: list[Encoded], name: str
) -> None:
    """Over inner layers; transformers gives the last one's output behind the final norm."""
    n_teacher = two.teacher.config.num_hidden_layers
    layers = ((0, 1), (1, n_teacher - 2))
    inside = inside_of(two, InnerTerm(name, Schedule(0.0, 4.0), layers))
    batch = collate(examples[:4])
    mine, theirs = states_of(two.student, batch), states_of(two.teacher, batch)
    compare = cosines if name == "hidden_cosine" else squares
    expected, before = 0.0, (-1, -1)
    for pair, weight in zip(layers, projections_of(inside), strict=True):
        h, t = mine[pair[0] + 1], theirs[pair[1] + 1]
        if name == "blocks":
            h, t = h - mine[before[0] + 1], t - theirs[before[1] + 1]
        expected += compare(h if weight is None else h @ weight.T, t) / 2  # a mean over 2 pairs
        before = pair
    found = float(value(two, inside, batch).detach())
    assert found == pytest.approx(2.0 * expected, rel=1e-4)  # half of the way to a weight of 4


def heads_by_hand(model: Any, layer: int, batch: Batch) -> list[np.ndarray]:
    """Queries, keys and values [B, L, width], from the cache and from the model's own products."""
    seen: list[Any] = []
    modules = (m for m in model.modules() if getattr(m, "layer_idx", None) == layer)
    module = next(modules)  # the layer's attention
    with torch.no_grad():
        hook = module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        cache = model.base_model(batch.ids, use_cache=True).past_key_values
        hook.remove()
        x = seen[0][1]["hidden_states"] if not seen[0][0] else seen[0][0][0]
        if hasattr(module, "c_attn"):
            q = module.c_attn(x).split(x.shape[-1], dim=-1)[0]
        else:
            from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

            size = module.head_dim
            q = module.q_proj(x).view(*x.shape[:2], -1, size).transpose(1, 2)
            q = apply_rotary_pos_emb(q, q, *seen[0][1]["position_embeddings"])[0]
            q = q.transpose(1, 2).flatten(2)
    k, v = (
        x.transpose(1, 2).flatten(2) for x in (cache.layers[layer].keys, cache.layers[layer].values)
    )
    return [x.double().numpy() for x in (q, k, v)]


def relation(states: np.ndarray, n_heads: int, upto: int) -> np.ndarray:
    """softmax(a_t · a_s / √d) over s ≤ t, of one text and one token: [heads, t + 1]."""
    cut = states[: upto + 1].reshape(upto + 1, n_heads, -1)
    scores = np.einsum("hd,shd->hs", cut[-1], cut) / np.sqrt(cut.shape[-1])
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def test_relations_are_as_the_formula_says(two: Two, examples: list[Encoded]) -> None:
    pair = (1, 2)
    inside = inside_of(two, InnerTerm("relations", layers=(pair,), n_heads=2))
    batch = collate(examples[:3])
    sides = zip(
        heads_by_hand(two.student, pair[0], batch),
        heads_by_hand(two.teacher, pair[1], batch),
        strict=True,
    )
    expected = 0.0
    for mine, theirs in sides:
        for row, at in batch.targets.nonzero().tolist():
            q, p = relation(mine[row], 2, at), relation(theirs[row], 2, at)
            expected += float((p * np.log(p / q)).sum(-1).mean())
    assert float(value(two, inside, batch).detach()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", INSIDE)
def test_padding_changes_nothing(two: Two, examples: list[Encoded], name: str) -> None:
    inside = inside_of(two, InnerTerm(name))
    together = float(value(two, inside, collate(examples[:6])).detach())
    alone = sum(float(value(two, inside, collate([e])).detach()) for e in examples[:6])
    assert together == pytest.approx(alone, rel=1e-4)
    assert together > 0


@pytest.mark.parametrize("name", INSIDE)
def test_the_gradient_reaches_the_student_and_never_the_teacher(
    two: Two, examples: list[Encoded], name: str
) -> None:
    inside = inside_of(two, InnerTerm(name))
    value(two, inside, collate(examples[:4])).backward()
    assert all(p.grad is None for p in two.teacher.parameters())
    reached = [p for p in two.student.parameters() if p.grad is not None and p.grad.any()]
    assert reached and all(p.grad is not None and p.grad.isfinite().all() for p in reached)
    assert all(p.grad is not None and p.grad.any() for p in inside.parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_watched_model_computes_what_it_always_does(
    llama: Path, gpt2: Path, examples: list[Encoded], attention: str
) -> None:
    batch = collate(examples[:4])
    for folder in (llama, gpt2):
        model = load_model(folder, attention=attention)
        inside = Inside([InnerTerm("relations"), InnerTerm("hidden")], model, model)
        with torch.no_grad():
            usual = read_batch(model, batch).hidden
            with inside.watch(model) as seen:
                watched = read_batch(model, batch).hidden
        assert usual is not None and watched is not None and torch.equal(usual, watched)
        assert model.config._attn_implementation == attention
        assert len(seen.heads) == 1
        assert len(seen.states) == 1 + model.config.num_hidden_layers


@pytest.mark.parametrize("name", INSIDE)
def test_a_teacher_is_at_no_distance_from_itself(
    llama: Path, examples: list[Encoded], name: str
) -> None:
    teacher = load_model(llama)
    itself = Two(teacher, copy.deepcopy(teacher), None)
    inside = inside_of(itself, InnerTerm(name))
    batch = collate(examples[:3])
    found = float(value(itself, inside, batch).detach())
    assert found == pytest.approx(0.0, abs=1e-5 * batch.n_targets)


def test_losses_inside_are_within_lambda_and_weighted_by_token(
    two: Two, examples: list[Encoded]
) -> None:
    prompted = [dataclasses.replace(e, first_target=1) for e in examples[:4]]
    inside = inside_of(two, InnerTerm("hidden"))

    def of(**wishes: Any) -> float:
        return float(value(two, inside, collate(prompted), **wishes).detach())

    assert of(kd_weight=Schedule(3.0, 3.0)) == pytest.approx(3 * of(), rel=1e-5)
    assert of(kd_weight=Schedule(0.0, 0.0)) == 0
    completions = of()
    assert of(prompt_weight=0.0) == completions
    full, half = of(prompt_weight=1.0), of(prompt_weight=0.5)
    assert full > completions
    assert half - completions == pytest.approx((full - completions) / 2, rel=1e-4)


@pytest.mark.parametrize("cut", [[8], [1, 3, 4]])
def test_how_a_step_is_cut_changes_nothing(
    two: Two, examples: list[Encoded], cut: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulated or not, and in chunks of three rows or all rows at once."""
    monkeypatch.setattr(
        objective_module, "runs", lambda n, *_: [slice(i, min(i + 3, n)) for i in range(0, n, 3)]
    )

    def weights(sizes: list[int], inside: Inside) -> torch.Tensor:
        student = copy.deepcopy(two.student)
        objective = Objective(inside=inside)
        learner = objective.learner(student)
        ask = inside.of_teacher(live_targets(two.teacher, None, 1.0), two.teacher)
        stepper = Stepper(student, torch.optim.SGD(learner.parameters(), lr=0.1), objective)
        ends = np.cumsum(sizes)
        group = [collate(examples[e - s : e]) for e, s in zip(ends, sizes, strict=True)]
        assert not stepper.step(group, ask, 0.1, 0.5).skipped
        return torch.cat([p.detach().flatten() for p in learner.parameters()])

    terms = [InnerTerm("hidden"), InnerTerm("relations")]
    found, expected = (weights(sizes, inside_of(two, *terms)) for sizes in (cut, [4, 4]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_layers_are_mapped_as_the_student_came_about() -> None:
    assert layer_map(3, 6, [0, 2, 5]) == ((0, 0), (1, 2), (2, 5))
    assert layer_map(3, 6, None) == ((0, 1), (1, 3), (2, 5))
    assert layer_map(4, 6, None) == ((0, 1), (1, 2), (2, 4), (3, 5))
    assert layer_map(4, 2, None) == ((1, 0), (3, 1))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (InnerTerm("hidden", layers=((3, 0),)), "the student has no layer 3"),
        (InnerTerm("blocks", layers=((0, 6),)), "the teacher has no layer 6"),
        (InnerTerm("relations", n_heads=3), "3 relation heads do not divide"),
    ],
)
def test_what_is_not_there_is_refused(
    student: Any, llama: Path, term: InnerTerm, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        settled([term], student.config, load_model(llama).config)
    assert caught.value.where == "train.inside"


def test_relation_heads_divide_all_widths(student: Any, llama: Path) -> None:
    (found,) = settled([InnerTerm("relations")], student.config, load_model(llama).config)
    assert found.n_heads == N_HEADS
    assert found.layers == ((2, 5),)
