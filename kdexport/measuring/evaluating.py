"""`kdexport eval`: a bundle on someone's own texts, beside its teacher where one is named.

The teacher, a bundle or a model in PyTorch, reads the same tokens as the bundle under its own ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.bundle import MANIFEST
from kdexport.content.prompts import split_opening
from kdexport.data.pairs import Pair, load_pairs
from kdexport.errors import InputError
from kdexport.measuring.asking import asked_once, spread
from kdexport.measuring.scoring import Copies, Written, load_judges, score_copies
from kdexport.measuring.vocabularies import kept_ids
from kdexport.runtime.arm import sample_copy
from kdexport.runtime.generate import Runs
from kdexport.runtime.quality import log_softmax, target_logits
from kdexport.runtime.text import TextCodec, pieces
from kdexport.runtime.token_scores import Quality, TextScores, score_text, sum_up, whole_teacher
from kdexport.system.console import tracked
from kdexport.verdict.scores import CopyScores, Evaluation, Judged, TextSums, TokenQuality

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Opened:
    """A model that can read and write. ``name``: the source as it was given."""

    name: str
    session: Runs
    codec: TextCodec


@dataclass(frozen=True)
class Text:
    """A text of the file. ``ids``: int64 [n]; from ``first_target`` on they are foretold."""

    ids: Array
    first_target: int

    @property
    def targets(self) -> Array:
        """The places of the tokens that are foretold, int64 [m]."""
        return np.arange(self.first_target, len(self.ids))


def evaluate(
    bundle: Path,
    file: Path,
    *,
    teacher: str | None,
    n_threads: int | None,
    n_texts: int | None,
    n_copies: int,
    new_tokens: int,
) -> Evaluation:
    """Score a bundle on the texts of a file: its completions, or all of a text without a prompt.

    ``teacher``: a bundle's folder, or a source of a model in PyTorch. ``n_texts``: so many of the
    file at most, evenly apart. ``n_copies``: texts to write for as many prompts, beside their
    completions. Raises InputError for a file without texts, for a model or a teacher that is not
    there, and for two that do not share their tokens.
    """
    pairs = load_pairs(file)
    pairs = pairs if n_texts is None else spread(pairs, n_texts)
    models = [open_model(str(bundle), n_threads)]
    if teacher is not None:
        models.append(open_model(teacher, n_threads, "--teacher"))
    texts = list(fitting(pairs, models))
    if not texts:
        raise InputError(
            f"none of its {len(pairs)} texts fits in the model's "
            f"{models[0].session.manifest.model.max_length} tokens",
            where=str(file),
        )
    asked = spread(asked_once(pairs), n_copies)
    n_steps = len(texts) + len(models) * len(asked)
    with tracked("eval", "texts") as progress:
        scores: list[list[TextScores]] = [[] for _ in models]
        kept = kept_ids(*(model.codec for model in models)) if len(models) > 1 else None
        for number, text in enumerate(texts):
            progress(number, n_steps)
            for found, one in zip(scores, score_both(text, models, kept), strict=True):
                found.append(one)
        copies: list[CopyScores | None] = [None for _ in models]
        for number, model in enumerate(models if asked else []):
            progress(len(texts) + number * len(asked), n_steps, note=f"{model.name} writes")
            copies[number] = write_and_score(model, asked, new_tokens)
        progress(n_steps, n_steps)
    return Evaluation(
        data=str(file),
        n_texts=len(texts),
        n_too_long=len(pairs) - len(texts),
        judged=[
            Judged(model=name, quality=as_record(sum_up(found)), copies=written)
            for name, found, written in zip(_names(models), scores, copies, strict=True)
        ],
    )


def open_model(source: str, n_threads: int | None, option: str = "") -> Opened:
    """A bundle; or, where an ``option`` may name one, a model in PyTorch."""
    path = Path(source)
    if not option or (path / MANIFEST).is_file():
        from kdexport.bundle import open_bundle
        from kdexport.runtime.session import open_session
        from kdexport.runtime.text import load_text

        bundle = open_bundle(path)
        return Opened(source, open_session(bundle, n_threads=n_threads), load_text(bundle))
    from kdexport.errors import require_extras
    from kdexport.sources import resolve_teacher

    require_extras("train")
    model = resolve_teacher(source, where=option)
    from kdexport.measuring.torch_arm import open_torch

    return Opened(source, *open_torch(model.path))


def fitting(pairs: Sequence[Pair], models: Sequence[Opened]) -> Iterator[Text]:
    """The pairs as tokens of the first model, without those that a model is too short for."""
    longest = min(model.session.manifest.model.max_length for model in models)
    for pair in pairs:
        text = encode(pair, models[0].codec)
        if text.first_target < len(text.ids) <= longest:
            yield text


def encode(pair: Pair, codec: TextCodec) -> Text:
    """Prompt and completion, tokenized apart as when the model writes, and its end token."""
    facts = codec.facts
    end = codec.tokenizer.token_to_id(facts.eos_token) if facts.eos_token else None
    ends = [end] if end is not None else facts.eos_token_ids[:1]
    if not pair.messages:
        ids = [*codec.encode(pair.completion), *ends]
        return Text(np.asarray(ids, dtype=np.int64), 1)
    head = codec.encode(codec.render_chat(pair.messages))
    tail = codec.tokenizer.encode(pair.completion, add_special_tokens=False).ids
    return Text(np.asarray([*head, *tail, *ends], dtype=np.int64), max(len(head), 1))


def score_both(text: Text, models: Sequence[Opened], kept: Array | None) -> Iterator[TextScores]:
    """Each model's scores of one text; the teacher's distribution is over the model's tokens."""
    labels = text.ids[text.targets]
    found = [
        log_softmax(
            target_logits(model.session, text.ids, text.targets, kept if number else None).astype(
                np.float64
            )
        )
        for number, model in enumerate(models)
    ]
    if len({logprobs.shape[-1] for logprobs in found}) > 1:
        sizes = " and ".join(str(logprobs.shape[-1]) for logprobs in found)
        raise InputError(f"the model and its teacher tell of {sizes} tokens", where=models[0].name)
    for logprobs in found:
        yield score_text(
            logprobs, labels, whole_teacher(found[-1], logprobs, labels) if found[1:] else None
        )


def write_and_score(model: Opened, asked: Sequence[Pair], new_tokens: int) -> CopyScores:
    """What a model writes for some prompts, beside the completions of the file."""
    written = {
        pair.id: Written.of(
            sample_copy(
                model.session,
                model.codec,
                [dict(message) for message in pair.messages],
                new_tokens,
                one_line="\n" not in pair.completion,
            )
        )
        for pair in asked
    }
    references = {pair.id: _as_written(pair, model.codec) for pair in asked}
    return score_copies(Copies(written), Copies(references), load_judges())


def _as_written(pair: Pair, codec: TextCodec) -> Written:
    """A completion as if a model had written it."""
    _, opening = split_opening(pair.messages)
    ids = codec.tokenizer.encode(pair.completion, add_special_tokens=False).ids
    parts = tuple(piece for piece in pieces(codec, ids) if piece)
    return Written((opening + pair.completion).strip(), pair.completion, parts)


def _names(models: Sequence[Opened]) -> list[str]:
    """The models' folders, where that keeps them apart, else the sources as they were given."""
    short = [Path(model.name).resolve().name for model in models]
    return short if len(set(short)) == len(short) else [model.name for model in models]


def as_record(quality: Quality) -> TokenQuality:
    """The same, in the form of a report."""
    facts = asdict(quality)
    n_tokens, texts = facts.pop("n_tokens"), TextSums.model_validate(facts.pop("texts"))
    return TokenQuality(n_quality_tokens=n_tokens, texts=texts, **facts)
