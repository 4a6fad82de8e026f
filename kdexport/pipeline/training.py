"""The distilling stage of a run: from pairs and an untrained student to the best one found.

Stands between the recipe and the loop in `train.trainer`, which knows no recipe and no files.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdexport.data.card import amend_card
from kdexport.errors import InputError
from kdexport.pipeline.importing import asks_teacher, imported_fingerprint, imported_held_out
from kdexport.pipeline.learning import BEST, Places, learn
from kdexport.pipeline.other_tokens import ask_across_tokens
from kdexport.pipeline.rounding import rounding_of
from kdexport.pipeline.run import Run
from kdexport.pipeline.service import (
    COMPARED,
    TEACHER_BATCH,
    Asked,
    Service,
    check_hidden,
    inside_of,
)
from kdexport.pipeline.splits import Splits, encode_splits
from kdexport.recipe import Recipe
from kdexport.recipe.train import Line, TrainSection
from kdexport.system.console import say
from kdexport.system.interrupts import Interrupted
from kdexport.system.journal import fingerprint, folder_fingerprint
from kdexport.system.machine import cpu_features
from kdexport.system.metrics import read_curve
from kdexport.train.checkpoint import list_checkpoints
from kdexport.train.data import Encoded
from kdexport.train.evaluate import Evaluation
from kdexport.train.feed import Epochs
from kdexport.train.heap import give_back, have_huge_pages, keep_few_kernels
from kdexport.train.inside import Inside
from kdexport.train.model import (
    check_packing,
    load_facts,
    load_model,
    load_tokenizer,
    recompute_activations,
    swap_folder,
    written,
)
from kdexport.train.objective import Objective, Term
from kdexport.train.on_policy import OnPolicy, end_ids_of
from kdexport.train.reference import told_by, write_reference, write_told
from kdexport.train.schedule import Budget, Schedule
from kdexport.train.stream import Stream
from kdexport.train.teacher import check_vocabularies
from kdexport.train.trainer import Material, Position, TrainSettings
from kdexport.train.world import ALONE, World

REFERENCE_TOP_K = 96
REFERENCE_DRAWN = 32


@dataclass(frozen=True)
class Ready:
    """A run that can begin to train. ``key``: of its checkpoints.

    The teacher is in memory only where ``asked``, ``inside`` or ``own`` still ask it.
    """

    student: Any
    kept_ids: Sequence[int] | None
    data: Splits
    asked: Asked
    precision: str
    key: str
    inside: Inside | None
    own: OnPolicy | None


def trained(run: Run, world: World = ALONE) -> Ready:
    """Distil; keep the student that is best on the validation pairs.

    Called in all processes of ``world``; the first alone writes more than the teacher's targets.
    """
    ready = _prepared(run, world)
    n_samples = run.recipe.train.n_samples
    _train(run, ready, ready.asked.seconds, n_samples=n_samples, world=world)
    if not world.is_first:
        return ready
    # A copy: killed before the stage is recorded, the next run finds the best one where it was.
    finished = run.checkpoints / "student"
    with written(run.student):
        shutil.copytree(run.checkpoints / BEST, finished, dirs_exist_ok=True)
        swap_folder(finished, run.student)
    return ready


def train_student(run: Run, world: World = ALONE) -> None:
    """Distil; keep the student that is best on the validation pairs; write the reference."""
    ready = trained(run, world)
    if run.recipe.train.across_tokens:
        if world.is_first:
            run.reference.unlink(missing_ok=True)  # a KL to the teacher wants one vocabulary
    elif world.is_first or _in_parts(run, world):
        _write_reference(run, ready, world)


def _write_reference(run: Run, ready: Ready, world: World) -> None:
    data, reference = ready.data, run.checkpoints / run.reference.name
    split = "test" if data.test else "validation"
    examples, vocab_size = data.test or data.validation, ready.student.config.vocab_size
    meta = {
        "teacher": run.teacher.source,
        "fingerprint": run.teacher.fingerprint,
        "split": data.measured_on,
    }
    around: Any = {"batch_size": TEACHER_BATCH, "meta": meta, "writes": world.is_first}
    give_back()  # before the teacher comes again
    teacher = _teacher_of(run, device_of(run.recipe.train.device, world), world)
    if teacher is None:
        kept = imported_held_out(run, split, examples)
        assert kept is not None  # or the teacher would have been opened
        write_told(
            reference, told_by(kept), examples, ready.kept_ids or range(vocab_size), **around
        )
    else:
        around["in_step"] = _in_parts(run, world)
        around |= {"top_k": REFERENCE_TOP_K, "n_drawn": REFERENCE_DRAWN, "vocab_size": vocab_size}
        write_reference(reference, teacher, examples, ready.kept_ids, **around)
    if world.is_first:
        reference.replace(run.reference)


def train_trial(
    run: Run, evaluated: Callable[[Sequence[float]], None], is_over: Callable[[], bool]
) -> float | None:
    """Distil for the lowest KL on the validation pairs alone; None where ``is_over`` ended it.

    ``evaluated`` is told the KL of each evaluation so far, those before an interruption too. The
    teacher's time is not taken off the clock: all trials read one cache.
    """

    def note(at: Position, found: Evaluation) -> None:
        evaluated([p.evaluation["kl"] for p in read_curve(run.metrics) if p.evaluation])

    prepared = _prepared(run)
    try:
        ended = _train(run, prepared, 0.0, keeps_best=False, evaluated=note, interrupted=is_over)
    except Interrupted as stopped:
        if stopped.number is not None:  # not the clock, but a signal
            raise
        return None
    return ended.best_score


def _prepared(run: Run, world: World = ALONE) -> Ready:
    wish = run.recipe.train
    device = settled(run.recipe, world)
    precision = precision_of(wish.precision, device)
    teacher = _teacher_of(run, device, world)
    student = model_on(device, run.student_init)
    if wish.activation_checkpointing:
        recompute_activations(student)
    kept_ids = load_facts(run.student_init).get("kept_ids")
    teacher_tokenizer = load_tokenizer(run.teacher.path)
    tokenizer = load_tokenizer(run.student_init)
    data = encode_splits(run, tokenizer, student)
    if world.is_first:
        amend_card(run.folder, {"left_out_of_training": data.left_out.as_json()})
    if wish.packing:
        check_packing(student)
        if wish.targets == "live" or wish.on_policy:
            check_packing(teacher)
    service = Service(run, teacher, kept_ids, precision, world)
    inside = inside_of(run, teacher, student)
    if wish.across_tokens:
        both = teacher_tokenizer, tokenizer
        data, asked = ask_across_tokens(run, service, both, data)
    else:
        check_vocabularies(teacher_tokenizer.get_vocab(), tokenizer.get_vocab(), kept_ids)
        check_hidden(wish, teacher, student)
        asked = service.targets(data, _asked_of(run, data, tokenizer, student))
    begins = world.is_first and not list_checkpoints(run.checkpoints)
    begins = begins and not _in_parts(run, world)  # the others cannot help to compare
    if asked.train and asked.are_new and wish.targets in COMPARED and begins:
        service.tell_fidelity(student, data.train, asked.train, objective_of(wish))
    if inside and asked.train:
        asked = replace(asked, train=inside.of_teacher(asked.train, teacher))
    own_key = fingerprint(
        service.key,
        data.key,
        run.recipe.data.stream and run.recipe.data.shuffle_buffer,
        folder_fingerprint(run.student_init),
        wish.fingerprinted,
        imported_fingerprint(run),
        run.recipe.export.scheme if wish.quantize_aware else None,
        run.recipe.seed,
    )
    key = world.told(own_key)  # all go on from a checkpoint, or none
    own = own_samples_of(run, student, tokenizer.eos_token_id, precision)
    return Ready(student, kept_ids, data, asked, precision, key, inside, own)


def _teacher_of(run: Run, device: str, world: World) -> Any:
    """The teacher, whole or in parts; None where all that it is asked was imported."""
    if not asks_teacher(run):
        return None
    if not _in_parts(run, world):
        return model_on(device, run.teacher.path)
    from kdexport.train.sharded import in_shards

    say(f"    the teacher's layers are shared out over {world.size} processes")
    return in_shards(lambda: model_on("cpu", run.teacher.path), device, world)


def _in_parts(run: Run, world: World) -> bool:
    """Whether all processes have a part in whatever the teacher is asked."""
    return run.recipe.train.shard_teacher and world.size > 1


def _asked_of(run: Run, data: Splits, tokenizer: Any, student: Any) -> Sequence[Encoded]:
    """The texts of which a cache is made: all that the runs around this one learn from."""
    if run.base is None or run.recipe.train.texts_alone or run.recipe.train.targets == "live":
        return data.train
    return encode_splits(replace(run, folder=run.base.folder), tokenizer, student).train


def _train(run: Run, ready: Ready, seconds_spent: float, **around: Any) -> Position:
    """Train a student; ``around`` is what `learn` is told besides."""
    wish, data = run.recipe.train, ready.data
    give_back()  # the teacher has done its part
    feed = feed_of(run.recipe, data)
    n_batches = batches_of(wish, feed)
    settings = train_settings(wish, n_batches, ready.precision, seconds_spent)
    settings = replace(settings, objective=replace(settings.objective, inside=ready.inside))
    if wish.freeze_embeddings:
        ready.student.get_input_embeddings().requires_grad_(False)
    board = run.folder / "tensorboard" if wish.tensorboard else None
    return learn(
        ready.student,
        Material(
            feed,
            ready.asked.train,
            data.validation,
            ready.asked.held_out,
            ready.own,
            in_step=wish.targets == "live" and _in_parts(run, around.get("world", ALONE)),
        ),
        settings,
        Places(run.checkpoints, run.metrics, run.student_init, board),
        title="    distilling",
        fingerprint=ready.key,
        rounding=rounding_of(run.recipe, ready.student, data, ready.precision),
        **around,
    )


def feed_of(recipe: Recipe, data: Splits) -> Epochs | Stream:
    """The training texts in the recipe's batches."""
    row_length = data.max_length if recipe.train.packing else None
    size, seed = recipe.train.batch_size, recipe.seed
    if data.lines:
        buffer = recipe.data.shuffle_buffer
        return Stream(data.lines, size, seed, buffer, row_length=row_length)
    return Epochs(data.train, size, seed, row_length=row_length)


def batches_of(wish: TrainSection, feed: Epochs | Stream) -> int:
    """The batches of an epoch, which are counted only where epochs are wanted: it takes a while."""
    return feed.n_batches if wish.epochs else 0


def train_settings(
    wish: TrainSection, n_batches: int, precision: str, seconds_spent: float
) -> TrainSettings:
    """The loop's settings from the recipe's; epochs, of ``n_batches`` each, become steps.

    ``seconds_spent`` on the teacher's targets are off the clock; a third of it is left at least.
    """
    steps = [wish.max_steps] if wish.max_steps else []
    if wish.epochs:
        per_epoch = -(-n_batches // wish.accumulate)
        steps.append(max(1, round(wish.epochs * per_epoch)))
    minutes = wish.max_minutes and max(wish.max_minutes - seconds_spent / 60, wish.max_minutes / 3)
    return TrainSettings(
        budget=Budget(min(steps, default=None), minutes),
        objective=objective_of(wish),
        precision=precision,
        lr=wish.lr,
        batch_size=wish.batch_size,
        accumulate=wish.accumulate,
        warmup_fraction=wish.warmup_fraction,
        weight_decay=wish.weight_decay,
        betas=wish.betas,
        clip_norm=wish.clip_norm,
        checkpoint_seconds=wish.checkpoint_seconds,
        evaluate_steps=wish.evaluate_steps,
        is_frugal=wish.activation_checkpointing,
        rounded_from=1.0 - wish.quantize_aware,
        rounded_lr=wish.rounded_lr,
    )


def own_samples_of(run: Run, student: Any, end_id: int | None, precision: str) -> OnPolicy | None:
    """How the student writes some of its batches itself, where the recipe wants it."""
    wish = run.recipe.train
    if wish.on_policy is None or wish.texts_alone:
        return None
    return OnPolicy(
        fraction=_schedule(wish.on_policy.fraction),
        temperature=wish.on_policy.temperature,
        max_new_tokens=wish.on_policy.max_new_tokens,
        max_length=min(wish.max_length, student.config.max_position_embeddings),
        end_ids=end_ids_of(student, end_id),
        seed=run.recipe.seed,
        precision=precision,
    )


def objective_of(wish: TrainSection) -> Objective:
    """What the recipe wants minimised."""
    return Objective(
        terms=tuple(Term(t.name, _schedule(t.weight), t.parameter) for t in wish.loss),
        kd_weight=_schedule(wish.kd_weight),
        task_weight=_schedule(wish.task_weight),
        temperature=wish.temperature,
        prompt_weight=wish.prompt_weight,
        hidden_weight=wish.hidden_weight,
    )


def _schedule(line: Line) -> Schedule:
    return Schedule(line.start, line.end)


def check_device(wish: TrainSection) -> None:
    """Refuse a device that is not there."""
    device_of(wish.device)


def settled(recipe: Recipe, world: World) -> str:
    """Set threads and seed as a recipe has them; the device to train on."""
    have_huge_pages()
    if recipe.train.n_threads:
        torch.set_num_threads(recipe.train.n_threads)
    if recipe.train.activation_checkpointing:
        keep_few_kernels()
    torch.manual_seed(recipe.seed)
    return device_of(recipe.train.device, world)


def model_on(device: str, path: Path) -> Any:
    """A model's folder, loaded to train on a device."""
    # The texts are short: plain attention is faster on a CPU than the tiled kind.
    return load_model(path, attention="eager" if device == "cpu" else "sdpa").to(device)


def device_of(wish: str, world: World = ALONE) -> str:
    """The device to train on: the one wished for, or for "auto" the better one that is there.

    Of several GPUs each process of a machine has its own.
    """
    there = torch.cuda.is_available()
    if wish == "cuda" and not there:
        raise InputError("there is no CUDA device", where="train.device", remedy="use cpu or auto")
    if wish == "cpu" or not there:
        return "cpu"
    if world.size > 1:
        number, n_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= n_gpus:
            raise InputError(
                f"there are {n_gpus} CUDA devices for more processes",
                where="train.device",
                remedy=f"start {n_gpus} processes on this machine, or use cpu",
            )
        torch.cuda.set_device(number)
    return "cuda"


def precision_of(wish: str, device: str) -> str:
    """bfloat16 halves the time of products, on devices that compute it; elsewhere it costs some."""
    if wish != "auto":
        return wish
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    has = {"bf16", "amx"} & set(cpu_features())
    return "bfloat16" if has else "float32"
