"""Every loss on every path is its formula, and broken paths are seen: one way of asking, of laying
out rows or of cutting the head that is wrong while all others are right.
"""

import dataclasses
from typing import Any

import pytest
import torch

from kdexport.errors import InputError
from kdexport.recipe.train import PARTS
from kdexport.train import columns, model, objective, proofs, proofs_on_paths
from kdexport.train.case import WAYS, Case
from kdexport.train.data import Batch
from kdexport.train.losses import LOSSES
from kdexport.train.objective import Objective, Term
from kdexport.train.proofs_on_paths import ON_PATHS, every_path_is_the_formula
from kdexport.train.sampled import Drawn
from kdexport.train.schedule import Schedule
from kdexport.train.targets import Targets
from tests.train.traps import Broken, Patch, Traps, is_seen, told

VALUE = "is its formula, from texts to loss"
GRADIENT = "has its formula's gradient"


def of(case: Case, *terms: Term, **wishes: Any) -> dict[str, Any]:
    """The rows of a case whose objective is of these divergences."""
    wish = dataclasses.replace(case.objective, terms=terms, **wishes)
    return told(every_path_is_the_formula(dataclasses.replace(case, objective=wish)))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_its_formula_on_every_path(case: Case, name: str) -> None:
    """From texts to a batch's sum and its gradient, by padded or packed rows, kept targets and
    chunks of the head: each token at its place and with its weight.
    """
    wish = {"task_weight": Schedule(0.5, 1.0)}
    rows = of(case, Term(name), **wish)
    assert [row for row in rows.values() if not row.ok] == []
    ways = [way for way in WAYS if not (LOSSES[name].whole and way in PARTS)]
    assert [*rows] == [
        f"{name} of {way} targets {what}" for way in ways for what in (VALUE, GRADIENT)
    ]
    assert all(
        row.note.startswith("rows padded; rows packed, the head by 5") for row in rows.values()
    )


def test_losses_of_a_sum_are_looked_at_one_by_one_with_their_parameters(case: Case) -> None:
    rows = of(case, Term("jsd", Schedule(0.0, 9.0), 0.3), Term("skew_kl", parameter=0.7))
    assert [row for row in rows.values() if not row.ok] == []
    assert {name.split(" of ")[0] for name in rows} == {"jsd", "skew_kl"}


def test_only_what_the_teacher_allows_is_looked_at(case: Case, monkeypatch: Patch) -> None:
    def refuse(_: Any) -> None:
        raise InputError("does not keep packed texts apart")

    monkeypatch.setattr(proofs_on_paths, "check_packing", refuse)
    monkeypatch.setattr(case.teacher, "_kdexport_plain_head", False)
    rows = of(case, Term())
    assert [row for row in rows.values() if not row.ok] == []
    assert not any("hidden" in name for name in rows) and len(rows) == 6
    assert all(row.note.startswith("rows padded; rows padded, ") for row in rows.values())
    assert of(case, Term(), kd_weight=Schedule(0.0, 0.0)) == {}


def test_few_texts_are_read(case: Case, monkeypatch: Patch) -> None:
    asked = []
    right = proofs_on_paths.read_alone

    def counted(of: Case, example: Any) -> Any:
        asked.append(len(example.ids))
        return right(of, example)

    monkeypatch.setattr(proofs_on_paths, "read_alone", counted)
    of(case, Term())
    assert asked == [9, 14, 19] * 2  # whole, and with top k


# One path broken, the others right.


def rows_of_the_first_chunk(patch: Patch, case: Case) -> None:
    """Each chunk reads kept targets from the first on."""
    patch.setattr(Targets, "rows", lambda self, rows: self._each(lambda x: x[: len(x[rows])]))


def weights_by_row(patch: Patch, case: Case) -> None:
    """A packed row has the weight of its first text."""
    right = Batch.weights

    def of_rows(batch: Batch) -> torch.Tensor:
        assert isinstance(right, property) and right.fget
        weights: torch.Tensor = right.fget(batch)
        return weights if batch.row_length is None else torch.full_like(weights, weights[0])

    patch.setattr(Batch, "weights", property(of_rows))


def tail_left_out(patch: Patch, case: Case) -> None:
    """Of a cache the likeliest tokens alone are read."""
    right = columns.read_top_k

    def cut(*kept: Any, **more: Any) -> Targets:
        return dataclasses.replace(right(*kept, **more), tail=None)

    patch.setattr(columns, "read_top_k", cut)


def draws_normalised(patch: Patch, case: Case) -> None:
    """What drawn tokens stand for is made to add up to one."""
    right = Drawn.targets

    def plain(self: Drawn) -> Targets:
        targets = right(self)
        assert targets.stands_for is not None
        return dataclasses.replace(
            targets, stands_for=targets.stands_for / targets.stands_for.sum()
        )

    patch.setattr(Drawn, "targets", plain)


def head_without_temperature(patch: Patch, case: Case) -> None:
    """Kept hidden states become distributions at a temperature of 1."""
    right = columns.HeadTargets
    patch.setattr(columns, "HeadTargets", lambda *parts: right(*parts[:3], 1.0))


def gradient_of_the_last_chunk(patch: Patch, case: Case) -> None:
    """The loss is that of all chunks, the head learns from one."""
    right = objective._add_product

    def last(total: Any, slope: Any, inputs: Any) -> None:
        if len(inputs) != proofs.CHUNK_ROWS:
            right(total, slope, inputs)

    patch.setattr(objective, "_add_product", last)


def prompts_in_full(patch: Patch, case: Case) -> Case:
    """A prompt's token counts as a completion's."""
    right = proofs_on_paths.objective.batch_loss

    def heavy(
        student: Any, batch: Any, asked: Any, wish: Objective, *rest: Any, **more: Any
    ) -> Any:
        return right(
            student, batch, asked, dataclasses.replace(wish, prompt_weight=1.0), *rest, **more
        )

    patch.setattr(proofs_on_paths.objective, "batch_loss", heavy)
    return case


def read_across_a_row(patch: Patch, case: Case) -> None:
    """The student reads packed texts as one; the teacher's targets were kept text by text."""
    right = model.read_batch

    def joined(of: Any, batch: Batch) -> Any:
        return right(
            of, dataclasses.replace(batch, positions=None) if of is case.student else batch
        )

    patch.setattr(objective, "read_batch", joined)


def named(way: str, what: str = VALUE) -> str:
    return f"forward_kl of {way} targets {what}"


TRAPS: Traps = {
    rows_of_the_first_chunk: (every_path_is_the_formula, named("cached")),
    weights_by_row: (every_path_is_the_formula, named("live")),
    tail_left_out: (every_path_is_the_formula, named("cached")),
    draws_normalised: (every_path_is_the_formula, named("sampled")),
    head_without_temperature: (every_path_is_the_formula, named("hidden")),
    gradient_of_the_last_chunk: (every_path_is_the_formula, named("live", GRADIENT)),
    prompts_in_full: (every_path_is_the_formula, named("live")),
    read_across_a_row: (every_path_is_the_formula, named("cached")),
}
ALONE = (rows_of_the_first_chunk, tail_left_out, draws_normalised, head_without_temperature)


@pytest.mark.parametrize("broken", TRAPS, ids=lambda broken: broken.__name__)
def test_what_is_broken_on_one_path_is_seen(case: Case, monkeypatch: Patch, broken: Broken) -> None:
    assert is_seen(broken, TRAPS, case, monkeypatch)


@pytest.mark.parametrize("broken", ALONE, ids=lambda broken: broken.__name__)
def test_and_live_targets_are_right_then(case: Case, monkeypatch: Patch, broken: Broken) -> None:
    """So that no other way of asking would have shown it."""
    broken(monkeypatch, case)
    rows = told(every_path_is_the_formula(case))
    assert rows[named("live")].ok and rows[named("live", GRADIENT)].ok


def test_every_proof_can_fail() -> None:
    assert {rows for rows, _ in TRAPS.values()} == {*ON_PATHS}
