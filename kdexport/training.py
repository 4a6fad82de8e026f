"""The distilling stage of a run: from pairs and an untrained student to the best one found.

Stands between the recipe and the loop in `train.trainer`, which knows no recipe and no files.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdexport.console import Tracker, say, tracked
from kdexport.content.prompts import plain_chat, split_opening
from kdexport.errors import InputError
from kdexport.journal import fingerprint, folder_fingerprint
from kdexport.machine import machine_facts
from kdexport.pairs import by_split, load_pairs
from kdexport.pipeline import Run
from kdexport.recipe import TrainSection
from kdexport.train.data import Batch, Encoded, encode_pairs
from kdexport.train.model import (
    head_is_plain,
    load_facts,
    load_model,
    load_tokenizer,
    save_model,
    swap_folder,
    template_of,
    written,
)
from kdexport.train.reference import write_reference
from kdexport.train.schedule import Budget
from kdexport.train.teacher import (
    Columns,
    TargetFn,
    cached_targets,
    check_vocabularies,
    fill_cache,
    fingerprint_examples,
    hidden_columns,
    live_targets,
    seconds_asked,
    targets_of_hidden,
    top_k_columns,
)
from kdexport.train.trainer import Event, TrainSettings, distill

REFERENCE_TOP_K = 96
REFERENCE_DRAWN = 32
HELD_OUT_DRAWN = 64
TEACHER_BATCH = 16


@dataclass(frozen=True)
class Data:
    """The three splits as token ids of the student's vocabulary.

    ``measured_on``: the split that quality can be measured on, the furthest from training.
    """

    train: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]
    measured_on: str


def renderer(tokenizer: Any) -> Callable[[list[dict[str, str]]], str]:
    """Messages -> the prompt text, through the model's chat template where it has one.

    Raises InputError for messages that the template refuses.
    """
    from jinja2 import TemplateError

    template = template_of(tokenizer)

    def render(messages: list[dict[str, str]]) -> str:
        asked, opening = split_opening(messages)
        if not asked:
            return opening
        if template is None:
            return plain_chat(asked) + opening
        try:
            prompt = tokenizer.apply_chat_template(
                asked, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in asked)
            raise InputError(
                f"the teacher's chat template refuses messages of {roles} ({error})", where="data"
            ) from error
        return f"{prompt}{opening}"

    return render


def train_student(run: Run) -> None:
    """Distil; keep the student that is best on the validation pairs; write the reference."""
    wish = run.recipe.train
    if wish.n_threads:
        torch.set_num_threads(wish.n_threads)
    torch.manual_seed(run.recipe.seed)
    device = _device(wish.device)
    precision = _precision(wish.precision, device)
    # The texts are short: plain attention is faster on a CPU than the tiled kind.
    attention = "eager" if device == "cpu" else "sdpa"
    teacher = load_model(run.teacher.path, attention=attention).to(device)
    student = load_model(run.student_init, attention=attention).to(device)
    kept_ids = load_facts(run.student_init).get("kept_ids")
    teacher_tokenizer = load_tokenizer(run.teacher.path)
    tokenizer = load_tokenizer(run.student_init)
    check_vocabularies(teacher_tokenizer.get_vocab(), tokenizer.get_vocab(), kept_ids)
    data = _encode(run, tokenizer, student)
    _check_hidden(wish, teacher, student)
    service = Service(run, teacher, kept_ids, precision)
    asked = service.targets(data)
    key = fingerprint(
        service.key,
        fingerprint_examples(data.train),
        folder_fingerprint(run.student_init),
        wish.model_dump(),
        run.recipe.seed,
    )
    settings = train_settings(wish, run.recipe.seed, len(data.train), precision, asked.seconds)
    _train(run, student, data, asked, settings, key)
    reference = run.checkpoints / run.reference.name
    write_reference(
        reference,
        teacher,
        data.test or data.validation,
        kept_ids,
        vocab_size=student.config.vocab_size,
        top_k=REFERENCE_TOP_K,
        n_drawn=REFERENCE_DRAWN,
        batch_size=TEACHER_BATCH,
        meta={
            "teacher": run.teacher.source,
            "fingerprint": run.teacher.fingerprint,
            "split": data.measured_on,
        },
    )
    # A copy: killed before the stage is recorded, the next run finds the best one where it was.
    finished = run.checkpoints / "student"
    with written(run.student):
        shutil.copytree(run.checkpoints / "best", finished, dirs_exist_ok=True)
        swap_folder(finished, run.student)
    reference.replace(run.reference)


def _encode(run: Run, tokenizer: Any, student: Any) -> Data:
    """Tokenize the pairs of each split."""
    recipe = run.recipe
    pairs = load_pairs(run.pairs)
    render = renderer(tokenizer)
    limits = {
        "train": recipe.data.max_train,
        "validation": recipe.data.max_validation,
        "test": recipe.data.max_test,
    }
    splits: dict[str, list[Encoded]] = {}
    for split, limit in limits.items():
        splits[split], too_long = encode_pairs(
            by_split(pairs, split, limit),
            tokenizer.backend_tokenizer,
            render,
            tokenizer.eos_token_id,
            min(recipe.train.max_length, student.config.max_position_embeddings),
            prompts_too=split == "train" and recipe.train.prompt_weight > 0,
        )
        if too_long:
            say(f"    {too_long} {split} pairs left out: over {recipe.train.max_length} tokens")
    if not splits["train"]:
        raise InputError(
            f"no training pair fits in {recipe.train.max_length} tokens", where="train.max_length"
        )
    measured_on = next(s for s in ("test", "validation", "train") if splits[s])
    if not splits["validation"]:
        say("    no validation pairs: the best student is chosen on training pairs")
        splits["validation"] = [
            replace(e, first_target=e.first_completion) for e in splits["train"][:TEACHER_BATCH]
        ]
    return Data(splits["train"], splits["validation"], splits["test"], measured_on)


@dataclass(frozen=True)
class Asked:
    """Targets for training and for held-out pairs, and how long the teacher took beforehand."""

    train: TargetFn
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

    def targets(self, data: Data) -> Asked:
        """For training at the recipe's temperature; for held-out pairs at 1."""
        wish = self.run.recipe.train
        if wish.targets == "live":
            live = live_targets(self.teacher, self.kept_ids, wish.temperature)
            return Asked(live, live_targets(self.teacher, self.kept_ids, 1.0), 0.0)
        fill = {"cached": self._top_k, "hidden": self._hidden}[wish.targets]
        folder, train = fill(data.train, wish.temperature)
        other, held_out = self._top_k(data.validation, 1.0, HELD_OUT_DRAWN)
        return Asked(train, held_out, seconds_asked(folder) + seconds_asked(other))

    def _top_k(
        self, examples: Sequence[Encoded], temperature: float, n_drawn: int = 0
    ) -> tuple[Path, TargetFn]:
        size = len(self.kept_ids or range(self.teacher.config.vocab_size))
        top_k = min(self.run.recipe.train.top_k, size - 1)
        ask = live_targets(self.teacher, self.kept_ids, temperature, top_k, n_drawn)
        folder = self._fill(examples, top_k_columns(ask), ["top-k", temperature, top_k, n_drawn])
        return folder, cached_targets(folder, n_drawn)

    def _hidden(self, examples: Sequence[Encoded], temperature: float) -> tuple[Path, TargetFn]:
        columns = hidden_columns(self.teacher, self.kept_ids, self.precision)
        folder = self._fill(examples, columns, ["hidden", self.precision])
        return folder, targets_of_hidden(folder, self.teacher, self.kept_ids, temperature)

    def _fill(
        self, examples: Sequence[Encoded], ask: Callable[[Batch], Columns], how: Sequence[Any]
    ) -> Path:
        name = fingerprint(self.key, fingerprint_examples(examples), how)[:16]
        folder = self.run.folder / "targets" / name
        with tracked("    teacher's targets", "texts") as progress:
            fill_cache(folder, examples, ask, batch_size=TEACHER_BATCH, progress=progress)
        return folder


def _check_hidden(wish: TrainSection, teacher: Any, student: Any) -> None:
    """Hidden states can be compared where both have them, and of one width."""
    if not wish.hidden_weight:
        return
    widths = [model.config.hidden_size for model in (teacher, student)]
    if widths[0] != widths[1] or not (head_is_plain(teacher) and head_is_plain(student)):
        raise InputError(
            f"the last hidden states of teacher and student ({widths[0]} and {widths[1]} wide) "
            "cannot be compared",
            where="train.hidden_weight",
            remedy="set it to 0",
        )


def _train(
    run: Run,
    student: Any,
    data: Data,
    asked: Asked,
    settings: TrainSettings,
    key: str,
) -> None:
    if run.recipe.train.freeze_embeddings:
        student.get_input_embeddings().requires_grad_(False)
    log = run.folder / "train_log.jsonl"
    checkpoint = run.checkpoints / "last"
    if not checkpoint.exists():
        log.unlink(missing_ok=True)

    def keep_best(model: Any) -> None:
        save_model(model, run.checkpoints / "best", tokenizer_from=run.student_init)

    with tracked("    distilling", "%", 100) as progress:
        distill(
            student,
            data.train,
            data.validation,
            asked.train,
            asked.held_out,
            settings,
            checkpoint=checkpoint,
            fingerprint=key,
            keep_best=keep_best,
            report=_reporter(progress, log),
        )


def _reporter(progress: Tracker, log: Path) -> Callable[[Event], None]:
    """Show every step; log those that were evaluated."""
    best = ""
    rows: list[str] | None = None

    def report(event: Event) -> None:
        nonlocal best, rows
        if rows is None:
            rows = _rows_before(log, event.step)
        if event.evaluation:
            rows.append(json.dumps({**vars(event), "evaluation": vars(event.evaluation)}))
            beside = log.with_suffix(".partial")
            beside.write_text("".join(f"{row}\n" for row in rows), "utf-8")
            beside.replace(log)
            best = f", validation KL {event.evaluation.kl:.3f}"
        speed = event.tokens / max(event.elapsed_s, 1e-6)
        note = f"step {event.step}, {speed:.0f} tokens/s, loss {event.loss:.3f}{best}"
        progress(100 * event.progress, note=note)

    return report


def _rows_before(log: Path, step: int) -> list[str]:
    """What an interrupted run logged, up to the checkpoint that this one goes on from."""
    if not log.exists():
        return []
    rows = log.read_text("utf-8").splitlines()
    return [row for row in rows if json.loads(row)["step"] < step]


def train_settings(
    wish: TrainSection, seed: int, n_examples: int, precision: str, seconds_spent: float
) -> TrainSettings:
    """The loop's settings from the recipe's; epochs become steps.

    ``seconds_spent`` on the teacher's targets are off the clock; a third of it is left at least.
    """
    steps = [wish.max_steps] if wish.max_steps else []
    if wish.epochs:
        per_epoch = -(-n_examples // (wish.batch_size * wish.accumulate))
        steps.append(max(1, round(wish.epochs * per_epoch)))
    minutes = wish.max_minutes and max(wish.max_minutes - seconds_spent / 60, wish.max_minutes / 3)
    return TrainSettings(
        budget=Budget(min(steps, default=None), minutes),
        loss=wish.loss,
        kd_weight=wish.kd_weight,
        prompt_weight=wish.prompt_weight,
        hidden_weight=wish.hidden_weight,
        precision=precision,
        temperature=wish.temperature,
        lr=wish.lr,
        batch_size=wish.batch_size,
        accumulate=wish.accumulate,
        warmup_fraction=wish.warmup_fraction,
        weight_decay=wish.weight_decay,
        betas=wish.betas,
        clip_norm=wish.clip_norm,
        seed=seed,
        checkpoint_seconds=wish.checkpoint_seconds,
        evaluate_steps=wish.evaluate_steps,
    )


def check_device(wish: TrainSection) -> None:
    """Refuse a device that is not there."""
    _device(wish.device)


def _device(wish: str) -> str:
    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wish == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device", where="train.device", remedy="use cpu or auto")
    return wish


def _precision(wish: str, device: str) -> str:
    """bfloat16 halves the time of products, on devices that compute it; elsewhere it costs some."""
    if wish != "auto":
        return wish
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    has = {"bf16", "amx"} & set(machine_facts().features)
    return "bfloat16" if has else "float32"
