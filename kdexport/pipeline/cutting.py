"""The stage that makes the student: from teacher and pairs to a model that is to be trained.

Its ways are rows of `train.student`; here is what stands around them: texts, tokenizers, files, and
short distillations between cuts.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kdexport.data.pairs import read_pairs
from kdexport.errors import InputError, NotAtHandError
from kdexport.pipeline.budget import candidate_shapes, choose, costs_asked
from kdexport.pipeline.preflight import longest_text, sizes_of
from kdexport.pipeline.run import Run, Stage, run_stages
from kdexport.pipeline.splits import renderer
from kdexport.recipe.student import OF_NO_TEACHER
from kdexport.sources import ResolvedModel, resolve_teacher
from kdexport.system.console import say
from kdexport.system.journal import file_digest, folder_fingerprint
from kdexport.train.model import (
    load_config,
    load_facts,
    load_model,
    load_shape,
    load_tokenizer,
    save_model,
)
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import INITS, Origin, Student
from kdexport.train.vocabulary import Said, count_tokens, ids_of_tokens, trim_tokenizer

N_PROBE_TEXTS = 32  # training texts on which importance is measured
FROM = "student.from"


def make_student(run: Run) -> None:
    """Teacher -> an untrained student; in steps, one that was trained between its cuts."""
    before: Path | None = None
    for n_layers in (run.recipe.student.steps or [])[:-1]:
        step = step_run(run, n_layers)
        say(f"    to {n_layers} layers")
        run_stages(step, stages=step_stages(step, before))
        before = step.student
    cut(run, before)


def cut(run: Run, before: Path | None) -> None:
    """Write the untrained student: made from the teacher, or cut from the one ``before`` it."""
    made = _made_from_teacher(run) if before is None else _cut_again(run, before)
    save_model(
        made.student.model, run.student_init, tokenizer_from=made.files, tokenizer=made.trimmed
    )
    facts = {
        "teacher": run.teacher.source,
        "licence": run.teacher.licence,
        "kept_layers": made.student.kept_layers,
        "block_influence": made.student.influence,
        "kept_ids": made.kept_ids,
        "token_growth": made.growth,
    }
    (run.student_init / "kdexport.json").write_text(json.dumps(facts, indent=1), "utf-8")
    n_own, n_teacher = (
        of.num_parameters() for of in (made.student.model, load_shape(run.teacher.path))
    )
    say(
        f"    {n_own / 1e6:.1f} M parameters, "
        f"layers kept: {made.student.kept_layers or 'none of the teacher'}"
    )
    if n_own >= n_teacher:
        say(
            f"    the student is no smaller than its teacher ({n_teacher / 1e6:.1f} M): name "
            "student.n_layers, student.intermediate_size or student.vocab_size"
        )
    if made.growth:
        told = ", ".join(f"{by:.2f} x {name}".rstrip() for name, by in made.growth.items())
        say(f"    tokens of held-out texts, beside the whole vocabulary: {told}")


@dataclass(frozen=True)
class Made:
    """A student and what is written with it.

    ``kept_ids``: the teacher's id of each of its tokens; None: the same ids, or other tokens.
    ``files``: where its tokenizer's files are. ``trimmed``: what replaces the tokenizer there.
    ``growth``: into how many times as many tokens that cuts held-out texts, by language.
    """

    student: Student
    kept_ids: list[int] | None
    files: Path
    trimmed: Any = None
    growth: dict[str, float] | None = None


def _made_from_teacher(run: Run) -> Made:
    """From the teacher, or from the checkpoint that the recipe names."""
    wish = run.recipe.student
    source = _of_teacher(run) if wish.source is None else _of_checkpoint(run, wish.source)
    tokenizer = load_tokenizer(source.files)
    backend = tokenizer.backend_tokenizer
    trimmed, own_ids, growth = None, source.own_ids, None
    if wish.vocab_size is not None and wish.vocab_size < backend.get_vocab_size():
        trimmed, own_ids = trim_tokenizer(backend, _texts(run, tokenizer), wish.vocab_size)
        growth = _growth(run, tokenizer, trimmed)
    model = source.model
    sizes = sizes_of(run) if wish.budget is None else choose(run, model, own_ids, trimmed)
    torch.manual_seed(run.recipe.seed)
    origin = Origin(model, own_ids, _probe(run, tokenizer, model.config))
    student = INITS[wish.init].make(origin, sizes)
    _also_ends_with(student.model, tokenizer.eos_token_id, own_ids)
    kept_ids = None if run.recipe.train.across_tokens else own_ids
    if own_ids is not None and source.in_teacher is not None:
        kept_ids = [source.in_teacher[number] for number in own_ids]
    return Made(student, kept_ids, source.files, trimmed, growth)


@dataclass(frozen=True)
class Source:
    """The model that a student is made from, and the files of its tokenizer.

    ``in_teacher``: the teacher's id of each of its tokens; None: the teacher's own. ``own_ids``:
    the rows that it keeps even where no vocabulary is trimmed; None: all.
    """

    model: Any
    files: Path
    in_teacher: list[int] | None = None
    own_ids: list[int] | None = None


def _of_teacher(run: Run) -> Source:
    load = load_shape if run.recipe.student.init in OF_NO_TEACHER else load_model
    return Source(load(run.teacher.path), run.teacher.path)


def _of_checkpoint(run: Run, source: str) -> Source:
    """A checkpoint whose tokens are the teacher's, or some of them; with `uld`, any."""
    teacher, folder = run.teacher.path, checkpoint_of(source).path
    if run.recipe.train.across_tokens:
        return Source(load_model(folder), folder)
    in_teacher = _matched(teacher, folder)
    model, n_tokens = load_model(folder), len(load_tokenizer(teacher).get_vocab())
    own_ids = list(range(len(in_teacher)))
    if in_teacher != list(range(n_tokens)):
        return Source(model, folder, in_teacher, own_ids)
    # The same tokens: with the teacher's chat template, and with its rows if there are as many.
    same_rows = model.config.vocab_size == load_config(teacher).vocab_size
    return Source(model, teacher, in_teacher, None if same_rows else own_ids)


def _also_ends_with(model: Any, eos_id: int | None, own_ids: Sequence[int] | None) -> None:
    """Let a model end its texts with the token that the texts of training end with."""
    if eos_id is None or (own_ids is not None and eos_id not in own_ids):
        return
    eos_id = eos_id if own_ids is None else list(own_ids).index(eos_id)
    stated = model.generation_config.eos_token_id
    listed = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if eos_id not in listed:
        model.generation_config.eos_token_id = [*listed, eos_id]


def _cut_again(run: Run, before: Path) -> Made:
    """A student that was trained for a while loses more layers."""
    model, tokenizer, facts = load_model(before), load_tokenizer(before), load_facts(before)
    texts = _probe(run, tokenizer, model.config)
    spec = StudentSpec(n_layers=run.recipe.student.final_layers)
    student = INITS["prune"].make(Origin(model, None, texts), spec)
    of_teacher = [facts["kept_layers"][number] for number in student.kept_layers or []]
    return Made(replace(student, kept_layers=of_teacher), facts["kept_ids"], before)


def _texts(run: Run, tokenizer: Any, splits: Sequence[str] = ("train",)) -> Iterator[Said]:
    """The texts of some splits as the model reads them, one in memory at a time."""
    render = renderer(tokenizer)
    for pair in read_pairs(run.pairs):
        if pair.split in splits:
            yield Said(render(list(pair.messages)) + pair.completion, pair.language)


def _growth(run: Run, tokenizer: Any, trimmed: Any) -> dict[str, float]:
    """How many tokens held-out texts have in a trimmed vocabulary for one in the whole one."""
    whole, fewer = (
        count_tokens(of, _texts(run, tokenizer, ("validation", "test")))
        for of in (tokenizer.backend_tokenizer, trimmed)
    )
    return {name: round(fewer[name].total() / whole[name].total(), 4) for name in sorted(whole)}


def _probe(run: Run, tokenizer: Any, config: Any) -> list[torch.Tensor]:
    longest, backend = longest_text(config), tokenizer.backend_tokenizer
    texts = islice(_texts(run, tokenizer), N_PROBE_TEXTS)
    return [torch.tensor([backend.encode(one.text).ids[:longest]]) for one in texts]


def checkpoint_of(source: str, *, fetch: bool = True) -> ResolvedModel:
    """The checkpoint that `student.from` names; sources are those of a teacher."""
    return resolve_teacher(source, fetch=fetch, where=FROM)


def _matched(teacher: Path, folder: Path) -> list[int]:
    """The teacher's id of each of a checkpoint's tokens."""
    of_teacher, own = (load_tokenizer(of).get_vocab() for of in (teacher, folder))
    return ids_of_tokens(of_teacher, own, FROM)


def check_student(run: Run) -> None:
    """Refuse sizes that the student cannot have, and a checkpoint of other tokens."""
    wish = run.recipe.student
    config = load_config(run.teacher.path)
    shapes = [[sizes_of(run)]] if wish.budget is None else candidate_shapes(run, config)
    for shape in (shape for row in shapes for shape in row):
        INITS[wish.init].check(config, shape)
    if wish.steps and wish.steps[0] > config.num_hidden_layers:
        raise InputError(
            f"{wish.steps[0]} layers asked of a teacher that has {config.num_hidden_layers}",
            where="student.steps",
        )
    if wish.source is not None:
        with suppress(NotAtHandError):  # a dry run fetches nothing
            _check_tokens(run, checkpoint_of(wish.source, fetch=False).path)


def _check_tokens(run: Run, checkpoint: Path) -> None:
    """Refuse a checkpoint of other tokens than the teacher's; with `uld`, of the same."""
    try:
        _matched(run.teacher.path, checkpoint)
    except InputError:
        if run.recipe.train.across_tokens:
            return
        raise
    if run.recipe.train.across_tokens:
        raise InputError(
            "uld is for other tokens than the teacher's, which these are",
            where=FROM,
            remedy="take another train.loss: it compares them one by one",
        )


def student_asked(run: Run) -> object:
    """What the untrained student depends on beside teacher and pairs."""
    recipe = run.recipe
    asked: list[object] = [recipe.seed, recipe.student.model_dump(mode="json")]
    if recipe.student.source is not None:
        asked.append(_print_of(recipe.student.source))
    if recipe.train.across_tokens:
        asked.append("its own tokens")
    if recipe.student.budget is not None:
        asked.append(costs_asked(run))
    if recipe.student.steps:
        asked.append(step_run(run, recipe.student.steps[0]).recipe.train.model_dump(mode="json"))
    return asked


def _print_of(source: str) -> str:
    """What a checkpoint is told by; a source that is no file has a commit or a hash in it."""
    path = Path(source).expanduser()
    if path.is_dir():
        return folder_fingerprint(path)
    return file_digest(path) if path.is_file() else source


def step_run(run: Run, n_layers: int) -> Run:
    """The run that cuts to so many layers and trains for a while, in a folder of its own.

    It lends from the run that it is a step of what that would lend: pairs and cached targets.
    """
    wish, train = run.recipe.student, run.recipe.train
    assert wish.between is not None
    student = wish.model_copy(update={"steps": None, "between": None, "n_layers": n_layers})
    how_long = {"epochs": wish.between.epochs, "max_steps": wish.between.max_steps}
    shorter = train.model_copy(update={**how_long, "max_minutes": None, "quantize_aware": 0.0})
    recipe = run.recipe.model_copy(update={"student": student, "train": shorter})
    folder = run.folder / "steps" / f"{n_layers}-layers"
    return replace(run, recipe=recipe, folder=folder, base=run.lender)


def _learn(run: Run) -> None:
    from kdexport.pipeline.training import trained

    trained(run)


def step_stages(step: Run, before: Path | None) -> Sequence[Stage]:
    """What is done for a step. ``before``: the student of the step that it follows."""
    from kdexport.pipeline.stages import training_asked
    from kdexport.pipeline.variants import variant_stages

    select, *_ = variant_stages(step)
    its_student = Stage(
        "student",
        "Student is cut",
        lambda run: cut(run, before),
        lambda run: [run.student_init],
        lambda run: [student_asked(run), before and folder_fingerprint(before)],
        after=("select",),
    )
    its_training = Stage(
        "distill",
        "Short distillation",
        _learn,
        lambda run: [run.student, run.metrics],
        training_asked,
        after=("student",),
    )
    return (select, its_student, its_training)
