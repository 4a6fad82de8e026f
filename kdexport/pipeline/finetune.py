"""`kdexport finetune`: the teacher itself is trained on a recipe's texts, the same loop with λ = 0.

A teacher that knows the domain is worth more to a student than a larger one that does not; what is
written is a Hugging Face folder for the `teacher` of the next recipe.
"""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdexport.errors import KdexportError
from kdexport.pipeline.learning import BEST, Places, learn
from kdexport.pipeline.run import Run, Stage, open_run, run_stages
from kdexport.pipeline.splits import Splits, encode_splits
from kdexport.pipeline.stages import STAGES, reading_asked
from kdexport.pipeline.together import train_together
from kdexport.pipeline.training import (
    batches_of,
    check_device,
    feed_of,
    model_on,
    precision_of,
    settled,
    train_settings,
)
from kdexport.recipe import Recipe
from kdexport.recipe.train import ONE, Line, TrainSection
from kdexport.system.console import say
from kdexport.system.journal import fingerprint
from kdexport.train.evaluate import evaluate
from kdexport.train.model import (
    check_packing,
    load_tokenizer,
    recompute_activations,
    swap_folder,
    written,
)
from kdexport.train.trainer import Material
from kdexport.train.world import ALONE, World

FACTS = "kdexport.json"


@dataclass(frozen=True)
class Finetuned:
    """A teacher's folder, and its perplexity on the validation texts before and after."""

    folder: Path
    before: float
    after: float


def finetune_teacher(recipe: Recipe) -> Finetuned:
    """Train a recipe's teacher on its texts; written is runs/NAME/teacher, beside it what was seen.

    Raises KdexportError where it is no better on the validation texts for it.
    """
    run = open_run(recipe, weights=True)
    run_stages(run, stages=STAGES_TO_TEACHER)
    facts = json.loads((adapted(run) / FACTS).read_text("utf-8"))
    return Finetuned(adapted(run), facts["perplexity_before"], facts["perplexity"])


def adapted(run: Run) -> Path:
    """Where a run's adapted teacher goes."""
    return run.folder / "teacher"


def _checkpoints(run: Run) -> Path:
    return run.folder / "teacher-checkpoints"


def _log(run: Run) -> Path:
    return run.folder / "teacher-metrics.jsonl"


def wish_of(recipe: Recipe) -> TrainSection:
    """How the teacher is trained: as the student is, but for λ and what `finetune` says."""
    never = Line(start=0, end=0)
    own = {"kd_weight": never, "task_weight": ONE, "quantize_aware": 0.0}
    return recipe.train.model_copy(update={**own, **recipe.finetune.model_dump()})


def train_teacher(run: Run, world: World = ALONE) -> None:
    """Train the teacher; keep the one that is best on the validation texts.

    Called in all processes of ``world``; the first writes.
    """
    wish = wish_of(run.recipe)
    run = replace(run, recipe=run.recipe.model_copy(update={"train": wish}))
    device = settled(run.recipe, world)
    teacher = model_on(device, run.teacher.path)
    data = encode_splits(run, load_tokenizer(run.teacher.path), teacher)
    found = evaluate(teacher, data.validation, None, wish.batch_size, world=world)
    assert found is not None  # nobody interrupts it
    if wish.activation_checkpointing:
        recompute_activations(teacher)
    before, after = found.perplexity, _train(run, teacher, data, device, world)
    if not world.is_first:
        return
    told = f"perplexity on {len(data.validation)} validation texts: {before:.3f} -> {after:.3f}"
    if not after < before:
        raise KdexportError(
            f"the teacher is no better for its training ({told})",
            where="finetune",
            remedy="lower finetune.lr, or give it more texts",
        )
    say(f"    {told}")
    finished = _checkpoints(run) / "teacher"
    with written(adapted(run)):
        shutil.copytree(_checkpoints(run) / BEST, finished, dirs_exist_ok=True)
        facts = {"teacher": run.teacher.source, "perplexity_before": before, "perplexity": after}
        (finished / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")
        swap_folder(finished, adapted(run))


def _train(run: Run, teacher: Any, data: Splits, device: str, world: World) -> float:
    """The lowest perplexity of a trained teacher, which is kept."""
    wish = run.recipe.train
    precision = precision_of(wish.precision, device)
    if wish.packing:
        check_packing(teacher)
    feed = feed_of(run.recipe, data)
    settings = train_settings(wish, batches_of(wish, feed), precision, 0.0)
    key = fingerprint(
        run.teacher.fingerprint,
        data.key,
        reading_asked(run),
        wish.fingerprinted,
        run.recipe.seed,
    )

    if wish.freeze_embeddings:
        teacher.get_input_embeddings().requires_grad_(False)
    ended = learn(
        teacher,
        Material(feed, None, data.validation, None),
        settings,
        Places(
            _checkpoints(run),
            _log(run),
            run.teacher.path,
            run.folder / "teacher-tensorboard" if wish.tensorboard else None,
        ),
        title="    teacher learns",
        fingerprint=key,
        n_samples=wish.n_samples,
        world=world,
    )
    return math.exp(ended.best_score)


STAGES_TO_TEACHER = (
    *STAGES[:2],
    Stage(
        "finetune",
        "Teacher learns the texts",
        lambda run: train_together("finetune", run),
        lambda run: [adapted(run), _log(run)],
        lambda run: [
            run.recipe.seed,
            wish_of(run.recipe).fingerprinted,
            reading_asked(run),
        ],
        after=("pairs",),
        check=lambda run: check_device(run.recipe.train),
        goes_on_from=_checkpoints,
    ),
)
