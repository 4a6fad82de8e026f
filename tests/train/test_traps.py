"""Each trap of distillation, by the proofs that `kdexport doctor RECIPE` runs: they hold over every
loss and way of asking, and each fails where an implementation is broken as real ones were.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from kdexport.recipe.train import PARTS
from kdexport.train import case as material
from kdexport.train import losses, model, objective, proofs, step, teacher
from kdexport.train import proofs_on_files as on_files
from kdexport.train.cache import Columns, TargetCache
from kdexport.train.case import WAYS, Case
from kdexport.train.data import Batch, Encoded
from kdexport.train.evaluate import Evaluation
from kdexport.train.formulas import REFERENCES
from kdexport.train.losses import LOSSES
from kdexport.train.objective import Objective, Term
from kdexport.train.prove import prove
from kdexport.train.schedule import Schedule
from kdexport.train.targets import HeadTargets, Targets
from tests.train.traps import Broken, Patch, Traps, is_seen, told


def test_every_proof_holds(case: Case) -> None:
    found = told(prove(case))
    assert [row for row in found.values() if not row.ok] == []
    assert len(found) > 2 * len(LOSSES) + 15
    assert "less than all" in found["cached targets are the live ones"].note


def test_every_loss_has_a_formula() -> None:
    assert REFERENCES.keys() == LOSSES.keys()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_losses_hold_at_any_temperature(case: Case, temperature: float) -> None:
    wish = dataclasses.replace(case.objective, temperature=temperature)
    rows = told(proofs.losses_are_their_formulas(dataclasses.replace(case, objective=wish)))
    assert [row for row in rows.values() if not row.ok] == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_no_step_depends_on_its_batches(
    case: Case, name: str, way: str, monkeypatch: Patch
) -> None:
    """Padding, company, accumulation, halving and chunks, for each loss and way of asking."""
    if way in PARTS and LOSSES[name].whole:
        pytest.skip("needs whole distributions")
    small_chunks(monkeypatch)
    wish = dataclasses.replace(
        case.objective, terms=(Term(name),), hidden_weight=0.0 if way in PARTS else 0.2
    )
    case = dataclasses.replace(case, objective=wish, way=way)
    for rows in (proofs.steps_do_not_depend_on_batches, proofs.chunks_are_the_plain_loss):
        assert [row for row in rows(case) if not row.ok] == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_soft_gradient_keeps_its_size_on_every_path(case: Case, name: str, way: str) -> None:
    """Of a whole step, where T doubles from 32: without T² it would be a quarter, with T a half.

    All tokens are drawn: of fewer, T² enlarges the noise, and only the mean keeps its size.
    """
    if way in PARTS and LOSSES[name].whole:
        pytest.skip("needs whole distributions")

    def length(temperature: float) -> float:
        wish = Objective((Term(name),), task_weight=Schedule(0.0, 0.0), temperature=temperature)
        folder, n_all = case.folder / str(temperature), int(case.student.config.vocab_size)
        own = dataclasses.replace(case, objective=wish, way=way, folder=folder, n_sampled=n_all)
        return float(proofs.step_gradient(own, [proofs.collate(case.examples)]).norm())

    assert length(64.0) / length(32.0) == pytest.approx(1.0, abs=0.03)  # seen: at most 0.012


def small_chunks(monkeypatch: Patch) -> None:
    def fives(n: int, *_: int | None) -> list[slice]:
        return [slice(i, min(i + 5, n)) for i in range(0, n, 5)]

    monkeypatch.setattr(objective, "runs", fives)


# What real projects got wrong, and the rows that see it.


def by_vocabulary(patch: Patch, case: Case) -> None:
    """KLDivLoss's mean divides by the vocabulary too."""
    right = losses.distance

    def mean(name: str, logits: Any, *rest: Any) -> Any:
        return right(name, logits, *rest) / logits.shape[-1]

    patch.setattr(losses, "distance", mean)


def tail_renormalised(patch: Patch, case: Case) -> None:
    right = losses.distance

    def cut(name: str, logits: Any, asked: Targets, *rest: Any) -> Any:
        if asked.ids is not None:
            asked = Targets(torch.log_softmax(asked.logprobs, -1), asked.ids)
        return right(name, logits, asked, *rest)

    patch.setattr(losses, "distance", cut)


def without_t_squared(patch: Patch, case: Case) -> None:
    right = objective.soft_distance

    def plain(logits: Any, asked: Any, wish: Objective, progress: float) -> Any:
        return right(logits, asked, wish, progress) / wish.temperature**2

    patch.setattr(objective, "soft_distance", plain)


def first_order_by_t_squared(patch: Patch, case: Case) -> None:
    wrong = dataclasses.replace(LOSSES["total_variation"], order=2)
    patch.setattr(losses, "LOSSES", {**LOSSES, "total_variation": wrong})
    patch.setattr(objective, "LOSSES", losses.LOSSES)


def labels_unshifted(patch: Patch, case: Case) -> None:
    patch.setattr(Batch, "labels", property(lambda batch: batch.ids[:, :-1][batch.targets]))


def mask_unshifted(patch: Patch, case: Case) -> None:
    """The teacher is read one place too late."""
    right = model.read_batch

    def late(of: Any, batch: Batch) -> Any:
        if of is case.teacher:
            batch = dataclasses.replace(batch, targets=batch.targets.roll(1, 1))
        return right(of, batch)

    patch.setattr(teacher, "read_batch", late)


def prompts_learnt(patch: Patch, case: Case) -> None:
    every = property(lambda batch: torch.ones(batch.n_targets, dtype=torch.bool))
    patch.setattr(Batch, "is_completion", every)


def by_micro_batch(patch: Patch, case: Case) -> None:
    """Each batch's mean, averaged: short texts count more when they come alone."""
    right = step.batch_loss

    def mean(student: Any, batch: Batch, *rest: Any, **more: Any) -> Any:
        found = right(student, batch, *rest, **more)
        return dataclasses.replace(found, loss=found.loss / batch.n_completion)

    patch.setattr(step, "batch_loss", mean)


def by_padded_length(patch: Patch, case: Case) -> None:
    right = step.batch_loss

    def mean(student: Any, batch: Batch, *rest: Any, **more: Any) -> Any:
        found = right(student, batch, *rest, **more)
        return dataclasses.replace(found, loss=found.loss / batch.ids.numel())

    patch.setattr(step, "batch_loss", mean)


def padding_learnt(patch: Patch, case: Case) -> None:
    right = step.batch_loss

    def padded(student: Any, batch: Batch, *rest: Any, **more: Any) -> Any:
        found = right(student, batch, *rest, **more)
        logits = student(batch.ids, use_cache=False).logits[:, :-1]
        return dataclasses.replace(found, loss=found.loss + logits.logsumexp(-1).sum())

    patch.setattr(step, "batch_loss", padded)


def mean_of_batch_means(patch: Patch, case: Case) -> None:
    right = proofs.evaluate

    def averaged(student: Any, held_out: Any, ask: Any, size: int) -> Evaluation:
        parts = [held_out[i : i + size] for i in range(0, len(held_out), size)]
        found = [right(student, part, ask, size) for part in parts]
        kl, perplexity = (
            sum(getattr(one, name) for one in found) / len(found) for name in ("kl", "perplexity")
        )
        return Evaluation(kl, None, perplexity)

    patch.setattr(proofs, "evaluate", averaged)


def last_chunk_lost(patch: Patch, case: Case) -> None:
    small_chunks(patch)
    right = objective.runs
    patch.setattr(objective, "runs", lambda *sizes: right(*sizes)[:-1])


def head_without_gradient(patch: Patch, case: Case) -> Case:
    right = objective.head_of

    def still(of: Any, *rest: Any) -> Any:
        weight, bias = right(of, *rest)
        return weight.detach(), bias

    patch.setattr(objective, "head_of", still)
    return case


def seen_across_a_row(patch: Patch, case: Case) -> None:
    """Packed texts without positions of their own attend to the text before them."""
    patch.setattr(Batch, "inputs", lambda batch, device: {"input_ids": batch.ids.to(device)})


def first_of_the_next_text(patch: Patch, case: Case) -> None:
    """The last token of a packed text learns to predict the first of the next."""
    right = proofs.collate

    def shifted(texts: Any, row_length: int | None = None) -> Batch:
        batch = right(texts, row_length)
        if row_length is None:
            return batch
        return dataclasses.replace(batch, targets=batch.targets.roll(1, dims=1))

    patch.setattr(proofs, "collate", shifted)


def teacher_with_dropout(patch: Patch, case: Case) -> Case:
    class Noisy(torch.nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x, 0.1, True)

    noisy = copy.deepcopy(case.teacher)
    noisy.model.layers[0].mlp.act_fn = torch.nn.Sequential(
        noisy.model.layers[0].mlp.act_fn, Noisy()
    )
    return dataclasses.replace(case, teacher=noisy)


def teacher_in_training(patch: Patch, case: Case) -> Case:
    return dataclasses.replace(case, teacher=copy.deepcopy(case.teacher).train())


def shared_module(patch: Patch, case: Case) -> Case:
    """The student's layer is the teacher's own: it learns, and is switched to training."""
    student, whole = copy.deepcopy(case.student), copy.deepcopy(case.teacher)
    student.model.layers[0] = whole.model.layers[0]
    return dataclasses.replace(case, student=student, teacher=whole)


def teacher_with_gradient(patch: Patch, case: Case) -> None:
    def learning(of: Any, kept_ids: Any, temperature: float) -> Any:
        kept = torch.as_tensor(kept_ids)
        weight, bias = model.head_of(of, kept)

        def ask(batch: Batch) -> HeadTargets:
            hidden = model.read_batch(of, batch.renamed(kept)).hidden
            assert hidden is not None
            return HeadTargets(hidden, weight.detach(), bias, temperature)

        return ask

    patch.setattr(material, "live_targets", learning)


def teacher_reads_padding(patch: Patch, case: Case) -> None:
    """Pads come first and nothing masks them."""
    right = model.read_batch

    def left(of: Any, batch: Batch) -> Any:
        if of is case.teacher:
            widths = [batch.ids.shape[1] - len(e.ids) for e in batch.examples]
            ids = torch.stack([r.roll(w) for r, w in zip(batch.ids, widths, strict=True)])
            places = torch.stack([r.roll(w) for r, w in zip(batch.targets, widths, strict=True)])
            batch = dataclasses.replace(batch, ids=ids, targets=places)
        return right(of, batch)

    patch.setattr(teacher, "read_batch", left)


def cache_by_place(patch: Patch, case: Case) -> None:
    """Keyed by the place in a batch: other batches read others' targets."""
    right = TargetCache.columns

    def placed(self: TargetCache, batch: Batch) -> Columns:
        return {name: values.flip(0) for name, values in right(self, batch).items()}

    patch.setattr(TargetCache, "columns", placed)


def other_tokens(patch: Patch, case: Case) -> Case:
    """As many, two of them exchanged."""
    tokens = {**case.student_tokens, 5: case.student_tokens[6], 6: case.student_tokens[5]}
    return dataclasses.replace(case, student_tokens=tokens)


def padded_vocabulary(patch: Patch, case: Case) -> Case:
    """The head has rows that no token stands for."""
    student = copy.deepcopy(case.student)
    student.resize_token_embeddings(176)
    return dataclasses.replace(case, student=student)


def nothing_to_learn(patch: Patch, case: Case) -> Case:
    empty = Encoded("empty", np.arange(3, 9), 6, 6)
    return dataclasses.replace(case, examples=[*case.examples, empty])


def head_written_twice(patch: Patch, case: Case) -> None:
    def twice(student: Any, folder: Path, **_: Any) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        every = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        save_file(every, folder / "model.safetensors")

    patch.setattr(on_files, "save_model", twice)


def trained_on_test_texts(patch: Patch, case: Case) -> Case:
    return dataclasses.replace(case, splits={**case.splits, "test": ["fresh  BREAD"]})


TRAPS: Traps = {
    by_vocabulary: (proofs.losses_are_their_formulas, "forward_kl is its formula"),
    tail_renormalised: (proofs.losses_are_their_formulas, "skew_kl is its formula"),
    without_t_squared: (proofs.gradients_keep_their_size, "jsd keeps its gradient as T grows"),
    first_order_by_t_squared: (
        proofs.gradients_keep_their_size,
        "total_variation keeps its gradient as T grows",
    ),
    labels_unshifted: (proofs.one_mask_is_shifted, "texts are read at the shifted places"),
    mask_unshifted: (proofs.one_mask_is_shifted, "teacher and student are read at the same places"),
    prompts_learnt: (proofs.one_mask_is_shifted, "texts are read at the shifted places"),
    by_micro_batch: (proofs.steps_do_not_depend_on_batches, "accumulation changes no gradient"),
    by_padded_length: (proofs.steps_do_not_depend_on_batches, "padding changes no gradient"),
    padding_learnt: (proofs.steps_do_not_depend_on_batches, "padding changes no gradient"),
    seen_across_a_row: (proofs.steps_do_not_depend_on_batches, "packing changes no gradient"),
    first_of_the_next_text: (
        proofs.steps_do_not_depend_on_batches,
        "packing changes no gradient",
    ),
    mean_of_batch_means: (
        proofs.judging_does_not_depend_on_batches,
        "perplexity does not depend on batches",
    ),
    last_chunk_lost: (proofs.chunks_are_the_plain_loss, "chunks give the plain gradient"),
    head_without_gradient: (proofs.chunks_are_the_plain_loss, "chunks give the plain gradient"),
    teacher_with_dropout: (proofs.teacher_is_at_rest, "the teacher says the same twice"),
    teacher_in_training: (proofs.teacher_is_at_rest, "the teacher stays in evaluation mode"),
    shared_module: (proofs.teacher_is_at_rest, "teacher and student share no weights"),
    teacher_with_gradient: (proofs.teacher_is_at_rest, "the teacher gets no gradient"),
    teacher_reads_padding: (proofs.teacher_is_at_rest, "the teacher says the same of a text alone"),
    cache_by_place: (proofs.caches_are_near_the_teacher, "cached targets are the live ones"),
    other_tokens: (on_files.tokens_are_the_same, "the tokens are the teacher's, one by one"),
    padded_vocabulary: (on_files.tokens_are_the_same, "logits are as wide on both sides"),
    nothing_to_learn: (
        on_files.every_example_has_targets,
        "every text has a token to learn",
    ),
    head_written_twice: (on_files.tied_weights_are_written_once, "weights are written once"),
    trained_on_test_texts: (on_files.splits_are_disjoint, "test texts are not trained on"),
}


@pytest.mark.parametrize("broken", TRAPS, ids=lambda broken: broken.__name__)
def test_what_real_projects_got_wrong_is_seen(
    case: Case, monkeypatch: Patch, broken: Broken
) -> None:
    assert is_seen(broken, TRAPS, case, monkeypatch)


def test_every_proof_can_fail() -> None:
    assert {rows for rows, _ in TRAPS.values()} == {*proofs.PROOFS, *on_files.ON_FILES}
