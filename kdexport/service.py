"""The teacher of a run as a service of targets: as the recipe wants to ask it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.console import tracked
from kdexport.errors import InputError
from kdexport.journal import fingerprint
from kdexport.pipeline import Run
from kdexport.splits import Splits
from kdexport.train.data import Batch, Encoded
from kdexport.train.model import head_is_plain
from kdexport.train.teacher import (
    Columns,
    TargetFn,
    cached_targets,
    fill_cache,
    fingerprint_examples,
    hidden_columns,
    live_targets,
    seconds_asked,
    targets_of_hidden,
    top_k_columns,
    top_k_targets,
)
from kdexport.train_section import TrainSection

HELD_OUT_DRAWN = 64
TEACHER_BATCH = 16


@dataclass(frozen=True)
class Asked:
    """Targets for training and for held-out pairs, and how long the teacher took beforehand.

    ``train`` is None where λ is 0.
    """

    train: TargetFn | None
    held_out: TargetFn
    seconds: float


@dataclass(frozen=True)
class Service:
    """The teacher of a run, as the recipe wants to ask it."""

    run: Run
    teacher: Any
    kept_ids: Sequence[int] | None
    precision: str

    @property
    def key(self) -> str:
        """A fingerprint of all that targets depend on but the texts and how they are asked."""
        return fingerprint(self.run.teacher.fingerprint, self.kept_ids)

    def targets(self, data: Splits, asked_of: Sequence[Encoded]) -> Asked:
        """For training at the recipe's temperature; for held-out pairs at 1.

        ``asked_of``: the texts of which a cache is made; those of training are among them.
        """
        wish = self.run.recipe.train
        if wish.targets == "live":
            live = live_targets(self.teacher, self.kept_ids, wish.temperature)
            held_out = live_targets(self.teacher, self.kept_ids, 1.0)
            return Asked(None if wish.texts_alone else live, held_out, 0.0)
        other, held_out = self._top_k(data.validation, 1.0, HELD_OUT_DRAWN)
        if wish.texts_alone:
            return Asked(None, held_out, seconds_asked(other))
        fill = {"cached": self._top_k, "hidden": self._hidden}[wish.targets]
        folder, train = fill(asked_of, wish.temperature)
        share = len(data.train) / len(asked_of)
        return Asked(train, held_out, share * seconds_asked(folder) + seconds_asked(other))

    def _top_k(
        self, examples: Sequence[Encoded], temperature: float, n_drawn: int = 0
    ) -> tuple[Path, TargetFn]:
        size = len(self.kept_ids or range(self.teacher.config.vocab_size))
        top_k = min(self.run.recipe.train.top_k, size - 1)
        whole = live_targets(self.teacher, self.kept_ids, temperature)
        ask = top_k_columns(top_k_targets(whole, top_k, n_drawn))
        folder = self._fill(examples, ask, ["top-k", temperature, top_k, n_drawn])
        return folder, cached_targets(folder, n_drawn)

    def _hidden(self, examples: Sequence[Encoded], temperature: float) -> tuple[Path, TargetFn]:
        columns = hidden_columns(self.teacher, self.kept_ids, self.precision)
        folder = self._fill(examples, columns, ["hidden", self.precision])
        return folder, targets_of_hidden(folder, self.teacher, self.kept_ids, temperature)

    def _fill(
        self, examples: Sequence[Encoded], ask: Callable[[Batch], Columns], how: Sequence[Any]
    ) -> Path:
        name = fingerprint(self.key, fingerprint_examples(examples), how)[:16]
        folder = self.run.targets / name
        with tracked("    teacher's targets", "texts") as progress:
            fill_cache(folder, examples, ask, batch_size=TEACHER_BATCH, progress=progress)
        return folder


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
