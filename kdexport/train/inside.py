"""Losses between the layers of a student and those of its teacher, one value per target token.

Knows a model's list of layers, what each takes and gives, and what its attention is called with;
no family by name. Both models read the same batch: what they hold inside is noted on the way, and
nothing of it is computed twice. The teacher is asked live, for no cache holds its layers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from kdexport.errors import InputError
from kdexport.train.anatomy import decoder_layers
from kdexport.train.data import Batch
from kdexport.train.losses import hidden_distance
from kdexport.train.schedule import ONE, Schedule
from kdexport.train.sizes import size_names
from kdexport.train.targets import TargetRows, Targets
from kdexport.train.teacher import TargetFn

EMBEDDED = -1  # the number of what the first layer is given
WATCHED = "kdexport_watched"  # transformers' name of attention that is noted
NEVER = -1e9  # the score of a token that comes later
Pair = tuple[int, int]


@dataclass(frozen=True)
class InnerTerm:
    """One loss of `INSIDE` in the sum.

    ``layers``: pairs of a student's layer and a teacher's; None: as the student came about.
    ``n_heads``: relation heads; None: as many as the teacher has heads, or the most below that
    divide all widths.
    """

    loss: str
    weight: Schedule = ONE
    layers: tuple[Pair, ...] | None = None
    n_heads: int | None = None


@dataclass
class Seen:
    """What a model held while it read a batch, by the number of the layer.

    ``states``: outputs, float [B, L, H]. ``heads``: queries, keys and values, [B, heads, L, D].
    """

    states: dict[int, torch.Tensor] = field(default_factory=dict)
    heads: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where two models are compared.

    ``pair``: a student's layer and a teacher's. ``before``: the pair that comes before it.
    ``project``: a student's states [N, H] to the teacher's width. ``where``: target positions, bool
    [B, L - 1].
    """

    pair: Pair
    before: Pair
    project: Callable[[torch.Tensor], torch.Tensor]
    n_heads: int
    where: torch.Tensor


@dataclass(frozen=True)
class InnerLoss:
    """A loss: values [N] of what student and teacher held at a place.

    ``of_heads``: it compares queries, keys and values, at the last pair of layers unless others are
    asked for; the other kind compares states, at every pair.
    """

    values: Callable[[Seen, Seen, Place], torch.Tensor]
    of_heads: bool = False


@dataclass(frozen=True)
class WatchedTargets:
    """A teacher's targets, and what it held inside while it made them."""

    targets: TargetRows
    seen: Seen

    @property
    def hidden(self) -> torch.Tensor | None:
        """The last hidden states, float [N, H], where they are known."""
        return self.targets.hidden

    def rows(self, rows: slice) -> Targets:
        """The distributions of some of the tokens."""
        return self.targets.rows(rows)

    def to(self, device: torch.device) -> "WatchedTargets":
        """The same on another device; what was seen is where the teacher is."""
        return WatchedTargets(self.targets.to(device), self.seen)


class Inside(torch.nn.Module):
    """The losses inside of one student and one teacher, and what is learnt for them alone.

    Its parameters are projections from the student's width to the teacher's, one for each pair of
    layers (Romero et al. 2015, FitNets, section 2.2); none where the widths are equal. They are
    trained with the student and are no part of it.
    """

    def __init__(
        self,
        terms: Sequence[InnerTerm],
        student: Any,
        teacher: Any,
        kept_layers: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.terms = tuple(settled(terms, student.config, teacher.config, kept_layers))
        widths = [model.config.hidden_size for model in (student, teacher)]
        generator = torch.Generator().manual_seed(seed)
        self.projections = torch.nn.ModuleDict()
        for number, term in enumerate(self.terms):
            for pair in term.layers or ():
                made: torch.nn.Module = torch.nn.Identity()
                if widths[0] != widths[1] and not INSIDE[term.loss].of_heads:
                    made = torch.nn.Linear(widths[0], widths[1], bias=False)
                    torch.nn.init.orthogonal_(made.weight, generator=generator)
                self.projections[_name(number, pair)] = made
        self.to(student.device)

    def of_teacher(self, ask: TargetFn, teacher: Any) -> TargetFn:
        """``ask``, which has the teacher read a batch, with what the teacher held inside."""

        def watched(batch: Batch) -> WatchedTargets:
            with self.watch(teacher, 1) as seen:
                targets = ask(batch)
            return WatchedTargets(targets, seen)

        return watched

    @contextmanager
    def watch(self, model: Any, side: int = 0) -> Iterator[Seen]:
        """A block that notes what a model holds inside; ``side``: 0 of the student, 1 the teacher.

        Of several batches that are read in it, the last is noted.
        """
        seen = Seen()
        layers = decoder_layers(model)
        with ExitStack() as stack:
            for number in self._asked(side, of_heads=False):
                if number == EMBEDDED:
                    hook = layers[0].register_forward_pre_hook(_note_input(seen), with_kwargs=True)
                else:
                    hook = layers[number].register_forward_hook(_note_output(seen, number))
                stack.callback(hook.remove)
            numbers = self._asked(side, of_heads=True)
            if numbers:
                stack.enter_context(_noted_attention(model, seen, numbers))
            yield seen

    def forward(
        self, mine: Seen, theirs: TargetRows, batch: Batch, weight: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The weighted sum over a batch's target tokens; of a term, the mean over its layers.

        ``weight``: float [N], what each token counts.
        """
        if not isinstance(theirs, WatchedTargets):
            raise ValueError("the teacher was not watched: ask it through `of_teacher`")
        where = batch.targets.to(weight.device)
        total = torch.zeros((), device=weight.device)
        for number, term in enumerate(self.terms):
            share, pairs = term.weight.at(progress), term.layers or ()
            befores = ((EMBEDDED, EMBEDDED), *pairs)
            for pair, before in zip(pairs if share else (), befores, strict=False):
                project = self.projections[_name(number, pair)]
                place = Place(pair, before, project, term.n_heads or 1, where)
                values = INSIDE[term.loss].values(mine, theirs.seen, place)
                total = total + share / len(pairs) * (weight * values).sum()
        return total

    def _asked(self, side: int, *, of_heads: bool) -> set[int]:
        """The layers of one side that some loss of a kind looks at."""
        terms = [term for term in self.terms if INSIDE[term.loss].of_heads == of_heads]
        found = {pair[side] for term in terms for pair in term.layers or ()}
        return found if of_heads or not found else found | {EMBEDDED}


def _name(number: int, pair: Pair) -> str:
    return f"{number}-{pair[0]}-{pair[1]}"


def _note_input(seen: Seen) -> Callable[[Any, Any, Any], None]:
    def note(_module: Any, args: Any, kwargs: Any) -> None:
        seen.states[EMBEDDED] = args[0] if args else kwargs["hidden_states"]

    return note


def _note_output(seen: Seen, number: int) -> Callable[[Any, Any, Any], None]:
    def note(_module: Any, _args: Any, output: Any) -> None:
        seen.states[number] = output[0] if isinstance(output, tuple) else output

    return note


@contextmanager
def _noted_attention(model: Any, seen: Seen, numbers: set[int]) -> Iterator[None]:
    """Have a model's attention tell what it is called with, and compute what it always does."""
    import sys

    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    usual = model.config._attn_implementation

    def noted(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if module.layer_idx in numbers:
            seen.heads[module.layer_idx] = (query, key, value)
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        compute = ALL_ATTENTION_FUNCTIONS.get_interface(usual, own)
        return compute(module, query, key, value, *args, **kwargs)

    ALL_MASK_ATTENTION_FUNCTIONS.register(WATCHED, ALL_MASK_ATTENTION_FUNCTIONS[usual])
    ALL_ATTENTION_FUNCTIONS[WATCHED] = noted
    model.config._attn_implementation = WATCHED
    try:
        yield
    finally:
        model.config._attn_implementation = usual
        del ALL_ATTENTION_FUNCTIONS[WATCHED]


def layer_map(
    n_student: int, n_teacher: int, kept_layers: Sequence[int] | None
) -> tuple[Pair, ...]:
    """Which of the teacher's layers each of the student's is compared with.

    ``kept_layers``: the teacher's that a pruned student is made of. Otherwise the teacher's layers
    are shared out evenly, and a student's layer is compared with the last of its share (Jiao et al.
    2020, TinyBERT, section 3.1).
    """
    if kept_layers is not None:
        return tuple(enumerate(kept_layers))
    ends = [math.ceil((layer + 1) * n_teacher / n_student) - 1 for layer in range(n_student)]
    last_with = {theirs: mine for mine, theirs in enumerate(ends)}
    return tuple((mine, theirs) for theirs, mine in last_with.items())


def settled(
    terms: Sequence[InnerTerm],
    student: Any,
    teacher: Any,
    kept_layers: Sequence[int] | None = None,
) -> list[InnerTerm]:
    """Terms with their layers and heads, from two configurations.

    Raises InputError for layers that are not there, and for heads that do not divide.
    """
    sides = {"student": student, "teacher": teacher}
    n_student, n_teacher = (config.num_hidden_layers for config in sides.values())
    usual = layer_map(n_student, n_teacher, kept_layers)
    found = []
    for term in terms:
        of_heads = INSIDE[term.loss].of_heads
        layers = tuple(sorted(term.layers or (usual[-1:] if of_heads else usual)))
        for side, (name, config) in enumerate(sides.items()):
            for number in (pair[side] for pair in layers):
                if not 0 <= number < config.num_hidden_layers:
                    raise InputError(
                        f"{term.loss}: the {name} has no layer {number}",
                        where="train.inside",
                        remedy=f"use 0 to {config.num_hidden_layers - 1}",
                    )
        n_heads = _relation_heads(term, student, teacher) if of_heads else None
        found.append(InnerTerm(term.loss, term.weight, layers, n_heads))
    return found


def _relation_heads(term: InnerTerm, *configs: Any) -> int:
    """How many relation heads: what divides the widths of all queries, keys and values."""
    widths = [width for config in configs for width in _attention_widths(config)]
    shared = math.gcd(*widths)
    if term.n_heads is None:
        most = min(configs[-1].num_attention_heads, shared)
        return next(n for n in range(most, 0, -1) if shared % n == 0)
    if shared % term.n_heads:
        raise InputError(
            f"{term.loss}: {term.n_heads} relation heads do not divide queries and keys of "
            + ", ".join(map(str, sorted({*widths}))),
            where="train.inside",
            remedy=f"use a divisor of {shared}",
        )
    return term.n_heads


def _attention_widths(config: Any) -> tuple[int, int]:
    """Channels of all queries of a token, and of all its keys."""
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, size_names(config)["n_kv_heads"] or "", None) or n_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return n_heads * size, n_kv_heads * size


def _states(seen: Seen, layer: int, place: Place) -> torch.Tensor:
    return seen.states[layer][:, :-1][place.where].float()


def _hidden(mine: Seen, theirs: Seen, place: Place) -> torch.Tensor:
    """|P h - t|² / |t|² (Romero et al. 2015, FitNets, eq. 3; Jiao et al. 2020, TinyBERT, eq. 8).

    Relative to the teacher's length, so that layers count alike.
    """
    states = _states(mine, place.pair[0], place)
    return hidden_distance(place.project(states), _states(theirs, place.pair[1], place))


def _hidden_cosine(mine: Seen, theirs: Seen, place: Place) -> torch.Tensor:
    """1 - cos(P h, t) (Sanh et al. 2019, DistilBERT, section 3)."""
    states = place.project(_states(mine, place.pair[0], place))
    return 1 - torch.cosine_similarity(states, _states(theirs, place.pair[1], place), dim=-1)


def _blocks(mine: Seen, theirs: Seen, place: Place) -> torch.Tensor:
    """|P Δh - Δt|² / |Δt|²: what is added to the residual stream since the pair before.

    As in Yim et al. 2017 it is the way from layer to layer that is learnt, here the difference
    itself: a student's block stands for all of the teacher's since the one before.
    """
    deltas = [
        _states(seen, place.pair[side], place) - _states(seen, place.before[side], place)
        for side, seen in enumerate((mine, theirs))
    ]
    return hidden_distance(place.project(deltas[0]), deltas[1])


def _relations(mine: Seen, theirs: Seen, place: Place) -> torch.Tensor:
    """Σ over queries, keys, values of KL(teacher ‖ student) of softmax(A Aᵀ / √d).

    Wang et al. 2021, MiniLMv2, section 3.1: the heads of each are joined and cut into relation
    heads, over which the mean is taken. A token relates to itself and those before it.
    """
    total = torch.zeros(int(place.where.sum()), device=place.where.device)
    sides = zip(mine.heads[place.pair[0]], theirs.heads[place.pair[1]], strict=True)
    for own, other in sides:
        q, p = (_related(states, place) for states in (own, other))
        total = total + (p.exp() * (p - q)).sum(-1).mean(-1)
    return total


def _related(states: torch.Tensor, place: Place) -> torch.Tensor:
    """Log of relations, float [N, heads, L], from states [B, heads, L, D]."""
    n_texts, _, length, _ = states.shape
    joined = states.float().transpose(1, 2).reshape(n_texts, length, place.n_heads, -1)
    cut = joined.transpose(1, 2)
    scores = cut @ cut.transpose(-1, -2) / math.sqrt(cut.shape[-1])
    later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
    logs = torch.log_softmax(scores.masked_fill(later, NEVER), dim=-1)
    return logs.transpose(1, 2)[:, :-1][place.where]


INSIDE: Mapping[str, InnerLoss] = {
    "hidden": InnerLoss(_hidden),
    "hidden_cosine": InnerLoss(_hidden_cosine),
    "blocks": InnerLoss(_blocks),
    "relations": InnerLoss(_relations, of_heads=True),
}
