"""The pairs of a run as token ids of the student's vocabulary, split by split."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kdexport.console import say
from kdexport.content.prompts import plain_chat, split_opening
from kdexport.errors import InputError
from kdexport.pairs import by_split, load_pairs
from kdexport.pipeline import Run
from kdexport.train.data import Encoded, encode_pairs
from kdexport.train.model import template_of

N_STAND_IN = 16  # training pairs that stand in for validation pairs where there are none


@dataclass(frozen=True)
class Splits:
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


def encode_splits(run: Run, tokenizer: Any, student: Any) -> Splits:
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
            prompts_too=split == "train" and recipe.train.learns_prompts,
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
            replace(e, first_target=e.first_completion) for e in splits["train"][:N_STAND_IN]
        ]
    return Splits(splits["train"], splits["validation"], splits["test"], measured_on)
