"""What is asked for: the data, the sizes; and what is refused before any stage begins.

A check here refuses in a second what the work would refuse only after minutes or hours.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdexport.content.audiences import load_personal
from kdexport.content.brands import Brand, load_brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import Channels, load_channels
from kdexport.content.prompts import Message, brief_messages
from kdexport.data.pairs import Pair, PairFile, by_split, with_own_ids, within_limits
from kdexport.errors import InputError, require_extras
from kdexport.pipeline.run import Run
from kdexport.recipe.sections import DataSection
from kdexport.recipe.student import OWN_SIZES
from kdexport.recipe.train import TrainSection
from kdexport.system.console import say

PASS_RATES = ("pass_rate", "pass_rate_ratio")  # measures of copy for briefs
BESIDE = "own/"  # before the ids of texts beside the teacher's
SHORT = 16  # characters of a completion that may hold no token


def limits_of(data: DataSection) -> dict[str, int | None]:
    """How many pairs each split may have."""
    return {"train": data.max_train, "validation": data.max_validation, "test": data.max_test}


def own_pairs(run: Run) -> Iterable[Pair]:
    """The pairs of the user's own file, all of them; may be looped over again.

    Where the recipe streams, they are read from the file each time, and ids may be used twice.
    """
    data = run.recipe.data
    file = PairFile(
        Path(data.pairs or ""),
        data.validation_fraction,
        data.test_fraction,
        run.recipe.seed,
        unanswered=data.answer_prompts,
    )
    return file if data.stream else with_own_ids(file)


def pairs_beside(run: Run) -> list[Pair]:
    """The user's own texts beside the teacher's answers, under ids of their own.

    They are for training where they name no split: the teacher is not judged by them.
    """
    path = run.recipe.data.own
    if path is None:
        return []
    found = with_own_ids(PairFile(Path(path), 0.0, 0.0))
    return [replace(pair, id=f"{BESIDE}{pair.id}") for pair in found]


def load_asked_briefs(run: Run) -> list[Brief]:
    """The briefs that the teacher answers: as many as have enough variants for the limits."""
    data = run.recipe.data
    if data.briefs is None:
        raise InputError("name a file of briefs or of pairs", where="data")
    variants = data.generate.variants
    limits = {split: n and -(-n // variants) for split, n in limits_of(data).items()}
    found = load_personal(Path(data.briefs), channels_of(run), data.audiences)
    return within_limits([one.brief for one in found], limits)


def channels_of(run: Run) -> Channels:
    """The channels that the recipe's briefs may name."""
    return load_channels(run.recipe.data.channels)


def brand_of(run: Run) -> Brand | None:
    """The brand that the recipe's briefs are written for."""
    return load_brand(run.recipe.data.brand) if run.recipe.data.brand else None


def sizes_of(run: Run) -> Any:
    """The student's sizes that the recipe asks for, a `StudentSpec`."""
    from kdexport.train.sizes import StudentSpec

    wish = run.recipe.student
    return StudentSpec(
        n_layers=wish.final_layers,
        **{name: getattr(wish, name) for name in OWN_SIZES if name != "n_layers"},
    )


def longest_text(config: Any) -> int | None:
    """How many tokens a model of this configuration reads, where it says so."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    return longest


def check_data(run: Run) -> None:
    """Refuse data that a run has no use for: nothing to train on, briefs that are too long."""
    data = run.recipe.data
    if data.briefs is None:
        n_train = _check_pairs(run, own_pairs(run))
        if data.answer_prompts:
            alone = [pair for pair in own_pairs(run) if not pair.completion]
            _check_prompts(run, ((pair.where, pair.messages) for pair in alone))
    else:
        briefs, channels, brand = load_asked_briefs(run), channels_of(run), brand_of(run)
        n_train = len(by_split(briefs, "train")) + _check_pairs(run, pairs_beside(run))
        asked = ((one, brief_messages(one, channels[one.channel], brand)) for one in briefs)
        _check_prompts(run, ((f"{data.briefs}, brief {one.id}", words) for one, words in asked))
    if not n_train:
        raise InputError("nothing in it is to train on", where=str(data.pairs or data.briefs))


def _check_pairs(run: Run, pairs: Iterable[Pair]) -> int:
    """Read all pairs; refuse one that may hold no token; return how many are for training."""
    count: Callable[[Pair], object] | None = None
    n_train = 0
    for pair in pairs:
        n_train += pair.split == "train"
        if pair.completion and len(pair.completion) <= SHORT:
            count = count or token_counter(run)
            count(pair)
    return n_train


def token_counter(run: Run) -> Callable[[Pair], tuple[int, int]]:
    """How many of the teacher's tokens a pair's prompt and its completion are.

    Raises InputError, with the pair's place, for one of which no token can be learnt.
    """
    from kdexport.pipeline.splits import renderer
    from kdexport.train.data import encoded
    from kdexport.train.model import load_tokenizer

    tokenizer = load_tokenizer(run.teacher.path)
    render = renderer(tokenizer)

    def count(pair: Pair) -> tuple[int, int]:
        example = encoded(pair, tokenizer.backend_tokenizer, render, tokenizer.eos_token_id)
        n_prompt = example.first_completion if pair.messages else 0
        return n_prompt, len(example.ids) - n_prompt

    return count


def _check_prompts(run: Run, prompts: Iterable[tuple[str, Sequence[Message]]]) -> None:
    """Refuse a prompt, named by its place, that the teacher cannot read and answer."""
    from kdexport.export.text import chat_template, text_facts
    from kdexport.runtime.text import TextCodec
    from kdexport.train.model import load_config

    folder = run.teacher.path
    config = load_config(folder)
    codec = TextCodec(folder / "tokenizer.json", text_facts(folder, config), chat_template(folder))
    longest = longest_text(config)
    for where, messages in prompts:
        try:
            prompt = codec.render_chat(messages)
        except InputError as error:
            raise InputError(error.message, where=where, remedy=error.remedy) from None
        n_tokens = len(codec.encode(prompt))
        if longest and n_tokens >= longest:
            raise InputError(
                f"the prompt has {n_tokens} tokens; the teacher reads {longest}, answer included",
                where=where,
                remedy="shorten it",
            )


def check_student(run: Run) -> None:
    """Refuse sizes that the student cannot have, and a checkpoint of other tokens."""
    from kdexport.pipeline import cutting

    cutting.check_student(run)


def check_training(run: Run) -> None:
    """Refuse a device, a library, layers or imported targets that are not there.

    Warn of draws at a temperature at which they are noise.
    """
    from kdexport.pipeline import training
    from kdexport.pipeline.importing import check_imported
    from kdexport.pipeline.service import inner_terms
    from kdexport.train.inside import settled
    from kdexport.train.model import load_config
    from kdexport.train.sizes import StudentSpec, resized_config

    if run.recipe.train.tensorboard:
        require_extras("tensorboard")
    training.check_device(run.recipe.train)
    check_imported(run)
    _warn_of_noise(run.recipe.train)
    terms = inner_terms(run.recipe.train)
    if terms:
        config = load_config(run.teacher.path)
        spec = sizes_of(run)
        if run.recipe.student.init == "prune":  # whose heads keep their size
            spec = StudentSpec(n_layers=spec.n_layers)
        settled(terms, resized_config(config, spec, None), config)


def _warn_of_noise(wish: TrainSection) -> None:
    if wish.targets == "sampled" and wish.temperature > 1 and not wish.texts_alone:
        say(
            f"train.temperature: {wish.temperature:g} makes noise of sampled targets: with 12 "
            "tokens of 8,192 the gradient's cosine with the whole one's was 0.85 at 1, 0.15 at 2; "
            "use 1, or targets: cached or hidden"
        )


def check_bench(run: Run) -> None:
    """Refuse to measure longer texts than the teacher, and so the student, can hold.

    Also thresholds on what will have no reference to be measured by.
    """
    from kdexport.export.gate import QUALITY
    from kdexport.runtime.latency import check_room
    from kdexport.train.model import load_config

    wish, longest = run.recipe.bench, longest_text(load_config(run.teacher.path))
    if longest:
        check_room(wish.prompt_tokens, wish.new_tokens, longest, where="bench.prompt_tokens")
    for threshold in wish.thresholds:
        why = None
        if threshold.measure in QUALITY and run.known_reference is None:
            why = "a student of other tokens is not measured by the teacher's"
        if threshold.measure in PASS_RATES and run.recipe.data.briefs is None:
            why = "without briefs nothing tells what copy has to pass"
        if why is not None:
            raise InputError(f"'{threshold}': {why}", where="bench.fail_if")
