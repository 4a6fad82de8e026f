"""Runs made from another run: the same teacher and texts, and something else about the student.

A variant has a run folder of its own and a copy of the base's pairs, or of some of them. Its
teacher bundle, the teacher's targets and, where it wants the same one, the untrained student are
the base's.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from kdexport.data.pairs import Pair, read_pairs, write_pairs
from kdexport.errors import InputError
from kdexport.pipeline.run import Run, Stage, open_run, run_stages
from kdexport.pipeline.stages import STAGES
from kdexport.recipe import Recipe
from kdexport.recipe.train import ONE, Line
from kdexport.system.journal import file_sha256

ROWS = {stage.name: stage for stage in STAGES}


def variant_stages(run: Run, pair_ids: Collection[str] | None = None) -> Sequence[Stage]:
    """The stages of a variant, after those of its base up to the untrained student.

    One that wants another student than its base has makes its own. ``pair_ids``: of the pairs that
    it learns from and is measured on; None: all.
    """
    chosen = None if pair_ids is None else sorted(pair_ids)
    select = Stage(
        "select",
        "Pairs are taken over",
        lambda run: _take_pairs(run, chosen),
        lambda run: [run.pairs],
        lambda run: [chosen, run.base and file_sha256(run.base.pairs)],
        after=("pairs",),
    )
    own = run.student_init.parent == run.folder
    student = [replace(ROWS["student"], after=("select",))] if own else []
    distill = replace(ROWS["distill"], after=("student", "select"))
    return (select, *student, distill, ROWS["export"], ROWS["quantize"])


def _take_pairs(run: Run, chosen: Collection[str] | None) -> None:
    assert run.base is not None
    whole = run.base.pairs
    wanted = None if chosen is None else set(chosen)
    n_train = 0

    def kept() -> Iterator[Pair]:
        nonlocal n_train
        for pair in read_pairs(whole):
            if wanted is None or pair.id in wanted:
                n_train += pair.split == "train"
                yield pair
        if not n_train:
            raise InputError("no pair is left to train on", where=str(run.folder))

    write_pairs(run.pairs, kept())


def distill_control(recipe: Recipe) -> Run:
    """Train a recipe's control: the same texts, student, budget and seed, and no teacher.

    Supervised fine-tuning on the texts; where the teacher wrote them, that is sequence-level
    distillation (Kim & Rush 2016). It is what a divergence has to beat. Ends in runs/NAME-control.
    """
    base = open_run(recipe)
    run_stages(base, until="student")
    control = control_of(base)
    run_stages(control, until="distill", stages=variant_stages(control))
    return control


def control_of(base: Run) -> Run:
    """The control of a run, which is still to be trained."""
    never = Line(start=0, end=0)
    train = base.recipe.train.model_copy(update={"kd_weight": never, "task_weight": ONE})
    name = f"{base.recipe.name}-control"
    recipe = base.recipe.model_copy(update={"name": name, "train": train})
    return replace(base, recipe=recipe, folder=base.folder.with_name(name), base=base)
