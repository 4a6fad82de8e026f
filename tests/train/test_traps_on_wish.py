"""The traps of what only some recipes ask for: the proofs hold, and each fails where it should."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.data.pairs import Pair
from kdexport.train import inside, losses, on_policy, proofs, proofs_on_wish
from kdexport.train.case import WAYS, Across, Case
from kdexport.train.data import Batch, encoded
from kdexport.train.inside import INSIDE, InnerTerm, Inside
from kdexport.train.model import load_model
from kdexport.train.objective import Objective, Term
from kdexport.train.on_policy import OnPolicy
from kdexport.train.prove import prove
from kdexport.train.schedule import Schedule
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import Origin, scratch
from kdexport.train.uld import pairs_of
from tests.models import CORPUS, byte_level_bpe, make_gpt2
from tests.train.traps import Broken, Patch, Traps, is_seen, told

GRADIENT = "has its formula's gradient"
OTHER = ["Frisches Brot aus dem Ofen, heute noch warm.", "Zwei Paar Schuhe, ein Preis; das Meer."]
PLAIN = frozenset({"e1", "e3"})


def with_inside(case: Case) -> Case:
    """Every loss between layers, and a student of half of the teacher's width."""
    torch.manual_seed(0)
    narrow = StudentSpec(n_layers=3, hidden_size=32, n_heads=2)
    student = scratch(Origin(case.teacher, case.kept_ids, []), narrow).model
    terms = [InnerTerm(name, Schedule(1.0, 3.0)) for name in INSIDE]
    wish = dataclasses.replace(
        case.objective, hidden_weight=0.0, inside=Inside(terms, student, case.teacher)
    )
    return dataclasses.replace(case, student=student, objective=wish, row_length=None)


def with_own(case: Case) -> Case:
    own = OnPolicy(Schedule(0.0, 0.5), 2.0, 40, 80, frozenset({2}), seed=5)
    return dataclasses.replace(case, own=own)


@pytest.fixture(scope="module")
def gpt2_of_other_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "student"
    return make_gpt2(folder, tokenizer=byte_level_bpe(400, OTHER))


@pytest.fixture
def across(case: Case, gpt2_of_other_tokens: Path) -> Case:
    """A student of other tokens; half of the texts have no prompt."""
    theirs, own = byte_level_bpe(), byte_level_bpe(400, OTHER)
    texts = [*CORPUS[:2], *OTHER]
    asked = ({"role": "user", "content": "Text"},)
    pairs = [
        Pair(f"e{n}", "train", () if f"e{n}" in PLAIN else asked, text)
        for n, text in enumerate(texts)
    ]
    examples, others = (
        [encoded(pair, t, lambda m: m[-1]["content"], 2) for pair in pairs] for t in (own, theirs)
    )
    found = pairs_of(examples, {e.example_id: e for e in others}, theirs, own, PLAIN)
    return dataclasses.replace(
        case,
        student=load_model(gpt2_of_other_tokens),
        kept_ids=None,
        examples=examples,
        objective=Objective(terms=(Term("uld"),), temperature=2.0),
        tokenizer_from=gpt2_of_other_tokens,
        across=Across(found, theirs.decode, own.decode, PLAIN),
    )


@pytest.mark.parametrize("way", ["live", "cached", "hidden"])
def test_every_proof_holds(case: Case, way: str) -> None:
    whole = with_own(with_inside(case) if way == "live" else case)
    if way == "cached":
        plain = dataclasses.replace(case.objective, hidden_weight=0.0)
        whole = dataclasses.replace(whole, objective=plain)
    found = told(prove(dataclasses.replace(whole, way=way)))
    assert [row for row in found.values() if not row.ok] == []
    assert "own samples have no cross-entropy" in found
    assert ("relations between layers is its formula" in found) == (way == "live")


@pytest.mark.parametrize("way", ["live", "hidden"])
def test_every_proof_holds_over_other_tokens(across: Case, way: str) -> None:
    found = told(prove(dataclasses.replace(across, way=way)))
    assert [row for row in found.values() if not row.ok] == []
    assert "uld is its formula" in found and "jsd is its formula" not in found
    assert {"live", "hidden"} == {
        way for way in WAYS if f"uld of {way} targets {GRADIENT}" in found
    }
    assert "cached hidden states are the live ones" in found
    assert "KL does not depend on batches" not in found


# Broken as real ones were.


def layer_before(patch: Patch, case: Case) -> Case:
    """A layer's input is taken for its output: hidden_states[i] is that, not [i + 1]."""

    def note(seen: Any, number: int) -> Any:
        def keep(_module: Any, args: Any, _output: Any) -> None:
            seen.states[number] = args[0]

        return keep

    patch.setattr(inside, "_note_output", note)
    return with_inside(case)


def later_tokens_related(patch: Patch, case: Case) -> Case:
    """Relations to tokens that come later, and to padding."""
    patch.setattr(inside, "NEVER", 0.0)
    return with_inside(case)


def angle_without_projection(patch: Patch, case: Case) -> Case:
    """The gradient stops before the projection."""
    right = inside._hidden_cosine

    def still(mine: Any, theirs: Any, place: Any) -> Any:
        project = place.project
        place = dataclasses.replace(place, project=lambda states: project(states).detach())
        return right(mine, theirs, place)

    patch.setattr(inside, "INSIDE", {**INSIDE, "hidden_cosine": inside.InnerLoss(still)})
    return with_inside(case)


def projections_never_learnt(patch: Patch, case: Case) -> Case:
    patch.setattr(Objective, "learner", lambda wish, student: student)
    return with_inside(case)


def prompts_lost(patch: Patch, case: Case) -> Case:
    """A text's first token is taken for padding and cut off."""
    right = on_policy.collate

    def shorter(examples: Any, row_length: int | None = None) -> Batch:
        return right([dataclasses.replace(e, ids=e.ids[1:]) for e in examples])

    patch.setattr(on_policy, "collate", shorter)
    return with_own(case)


def end_overrun(patch: Patch, case: Case) -> Case:
    """A text goes on behind its end."""
    right = on_policy.sample

    def on(of: Any, prompts: Any, rooms: Any, t: float, _: Any, draws: Any) -> Any:
        return right(of, prompts, rooms, t, frozenset(), draws)

    patch.setattr(on_policy, "sample", on)
    case = with_own(case)
    assert case.own is not None
    return dataclasses.replace(
        case, own=dataclasses.replace(case.own, end_ids=frozenset(range(2, 90)))
    )


def drawn_anew(patch: Patch, case: Case) -> Case:
    """Draws come from one generator for the whole process: no run can go on as it was."""
    every = np.random.default_rng(0)
    patch.setattr(on_policy.np.random, "default_rng", lambda seed: every)
    return with_own(case)


def left_in_evaluation(patch: Patch, case: Case) -> Case:
    right = on_policy.sample

    def asleep(of: Any, *rest: Any, **more: Any) -> Any:
        found = right(of, *rest, **more)
        of.eval()
        return found

    patch.setattr(on_policy, "sample", asleep)
    return with_own(case)


def temperature_forgotten(patch: Patch, case: Case) -> Case:
    right = on_policy.sample

    def at_one(of: Any, prompts: Any, rooms: Any, _: float, *rest: Any, **more: Any) -> Any:
        return right(of, prompts, rooms, 1.0, *rest, **more)

    patch.setattr(on_policy, "sample", at_one)
    return with_own(case)


def padding_read(patch: Patch, case: Case) -> Case:
    """Prompts are padded on the left and nothing masks it."""
    right = torch.zeros_like

    def ones(of: torch.Tensor, **more: Any) -> torch.Tensor:
        return right(of, **more) + (of.dtype == torch.long)

    patch.setattr(on_policy.torch, "zeros_like", ones)
    lengths = [dataclasses.replace(e, first_completion=2 + n) for n, e in enumerate(case.examples)]
    return with_own(dataclasses.replace(case, examples=lengths))


def samples_learnt_as_texts(patch: Patch, case: Case) -> Case:
    patch.setattr(Batch, "is_own", False)
    return with_own(case)


def judged_before_written(patch: Patch, case: Case) -> Case:
    """The teacher is asked of the texts that were given."""
    given = {e.example_id: e for e in case.examples}

    def swapped(_: Any, own: Any) -> Any:
        def ask(batch: Batch) -> Any:
            lengths = {e.example_id: len(e.ids) for e in batch.examples}
            texts = [np.resize(given[i].ids, n) for i, n in lengths.items()]
            ids = torch.zeros_like(batch.ids)
            for row, text in enumerate(texts):
                ids[row, : len(text)] = torch.from_numpy(text)
            return own(dataclasses.replace(batch, ids=ids))

        return ask

    patch.setattr(proofs, "by_origin", swapped)
    return with_own(case)


def paired_by_number(patch: Patch, case: Case) -> Case:
    """The t-th token with the t-th, as the paper has it: they are of different words."""
    assert case.across is not None
    pairs = {
        name: dataclasses.replace(
            pair,
            partners=np.where(
                np.arange(len(pair.partners)) < pair.teacher.n_completion,
                np.arange(len(pair.partners)),
                -1,
            ),
        )
        for name, pair in case.across.pairs.items()
    }
    return dataclasses.replace(case, across=dataclasses.replace(case.across, pairs=pairs))


def first_tokens_forgotten(patch: Patch, case: Case) -> Case:
    """Texts without a prompt are paired as if they began with their second token."""
    assert case.across is not None
    theirs, own = byte_level_bpe(), byte_level_bpe(400, OTHER)
    others = {name: pair.teacher for name, pair in case.across.pairs.items()}
    pairs = pairs_of(case.examples, others, theirs, own)
    return dataclasses.replace(case, across=dataclasses.replace(case.across, pairs=pairs))


def no_pairs(patch: Patch, case: Case) -> Case:
    assert case.across is not None
    pairs = {
        name: dataclasses.replace(pair, partners=np.full_like(pair.partners, -1))
        for name, pair in case.across.pairs.items()
    }
    return dataclasses.replace(case, across=dataclasses.replace(case.across, pairs=pairs))


def unsorted(patch: Patch, case: Case) -> None:
    """Probabilities are compared in the order of their numbers."""
    patch.setattr(losses, "_by_rank", lambda logprobs: logprobs)


TRAPS: Traps = {
    layer_before: (
        proofs_on_wish.inner_losses_are_their_formulas,
        "hidden between layers is its formula",
    ),
    later_tokens_related: (
        proofs_on_wish.inner_losses_are_their_formulas,
        "relations between layers is its formula",
    ),
    angle_without_projection: (
        proofs_on_wish.inner_losses_are_their_formulas,
        "hidden_cosine between layers is its formula",
    ),
    projections_never_learnt: (
        proofs_on_wish.projections_are_learnt,
        "projections are learnt beside the student",
    ),
    prompts_lost: (
        proofs_on_wish.own_samples_are_the_student_s,
        "own samples go on from their prompts, and end",
    ),
    end_overrun: (
        proofs_on_wish.own_samples_are_the_student_s,
        "own samples go on from their prompts, and end",
    ),
    drawn_anew: (
        proofs_on_wish.own_samples_are_the_student_s,
        "a step draws the same samples again",
    ),
    left_in_evaluation: (
        proofs_on_wish.own_samples_are_the_student_s,
        "training goes on after samples",
    ),
    temperature_forgotten: (
        proofs_on_wish.own_samples_are_the_student_s,
        "own samples are drawn by the student's distribution",
    ),
    padding_read: (
        proofs_on_wish.own_samples_are_the_student_s,
        "cold samples are the likeliest tokens",
    ),
    samples_learnt_as_texts: (
        proofs_on_wish.own_samples_are_judged_by_the_teacher,
        "own samples have no cross-entropy",
    ),
    judged_before_written: (
        proofs_on_wish.own_samples_are_judged_by_the_teacher,
        "teacher and student read own samples at the same places",
    ),
}
OVER_OTHER_TOKENS: Traps = {
    paired_by_number: (
        proofs_on_wish.other_tokens_are_paired,
        "paired tokens follow the same text",
    ),
    first_tokens_forgotten: (
        proofs_on_wish.other_tokens_are_paired,
        "paired tokens follow the same text",
    ),
    no_pairs: (proofs_on_wish.other_tokens_are_paired, "every text has paired tokens"),
    unsorted: (proofs.losses_are_their_formulas, "uld is its formula"),
}


@pytest.mark.parametrize("broken", TRAPS, ids=lambda broken: broken.__name__)
def test_what_real_projects_got_wrong_is_seen(
    case: Case, monkeypatch: Patch, broken: Broken
) -> None:
    assert is_seen(broken, TRAPS, case, monkeypatch)


@pytest.mark.parametrize("broken", OVER_OTHER_TOKENS, ids=lambda broken: broken.__name__)
def test_what_is_wrong_over_other_tokens_is_seen(
    across: Case, monkeypatch: Patch, broken: Broken
) -> None:
    assert is_seen(broken, OVER_OTHER_TOKENS, across, monkeypatch)


def test_every_proof_can_fail() -> None:
    seen = {rows for rows, _ in (*TRAPS.values(), *OVER_OTHER_TOKENS.values())}
    assert seen >= set(proofs_on_wish.ON_WISH)
