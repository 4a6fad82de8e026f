"""The loop that writes: one text as a stream of steps, or many texts in batches."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kdexport.errors import InputError
from kdexport.runtime.sample import Row, Sampler, new_row

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


@dataclass(frozen=True)
class Step:
    """One token. ``logprob``: natural log, under the model at temperature 1.

    ``finish_reason`` is set on the last step: "stop" (an end token or one of the caller's stop
    tokens), or "length". ``in_text``: False for the model's end token, which has no text.
    """

    token_id: int
    logprob: float
    finish_reason: str | None = None
    in_text: bool = True


@dataclass(frozen=True)
class Completion:
    """One text of a batch; ``finished`` tells that it ended by itself."""

    ids: list[int]
    finished: bool


def generate(
    session: Runs,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    seed: int = 0,
    stop_ids: Collection[int] = (),
    ignore_eos: bool = False,
) -> Iterator[Step]:
    """Write one text, a step at a time; the first comes as soon as the prompt is read.

    ``stop_ids``: tokens that end the text beside the model's own end tokens, and are its last:
    part of what they say may belong to it. ``ignore_eos`` writes on past an end token, for
    measuring.
    Raises InputError for an empty prompt and for one that leaves no room for a token.
    """
    eos_ids = frozenset(() if ignore_eos else session.manifest.text.eos_token_ids)
    end_ids = eos_ids.union(stop_ids)
    room = _room(session, len(prompt_ids))
    n_new = min(max_new_tokens, room)
    cache = session.new_cache(1, len(prompt_ids) + n_new)
    row = new_row(seed, prompt_ids=prompt_ids)
    logits = session.run(np.asarray(prompt_ids, dtype=np.int64)[None], cache)
    one = np.empty((1, 1), dtype=np.int64)
    for count in range(1, n_new + 1):
        token_id = int(sampler(logits, [row])[0])
        row.ids.append(token_id)
        logprob = _logprob(logits[0], token_id)
        if token_id in end_ids:
            yield Step(token_id, logprob, "stop", in_text=token_id not in eos_ids)
            return
        yield Step(token_id, logprob, "length" if count == n_new else None)
        if count < n_new:
            one[0, 0] = token_id
            logits = session.run(one, cache)


def generate_batch(
    session: Runs,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    *,
    max_new_tokens: Sequence[int],
    seed: int = 0,
    stop_ids: Collection[int] = (),
    row_keys: Sequence[str] | None = None,
    batch_size: int = 16,
    on_done: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Write many texts, prompts of similar length together; the order of the results is theirs.

    ``max_new_tokens`` and ``row_keys`` have one entry a prompt; a text depends on its prompt, the
    seed and its key, not on its neighbours (but for rounding). ``stop_ids`` as in `generate`.
    ``on_done`` is told how many are done.
    """
    keys = row_keys or [str(number) for number in range(len(prompts))]
    order = sorted(range(len(prompts)), key=lambda i: (max_new_tokens[i], len(prompts[i])))
    results: list[Completion | None] = [None] * len(prompts)
    eos_ids = frozenset(session.manifest.text.eos_token_ids)
    end_ids = eos_ids.union(stop_ids)
    done = 0
    for begin in range(0, len(order), batch_size):
        group = order[begin : begin + batch_size]
        rows = [new_row(seed, keys[i], prompts[i]) for i in group]
        _write_batch(session, rows, [max_new_tokens[i] for i in group], sampler, end_ids)
        for i, row in zip(group, rows, strict=True):
            ids = row.ids[len(prompts[i]) :]
            last = ids[-1]
            results[i] = Completion(ids[:-1] if last in eos_ids else ids, last in end_ids)
        done += len(group)
        if on_done:
            on_done(done)
    return [result for result in results if result is not None]


def _write_batch(
    session: Runs, rows: list[Row], limits: list[int], sampler: Sampler, end_ids: frozenset[int]
) -> None:
    """Write all rows to their ends. A row that has ended leaves the cache."""
    lengths = np.asarray([len(row.ids) for row in rows], dtype=np.int32)
    limits = [min(n, _room(session, int(k))) for n, k in zip(limits, lengths, strict=True)]
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
    ends = [len(row.ids) + n for row, n in zip(rows, limits, strict=True)]
    cache = session.new_cache(len(rows), max(ends))
    logits = session.run(ids, cache, lengths=lengths)
    active = list(range(len(rows)))  # the rows that are in the cache
    while True:
        tokens = sampler(logits, [rows[i] for i in active])
        for i, token in zip(active, tokens, strict=True):
            rows[i].ids.append(int(token))
        keep = [
            at
            for at, i in enumerate(active)
            if rows[i].ids[-1] not in end_ids and len(rows[i].ids) < ends[i]
        ]
        if not keep:
            return
        if len(keep) < len(active):
            cache.keep_rows(keep)
            active, tokens = [active[at] for at in keep], tokens[keep]
        logits = session.run(tokens[:, None], cache)


def _room(session: Runs, n_prompt: int) -> int:
    """How many tokens may follow a prompt."""
    if n_prompt == 0:
        raise InputError("the prompt is empty")
    longest = int(session.manifest.model.max_length)
    if n_prompt >= longest:
        raise InputError(
            f"the prompt has {n_prompt} tokens; the model reads {longest}, answer included",
            remedy="shorten the prompt",
        )
    return longest - n_prompt


def _logprob(logits: Array, token_id: int) -> float:
    top = logits.max()
    return float(logits[token_id] - top - np.log(np.exp(logits - top).sum()))
