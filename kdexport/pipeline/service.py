"""The teacher of a run as a service of targets: as the recipe wants to ask it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.errors import InputError
from kdexport.pipeline.importing import imported_held_out, imported_targets
from kdexport.pipeline.run import Run
from kdexport.pipeline.splits import Splits
from kdexport.recipe.train import TrainSection
from kdexport.system.console import say, tracked
from kdexport.system.journal import fingerprint
from kdexport.train.cache import (
    TargetCache,
    fill_cache,
    fingerprint_examples,
    prune,
    seconds_asked,
)
from kdexport.train.columns import Form, hidden_form, sampled_form, top_k_form
from kdexport.train.data import Encoded
from kdexport.train.fidelity import compare_targets
from kdexport.train.inside import InnerTerm, Inside
from kdexport.train.model import head_is_plain, load_facts
from kdexport.train.objective import Objective
from kdexport.train.on_policy import by_origin
from kdexport.train.schedule import Schedule
from kdexport.train.teacher import TargetFn, live_targets
from kdexport.train.world import ALONE, World

HELD_OUT_TOP_K = 64
HELD_OUT_DRAWN = 64
TEACHER_BATCH = 16
COMPARED = ("cached", "sampled")  # ways to keep targets that say what they cost
N_COMPARED = 8  # texts on which kept targets are compared with live ones
FORMAT = 3  # of a cache's files; part of its key


@dataclass(frozen=True)
class Asked:
    """Targets for training and for held-out pairs, and how long the teacher took beforehand.

    ``train`` is None where λ is 0. ``are_new``: the teacher had to be asked for some of them now.
    """

    train: TargetFn | None
    held_out: TargetFn | None
    seconds: float
    are_new: bool = False


@dataclass(frozen=True)
class Wanted:
    """Targets in a form to be kept; ``how`` they are asked is part of their cache's key."""

    form: Form
    how: Sequence[Any]


@dataclass(frozen=True)
class Place:
    """A cache that is filled, or is to be: where, of what, and how it is kept."""

    folder: Path
    examples: Sequence[Encoded]
    form: Form

    @property
    def n_tokens(self) -> int:
        """Of how many tokens it holds targets."""
        return sum(example.n_targets for example in self.examples)

    @property
    def n_bytes(self) -> int:
        """Its size when it is full."""
        return self.n_tokens * self.form.bytes_per_token


@dataclass(frozen=True)
class Service:
    """The teacher of a run, as the recipe wants to ask it; None where all of it was imported."""

    run: Run
    teacher: Any
    kept_ids: Sequence[int] | None
    precision: str
    world: World = ALONE

    @property
    def key(self) -> str:
        """A fingerprint of all that targets depend on but the texts and how they are asked."""
        return fingerprint(self.run.teacher.fingerprint, self.kept_ids)

    def targets(self, data: Splits, asked_of: Sequence[Encoded]) -> Asked:
        """For training at the recipe's temperature and precision; for held-out pairs at 1, exact.

        ``asked_of``: the texts of which a cache is made; those of training are among them. Held-out
        pairs are judged by the same numbers however training is asked.
        """
        wish = self.run.recipe.train
        if wish.targets == "live":
            live = live_targets(self.teacher, self.kept_ids, wish.temperature, self.precision)
            held_out, seconds = live_targets(self.teacher, self.kept_ids, 1.0), 0.0
            if wish.shard_teacher and self.world.size > 1:  # a share may be a batch shorter
                held_out, seconds = self._judging(data)
            return Asked(None if wish.texts_alone else live, held_out, seconds)
        if wish.targets == "imported":
            imported = imported_held_out(self.run, "validation", data.validation)
            held_out, seconds = (imported, 0.0) if imported else self._judging(data)
            if wish.texts_alone:
                return Asked(None, held_out, seconds)
            targets = imported_targets(self.run, self.key, asked_of)
            return Asked(self._own_samples_too(targets), held_out, seconds)
        if wish.texts_alone:
            return Asked(None, *self._judging(data))
        other = self._place(data.validation, self._held_out())
        train = self._place(asked_of, FORMS[wish.targets](self))
        self._make_room([train, other])
        before = seconds_asked(train.folder)
        held_out, targets = self._filled(other), self._filled(train)
        asking = seconds_asked(train.folder)
        seconds = asking * len(data.train) / len(asked_of) + seconds_asked(other.folder)
        targets = self._own_samples_too(targets)
        return Asked(targets, held_out, seconds / self.world.size, are_new=asking > before)

    def _judging(self, data: Splits) -> tuple[TargetFn, float]:
        """Targets of the validation pairs alone, and the seconds that they took."""
        place = self._place(data.validation, self._held_out())
        self._make_room([place])
        return self._filled(place), seconds_asked(place.folder) / self.world.size

    def of_own_texts(self, examples: Sequence[Encoded]) -> tuple[TargetFn, float]:
        """Whole distributions over texts in the teacher's own tokens, and the seconds it took."""
        wish = self.run.recipe.train
        if wish.targets == "live":
            return live_targets(self.teacher, None, wish.temperature, self.precision), 0.0
        place = self._place(examples, FORMS[wish.targets](self))
        self._make_room([place])
        return self._filled(place), seconds_asked(place.folder) / self.world.size

    def _own_samples_too(self, kept: TargetFn) -> TargetFn:
        """Kept targets, and live ones for texts that the student writes."""
        wish = self.run.recipe.train
        if not wish.on_policy:
            return kept
        live = live_targets(self.teacher, self.kept_ids, wish.temperature, self.precision)
        return by_origin(kept, live)

    def tell_fidelity(
        self, student: Any, examples: Sequence[Encoded], kept: TargetFn, objective: Objective
    ) -> None:
        """Say what kept targets differ in from live ones, on some texts that have not been seen."""
        wish = self.run.recipe.train
        live = live_targets(self.teacher, self.kept_ids, wish.temperature, self.precision)
        found = compare_targets(
            student, examples[:N_COMPARED], kept, live, objective, batch_size=N_COMPARED
        )
        say(
            f"    kept targets against live ones: loss {100 * found.bias:+.1f} %, "
            f"cosine of the gradients {found.cosine:.4f}"
        )

    def top_k(self) -> Wanted:
        """The likeliest tokens, and the tail's mass."""
        wish = self.run.recipe.train
        whole = live_targets(self.teacher, self.kept_ids, wish.temperature, self.precision)
        top_k = min(wish.top_k, self._vocab_size - 1)
        form = top_k_form(whole, self._vocab_size, top_k)
        return Wanted(form, ["top-k", wish.temperature, self.precision, top_k])

    def sampled(self) -> Wanted:
        """Tokens drawn so that they stand for all."""
        wish = self.run.recipe.train
        whole = live_targets(self.teacher, self.kept_ids, wish.temperature, self.precision)
        n_sampled = min(wish.n_sampled, self._vocab_size)
        form = sampled_form(whole, self._vocab_size, n_sampled)
        return Wanted(form, ["sampled", wish.temperature, self.precision, n_sampled])

    def hidden(self) -> Wanted:
        """The last hidden states, of which the head makes whole distributions."""
        temperature = self.run.recipe.train.temperature
        form = hidden_form(self.teacher, self.kept_ids, temperature, self.precision)
        return Wanted(form, ["hidden", self.precision])

    def _held_out(self) -> Wanted:
        top_k = min(HELD_OUT_TOP_K, self._vocab_size - 1)
        whole = live_targets(self.teacher, self.kept_ids, 1.0)
        form = top_k_form(whole, self._vocab_size, top_k, HELD_OUT_DRAWN)
        return Wanted(form, ["held out", top_k, HELD_OUT_DRAWN])

    @property
    def _vocab_size(self) -> int:
        return len(self.kept_ids or range(self.teacher.config.vocab_size))

    def _place(self, examples: Sequence[Encoded], wanted: Wanted) -> Place:
        name = fingerprint(self.key, fingerprint_examples(examples), FORMAT, wanted.how)[:16]
        return Place(self.run.targets / name, examples, wanted.form)

    def _make_room(self, places: Sequence[Place]) -> None:
        """Refuse caches that are too large before they are asked for; else remove older ones."""
        cap = self.run.recipe.train.cache_gb * 1e9
        needed = sum(place.n_bytes for place in places)
        if needed > cap:
            largest = max(places, key=lambda place: place.n_bytes)
            raise InputError(
                f"the teacher's targets for {largest.n_tokens} tokens would take "
                f"{_gigabytes(needed)}, {largest.form.bytes_per_token} bytes each; "
                f"the cap is {_gigabytes(cap)}",
                where="train.cache_gb",
                remedy="raise it, lower train.top_k, or set train.targets to sampled "
                f"({_gigabytes(largest.n_tokens * self.sampled().form.bytes_per_token)})",
            )
        keep = [place.folder.name for place in places]
        if not self.world.is_first:
            return
        for name in prune(self.run.targets, keep, room=cap - needed):
            say(f"    older targets removed, to stay within train.cache_gb: {name}")

    def _filled(self, place: Place) -> TargetFn:
        with tracked("    teacher's targets", "texts") as progress:
            fill_cache(
                place.folder,
                place.examples,
                place.form.ask,
                batch_size=TEACHER_BATCH,
                shard_seconds=self.run.recipe.train.checkpoint_seconds,
                progress=progress,
                world=self.world,
                in_step=self.run.recipe.train.shard_teacher,
            )
        return place.form.targets(TargetCache(place.folder))


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.3g} GB"


def inside_of(run: Run, teacher: Any, student: Any) -> Inside | None:
    """The losses between layers that the recipe asks for."""
    terms = [] if run.recipe.train.texts_alone else inner_terms(run.recipe.train)
    kept_layers = load_facts(run.student_init).get("kept_layers")
    return Inside(terms, student, teacher, kept_layers, run.recipe.seed) if terms else None


def inner_terms(wish: TrainSection) -> list[InnerTerm]:
    """The recipe's losses between layers, as the loop knows them."""
    return [
        InnerTerm(
            term.name,
            Schedule(term.weight.start, term.weight.end),
            tuple(term.layers) if term.layers else None,
            term.heads,
        )
        for term in wish.inside
    ]


def check_hidden(wish: TrainSection, teacher: Any, student: Any) -> None:
    """Hidden states can be compared where both have them, and of one width."""
    if not wish.hidden_weight or wish.texts_alone:
        return
    widths = [model.config.hidden_size for model in (teacher, student)]
    if widths[0] != widths[1] or not (head_is_plain(teacher) and head_is_plain(student)):
        raise InputError(
            f"the last hidden states of teacher and student ({widths[0]} and {widths[1]} wide) "
            "cannot be compared",
            where="train.hidden_weight",
            remedy="set it to 0",
        )


FORMS: Mapping[str, Callable[[Service], Wanted]] = {
    "cached": Service.top_k,
    "sampled": Service.sampled,
    "hidden": Service.hidden,
}
