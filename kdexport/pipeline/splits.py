"""The pairs of a run as token ids of the student's vocabulary, split by split."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kdexport.content.prompts import ASKING, plain_chat, split_opening
from kdexport.data.card import Drops
from kdexport.data.pairs import SPLITS, Pair, pair_of, read_pairs
from kdexport.data.tables import Row
from kdexport.errors import InputError
from kdexport.pipeline.preflight import limits_of
from kdexport.pipeline.run import Run
from kdexport.system.console import say
from kdexport.system.journal import file_sha256, fingerprint
from kdexport.train.cache import fingerprint_examples
from kdexport.train.data import Encoded, encoded
from kdexport.train.model import template_of
from kdexport.train.stream import Lines

N_STAND_IN = 16  # training pairs that stand in for validation pairs where there are none


@dataclass(frozen=True)
class Splits:
    """The three splits as token ids of the student's vocabulary.

    ``measured_on``: the split that quality can be measured on, the furthest from training.
    ``max_length``: of a text in tokens. ``left_out``: what is longer. ``lines``: the training
    pairs where they are streamed; ``train`` is empty then.
    """

    train: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]
    measured_on: str
    max_length: int
    left_out: Drops
    lines: Lines | None = None

    @property
    def key(self) -> str:
        """A fingerprint of the training texts and their weights."""
        if self.lines:
            return file_sha256(self.lines.path)
        weights = [e.weight for e in self.train]
        own = [
            [e.example_id, e.token_weights.tolist()]
            for e in self.train
            if e.token_weights is not None
        ]
        return fingerprint(fingerprint_examples(self.train), weights, *own)


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
                asked, chat_template=template, tokenize=False, **ASKING
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in asked)
            raise InputError(
                f"the teacher's chat template refuses messages of {roles} ({error})", where="data"
            ) from error
        return f"{prompt}{opening}"

    return render


def encode_splits(run: Run, tokenizer: Any, student: Any) -> Splits:
    """Tokenize the pairs of each split; where the recipe streams, those for training are counted.

    Raises InputError for a pair of which nothing can be learnt, and where no training pair fits.
    """
    recipe, streams = run.recipe, run.recipe.data.stream
    limits = limits_of(recipe.data)
    max_length = min(recipe.train.max_length, student.config.max_position_embeddings)
    encode = encoder(tokenizer, prompts_too=recipe.train.learns_prompts)
    splits: dict[str, list[Encoded]] = {split: [] for split in SPLITS}
    n_read, n_too_long = Counter[str](), Counter[str]()
    left_out = Drops()
    for pair in read_pairs(run.pairs):
        if n_read[pair.split] == limits[pair.split]:
            continue
        n_read[pair.split] += 1
        example = encode(pair)
        if len(example.ids) > max_length:
            n_too_long[pair.split] += 1
            left_out.add(f"over {max_length} tokens", pair.id)
        elif not (streams and pair.split == "train" and len(splits["train"]) == N_STAND_IN):
            splits[pair.split].append(example)
    for split, n in n_too_long.items():
        say(f"    {n} {split} pairs left out: over {max_length} tokens")
    if not splits["train"]:
        raise InputError(
            f"no training pair fits in {recipe.train.max_length} tokens", where="train.max_length"
        )
    measured_on = next(s for s in ("test", "validation", "train") if splits[s])
    if not splits["validation"]:
        say("    no validation pairs: the best student is chosen on training pairs")
        splits["validation"] = [
            replace(e, first_target=e.first_completion) for e in splits["train"][:N_STAND_IN]
        ]

    def read(line: bytes) -> Encoded | None:
        pair = pair_of(Row(run.pairs, 0, json.loads(line)))
        if pair.split != "train":
            raise InputError("its training pairs do not come first", where=str(run.pairs))
        example = encode(pair)
        return example if len(example.ids) <= max_length else None

    return Splits(
        [] if streams else splits["train"],
        splits["validation"],
        splits["test"],
        measured_on,
        max_length,
        left_out,
        Lines(run.pairs, n_read["train"], read) if streams else None,
    )


def encoder(tokenizer: Any, *, prompts_too: bool) -> Callable[[Pair], Encoded]:
    """Pairs as token ids; ``prompts_too``: the training pairs' prompts are learnt."""
    render = renderer(tokenizer)

    def encode(pair: Pair) -> Encoded:
        return encoded(
            pair,
            tokenizer.backend_tokenizer,
            render,
            tokenizer.eos_token_id,
            prompts_too=prompts_too and pair.split == "train",
        )

    return encode
