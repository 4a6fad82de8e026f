"""`kdexport doctor RECIPE`: the proofs of `train.prove` on a recipe's own teacher and texts.

The student is made as the recipe says, in a folder that is gone afterwards; nothing of a run is
touched.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdexport.content.prompts import brief_messages
from kdexport.data.card import Drops
from kdexport.data.contamination import Overlap
from kdexport.data.pairs import SPLITS, Pair, by_split, read_pairs, write_pairs
from kdexport.errors import InputError
from kdexport.measuring.asking import request_of, spread
from kdexport.pipeline.dataset import sieved
from kdexport.pipeline.preflight import (
    brand_of,
    channels_of,
    check_student,
    check_training,
    load_asked_briefs,
    own_pairs,
    pairs_beside,
)
from kdexport.pipeline.run import Run, open_run
from kdexport.pipeline.service import check_hidden, inside_of
from kdexport.pipeline.splits import encoder
from kdexport.pipeline.stages import make_student
from kdexport.pipeline.training import device_of, objective_of, own_samples_of
from kdexport.recipe import Recipe
from kdexport.system.console import say, tracked
from kdexport.train.case import WAYS, Across, Case, Proof, Spell
from kdexport.train.data import Encoded
from kdexport.train.model import load_facts, load_model, load_tokenizer
from kdexport.train.prove import prove
from kdexport.train.uld import pairs_of

N_TEXTS = 8
MOST_PAIRS = 20_000  # for training, that are looked at


def examine(recipe: Recipe) -> list[Proof]:
    """Every proof of a recipe. Raises InputError for what `kdexport run` would refuse."""
    run = open_run(recipe, weights=True)
    check_student(run)
    check_training(run)
    pairs = _texts(run)
    handful = spread(by_split(pairs, "train"), N_TEXTS)
    if not handful:
        raise InputError("nothing in it is to train on", where="data")
    with tempfile.TemporaryDirectory(prefix="kdexport-doctor-") as place:
        folder = Path(place)
        asked = recipe.model_copy(update={"student": recipe.student.at_once()})
        trial = replace(run, recipe=asked, folder=folder, exported=folder / "exported")
        write_pairs(trial.pairs, handful)
        make_student(trial)
        case = _case(trial, handful, pairs)
        found: list[Proof] = []
        with tracked("doctor", "proofs") as progress:
            for proof in prove(case):
                found.append(proof)
                progress(len(found), note=proof.name)
        return found


def _texts(run: Run) -> list[Pair]:
    """The run's pairs, or the user's, or what briefs say where their copy is not written yet."""
    if run.pairs.is_file():
        say(f"texts of {run.pairs}")
        return list(_some(read_pairs(run.pairs)))
    if run.recipe.data.briefs is None:
        pairs = own_pairs(run)
        if run.recipe.data.answer_prompts:
            say("the teacher has answered nothing yet: prompts stand in for their own answers")
            pairs = [replace(p, completion=p.completion or request_of(p)) for p in pairs]
        return list(_some(sieved(pairs, run.recipe.data, Drops(), Overlap())))
    say("the teacher has written nothing yet: the briefs' own facts stand in for its copy")
    channels, brand = channels_of(run), brand_of(run)
    return [*pairs_beside(run)] + [
        Pair(
            brief.id,
            brief.split,
            tuple(brief_messages(brief, channels[brief.channel], brand)),
            ", ".join((brief.product, *brief.facts)),
        )
        for brief in load_asked_briefs(run)
    ]


def _some(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """All that is held out, and the first pairs for training."""
    n_train = 0
    for pair in pairs:
        n_train += pair.split == "train"
        if pair.split != "train" or n_train <= MOST_PAIRS:
            yield pair


def _case(trial: Run, handful: Sequence[Pair], pairs: Sequence[Pair]) -> Case:
    """What is examined: in float32, on the recipe's device, with plain attention."""
    wish = trial.recipe.train
    if wish.n_threads:
        torch.set_num_threads(wish.n_threads)
    device = device_of(wish.device)
    teacher = load_model(trial.teacher.path, attention="eager").to(device)
    student = load_model(trial.student_init, attention="eager").to(device)
    theirs, own = load_tokenizer(trial.teacher.path), load_tokenizer(trial.student_init)
    check_hidden(wish, teacher, student)
    examples = _encoded(trial, handful, own, student)
    across = None
    if wish.across_tokens:
        asked = {e.example_id: e for e in _encoded(trial, handful, theirs, teacher)}
        examples = [e for e in examples if e.example_id in asked]
        across = _across(handful, examples, asked, theirs, own)
    if len(examples) < 2:
        raise InputError(
            f"of {len(handful)} training pairs, {len(examples)} fit in {wish.max_length} tokens; "
            "two are needed to compare batches",
            where="train.max_length",
        )
    inside = inside_of(trial, teacher, student)
    return Case(
        teacher=teacher,
        student=student,
        kept_ids=load_facts(trial.student_init).get("kept_ids"),
        examples=examples,
        objective=replace(objective_of(wish), inside=inside),
        folder=trial.folder / "proofs",
        top_k=wish.top_k,
        teacher_tokens={i: token for token, i in theirs.get_vocab().items()},
        student_tokens={i: token for token, i in own.get_vocab().items()},
        tokenizer_from=trial.student_init,
        splits={split: [_read(pair) for pair in by_split(pairs, split)] for split in SPLITS},
        way=wish.targets if wish.targets in WAYS else "cached",  # as imported ones are
        n_sampled=wish.n_sampled,
        own=own_samples_of(trial, student, own.eos_token_id, "float32"),
        across=across,
        row_length=_longest(trial, student) if wish.packing else None,
    )


def _encoded(trial: Run, handful: Sequence[Pair], tokenizer: Any, model: Any) -> list[Encoded]:
    """Those of the pairs that fit."""
    longest = _longest(trial, model)
    encode = encoder(tokenizer, prompts_too=trial.recipe.train.learns_prompts)
    return [example for example in map(encode, handful) if len(example.ids) <= longest]


def _longest(trial: Run, model: Any) -> int:
    return min(trial.recipe.train.max_length, int(model.config.max_position_embeddings))


def _across(
    handful: Sequence[Pair],
    examples: Sequence[Encoded],
    asked: Mapping[str, Encoded],
    theirs: Any,
    own: Any,
) -> Across:
    """What is known of a student of other tokens, as training pairs them."""
    plain = frozenset(pair.id for pair in handful if not pair.messages)
    first, second = theirs.backend_tokenizer, own.backend_tokenizer
    pairs = pairs_of(examples, asked, first, second, plain)
    return Across(pairs, _spelling(first), _spelling(second), plain)


def _spelling(backend: Any) -> Spell:
    return lambda ids: str(backend.decode([int(i) for i in ids]))


def _read(pair: Pair) -> str:
    return "\n".join((*(message["content"] for message in pair.messages), pair.completion))
