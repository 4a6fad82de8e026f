"""The loop that writes: one text as a stream of steps, variants of it, or many texts in batches.

Knows tokens; no text (`kdexport.runtime.stream` does) and no model family.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np

from kdexport.errors import InputError
from kdexport.runtime.logits import Rows, log_sums, most_likely
from kdexport.runtime.sample import Choices, Row, Sampler, TokenSampler, new_row

Array = np.ndarray[Any, Any]


class Runs(Protocol):
    """What generating needs of a session: ours, or a model in torch that is measured against it."""

    manifest: Any

    def new_cache(self, batch_size: int = 1, capacity: int = 256) -> Any:
        """Room for the keys and values of ``capacity`` tokens in each row."""
        ...

    def run(
        self,
        ids: Array,
        cache: Any,
        *,
        lengths: Array | None = None,
        logit_rows: Array | None = None,
    ) -> Array:
        """Read ids, int64 [B, L], after what the cache holds; logits, float32 [B, V]."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One token. ``logprob``: natural log, under the model at temperature 1, if it was asked for.

    ``finish_reason`` is set on the last step: "stop" (an end token, or what the caller stops at),
    or "length". ``in_text``: False for the model's end token, which has no text. ``top``: the most
    likely tokens here and their log-probabilities, most likely first.
    """

    token_id: int
    logprob: float | None = None
    finish_reason: str | None = None
    in_text: bool = True
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One text of a batch, without its end token; ``finished`` tells that it ended by itself."""

    ids: list[int]
    finished: bool
    steps: list[Step] = field(default_factory=list)


class Options(TypedDict, total=False):
    """How a text is written and where it ends.

    ``seed``: of the draws. ``stop_ids``: tokens that end the text beside the model's own end
    tokens, and are its last: part of what they say may belong to it. None of these all is chosen
    before ``min_new_tokens``, by a sampler of `make_sampler`. ``stops`` is told the text's number
    and each token that has text; True ends the text there. ``ignore_eos`` writes on past an end
    token, for measuring. ``n_logprobs``: 0 for each token's log-probability, N for the N most
    likely beside it; None costs nothing.
    """

    min_new_tokens: int
    seed: int
    stop_ids: Collection[int]
    stops: Callable[[int, int], bool] | None
    ignore_eos: bool
    n_logprobs: int | None


def generate(
    session: Runs,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    cache: Any = None,
    **options: Unpack[Options],
) -> Iterator[Step]:
    """Write one text, a step at a time; the first comes as soon as the prompt is read.

    ``cache``: one row that holds the first tokens of the prompt already, at least one short of all;
    it is written on. Raises InputError for an empty prompt, for one that leaves no room for a
    token, and for numbers of tokens that cannot be.
    """
    steps = generate_variants(
        session, prompt_ids, sampler, n=1, max_new_tokens=max_new_tokens, cache=cache, **options
    )
    for _, step in steps:
        yield step


def generate_variants(
    session: Runs,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    *,
    n: int,
    max_new_tokens: int,
    cache: Any = None,
    **options: Unpack[Options],
) -> Iterator[tuple[int, Step]]:
    """Write ``n`` texts for one prompt as a batch; each step comes with its text's number.

    The prompt is read once. A variant's draws depend on the seed and its number, those of number 0
    are `generate`'s; two variants may come out the same. The same call gives the same texts. So
    does another ``n``, but for rounding: an int8 graph rounds a row beside others a little
    otherwise than alone, which can turn a choice between nearly equal tokens.
    """
    writing = Writing(session, sampler, options)
    check_least(1, n=n)
    longest = len(prompt_ids) + writing.room(len(prompt_ids), max_new_tokens)
    if cache is None:
        cache, n_read = session.new_cache(1, longest), 0
    else:
        n_read = int(cache.lengths[0])
        cache.reserve(longest)
    texts = [
        Text(number, writing.new_row(str(number or ""), prompt_ids), longest) for number in range(n)
    ]
    logits = session.run(np.asarray(prompt_ids[n_read:], dtype=np.int64)[None], cache)
    if n > 1:
        cache.keep_rows([0] * n)
        logits = np.repeat(logits, n, axis=0)
    yield from writing.steps(texts, cache, logits)


def generate_batch(
    session: Runs,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    *,
    max_new_tokens: Sequence[int],
    row_keys: Sequence[str] | None = None,
    batch_size: int = 16,
    on_done: Callable[[int], None] | None = None,
    **options: Unpack[Options],
) -> list[Completion]:
    """Write many texts, prompts of similar length together; the order of the results is theirs.

    ``max_new_tokens`` and ``row_keys`` have one entry a prompt; a text depends on its prompt, the
    seed and its key, not on its neighbours (but for rounding, see `generate_variants`).
    ``on_done`` is told how many are done.
    """
    writing = Writing(session, sampler, options)
    keys = row_keys or [str(number) for number in range(len(prompts))]
    order = sorted(range(len(prompts)), key=lambda i: (max_new_tokens[i], len(prompts[i])))
    steps: list[list[Step]] = [[] for _ in prompts]
    for begin in range(0, len(order), batch_size):
        texts = []
        for number in order[begin : begin + batch_size]:
            n_prompt = len(prompts[number])
            longest = n_prompt + writing.room(n_prompt, max_new_tokens[number])
            texts.append(Text(number, writing.new_row(keys[number], prompts[number]), longest))
        for number, step in writing.prefilled_steps(texts):
            steps[number].append(step)
        if on_done:
            on_done(begin + len(texts))
    return [
        Completion([s.token_id for s in one if s.in_text], one[-1].finish_reason == "stop", one)
        for one in steps
    ]


@dataclass
class Text:
    """A text under way; with ``n_longest`` tokens, prompt included, it is ended."""

    number: int
    row: Row
    n_longest: int


class Writing:
    """What is common to the texts of one call.

    ``kind``: equal for those whose tokens can be chosen together.
    """

    def __init__(self, session: Runs, sampler: Sampler, options: Options) -> None:
        self.session = session
        self.sampler = sampler
        self.seed = options.get("seed", 0)
        self.stops = options.get("stops")
        self.n_logprobs = options.get("n_logprobs")
        self.min_new_tokens = options.get("min_new_tokens", 0)
        eos_ids = () if options.get("ignore_eos") else session.manifest.text.eos_token_ids
        self.eos_ids = frozenset(eos_ids)
        self.end_ids = self.eos_ids.union(options.get("stop_ids", ()))
        is_plain = isinstance(sampler, TokenSampler) and not sampler.changes
        self.kind: object = (sampler, self.n_logprobs) if is_plain else self
        check_least(0, min_new_tokens=self.min_new_tokens, n_logprobs=self.n_logprobs or 0)

    def room(self, n_prompt: int, max_new_tokens: int) -> int:
        """How many tokens may follow a prompt."""
        return room_after(self.session, n_prompt, max_new_tokens, self.min_new_tokens)

    def new_row(self, key: str, prompt_ids: Sequence[int]) -> Row:
        """The row of a text that is still to be written."""
        return new_row(
            self.seed,
            key,
            prompt_ids,
            min_new_tokens=self.min_new_tokens,
            end_ids=self.end_ids,
        )

    def prefilled_steps(self, texts: list[Text]) -> Iterator[tuple[int, Step]]:
        """Read the prompts of all texts at once, then write."""
        lengths = np.asarray([len(text.row.ids) for text in texts], dtype=np.int32)
        ids = np.zeros((len(texts), int(lengths.max())), dtype=np.int64)
        for padded, text in zip(ids, texts, strict=True):
            padded[: len(text.row.ids)] = text.row.ids
        cache = self.session.new_cache(len(texts), max(text.n_longest for text in texts))
        yield from self.steps(texts, cache, self.session.run(ids, cache, lengths=lengths))

    def steps(self, texts: list[Text], cache: Any, logits: Array) -> Iterator[tuple[int, Step]]:
        """Write all texts to their ends. One that has ended leaves the cache."""
        while True:
            chosen = self.choose([text.row for text in texts], logits)
            steps = [
                (text.number, self.step(text, one)) for text, one in zip(texts, chosen, strict=True)
            ]
            yield from steps
            keep = [at for at, (_, step) in enumerate(steps) if step.finish_reason is None]
            if not keep:
                return
            if len(keep) < len(texts):
                cache.keep_rows(keep)
                texts = [texts[at] for at in keep]
            tokens = np.asarray([text.row.ids[-1:] for text in texts], dtype=np.int64)
            logits = self.session.run(tokens, cache)

    def choose(self, rows: Sequence[Row], logits: Rows) -> list[Step]:
        """The next token of each of B rows, given their logits, float32 [V] each; see `step`."""
        if isinstance(self.sampler, TokenSampler):
            choices = self.sampler.choose(logits, rows)
        else:
            choices = Choices(self.sampler(np.asarray(logits), rows).tolist())
        if self.n_logprobs is None:
            return [Step(token_id) for token_id in choices.ids]
        sums = choices.log_sums or log_sums(logits)
        found = zip(choices.ids, logits, sums, strict=True)
        return [scored(*one, self.n_logprobs) for one in found]

    def step(self, text: Text, chosen: Step) -> Step:
        """Add the token that was chosen to its text; the step with what that means for its end."""
        token_id = chosen.token_id
        text.row.ids.append(token_id)
        in_text = token_id not in self.eos_ids
        stopped = self.stops(text.number, token_id) if self.stops and in_text else False
        if stopped or token_id in self.end_ids:
            return replace(chosen, finish_reason="stop", in_text=in_text)
        if len(text.row.ids) >= text.n_longest:
            return replace(chosen, finish_reason="length")
        return chosen


def scored(token_id: int, logits: Array, log_sum: float, n_top: int) -> Step:
    """A token by the logits before it, float32 [V], and their `log_sums`.

    ``n_top``: how many of the likeliest tokens come with it.
    """
    top = most_likely(logits, n_top).tolist() if n_top else []
    likely = tuple((one, float(logits[one]) - log_sum) for one in top)
    return Step(token_id, float(logits[token_id]) - log_sum, top=likely)


def room_after(session: Runs, n_prompt: int, max_new_tokens: int, min_new_tokens: int = 0) -> int:
    """How many tokens may follow a prompt: ``max_new_tokens``, if the model can hold them."""
    check_least(max(1, min_new_tokens), max_new_tokens=max_new_tokens)
    if n_prompt == 0:
        raise InputError("the prompt is empty")
    longest = int(session.manifest.model.max_length)
    if n_prompt >= longest:
        raise InputError(
            f"the prompt has {n_prompt} tokens; the model reads {longest}, answer included",
            remedy="shorten the prompt",
        )
    return min(max_new_tokens, longest - n_prompt)


def check_least(least: int, **numbers: int) -> None:
    """Refuse a number below ``least``, by its name."""
    for name, number in numbers.items():
        if number < least:
            raise InputError(f"is {number}; it has to be {least} or more", where=name)
