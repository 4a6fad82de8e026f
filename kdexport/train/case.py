"""What is examined, and the ways in which a teacher is asked; a row of what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdexport.train.cache import TargetCache, fill_cache
from kdexport.train.columns import Form, hidden_form, sampled_form, top_k_form
from kdexport.train.data import Encoded
from kdexport.train.losses import LOSSES
from kdexport.train.objective import Objective, Term
from kdexport.train.on_policy import OnPolicy
from kdexport.train.teacher import TargetFn, live_targets
from kdexport.train.uld import Paired, paired_targets

Spell = Callable[[Any], str]


@dataclass(frozen=True)
class Proof:
    """One row: what was measured and how much of it is allowed; ``note`` says what it is."""

    name: str
    measured: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it holds; what is not finite does not."""
        return self.measured <= self.tolerance


@dataclass(frozen=True)
class Across:
    """What is known of a student of other tokens.

    ``pairs``: by the examples' ids. ``teacher_spells``, ``student_spells``: ids -> text. ``plain``:
    the ids of texts without a prompt.
    """

    pairs: Mapping[str, Paired]
    teacher_spells: Spell
    student_spells: Spell
    plain: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """What is examined, all in float32.

    ``examples``: a handful, of different lengths, in the student's tokens. ``folder``: to write in.
    ``teacher_tokens`` and ``student_tokens``: id -> token. ``tokenizer_from``: where the student's
    tokenizer lies. ``splits``: the texts of each split, as they are read. ``way``: of `WAYS`, how
    steps ask the teacher. ``own``: how the student writes texts of its own, where it does.
    ``across``: None where the tokens are the teacher's. ``row_length``: of packed rows, where
    texts are to be packed.
    """

    teacher: Any
    student: Any
    kept_ids: Sequence[int] | None
    examples: Sequence[Encoded]
    objective: Objective
    folder: Path
    top_k: int
    teacher_tokens: Mapping[int, str]
    student_tokens: Mapping[int, str]
    tokenizer_from: Path
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    way: str = "live"
    n_sampled: int = 12
    own: OnPolicy | None = None
    across: Across | None = None
    row_length: int | None = None

    @property
    def losses(self) -> Sequence[str]:
        """The divergences that there can be."""
        return ["uld"] if self.across else list(LOSSES)

    @property
    def plain(self) -> Objective:
        """The plainest objective: one divergence at a temperature of 1."""
        return Objective((Term("uld"),) if self.across else (Term(),))

    @property
    def n_kept(self) -> int:
        """Of how many tokens a cache keeps the probability."""
        return min(self.top_k, int(self.student.config.vocab_size) - 1)


def live(case: Case) -> TargetFn:
    """Whole distributions, asked at every call."""
    ask = live_targets(case.teacher, case.kept_ids, case.objective.temperature)
    if case.objective.inside:
        ask = case.objective.inside.of_teacher(ask, case.teacher)
    return paired_targets(ask, case.across.pairs) if case.across else ask


def cached(case: Case) -> TargetFn:
    """The likeliest tokens and the mass of the rest, from a file."""
    form = top_k_form(live(case), int(case.student.config.vocab_size), case.n_kept)
    return _from_disk(case, "cached", form)


def sampled(case: Case) -> TargetFn:
    """Tokens that were drawn to stand for all, from a file."""
    vocab_size = int(case.student.config.vocab_size)
    form = sampled_form(live(case), vocab_size, min(case.n_sampled, vocab_size))
    return _from_disk(case, "sampled", form)


def hidden(case: Case) -> TargetFn:
    """Whole distributions of hidden states, from a file."""
    temperature = case.objective.temperature
    form = hidden_form(case.teacher, case.kept_ids, temperature, "float32")
    return _from_disk(case, "hidden", form)


def _from_disk(case: Case, name: str, form: Form) -> TargetFn:
    folder = case.folder / name
    across = case.across
    examples = [across.pairs[e.example_id].teacher if across else e for e in case.examples]
    fill_cache(folder, examples, form.ask, batch_size=2)
    kept = form.targets(TargetCache(folder))
    return paired_targets(kept, across.pairs) if across else kept


WAYS: Mapping[str, Callable[[Case], TargetFn]] = {
    "live": live,
    "cached": cached,
    "sampled": sampled,
    "hidden": hidden,
}
