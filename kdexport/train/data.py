"""Pairs of texts become batches of token ids whose target tokens are marked.

Knows tokenizers and nothing of models. The order of batches is a function of (seed, epoch) alone,
so that a resumed run sees the batches that an unbroken one would have seen.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer

from kdexport.data.pairs import Pair
from kdexport.data.spans import token_weights
from kdexport.errors import InputError
from kdexport.train.memory import Memory
from kdexport.train.packing import best_fit, next_fit
from kdexport.train.world import World

BATCHES_PER_BUCKET = 16
Result = TypeVar("Result")
Render = Callable[[list[dict[str, str]]], str]


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    ``ids``: int64 [n]. ``first_target``: the index from which on tokens are targets (>= 1: the
    first token has nothing before it to be predicted from). ``first_completion``: the index of the
    completion's first token; targets before it are the prompt's. ``weight``: what each of its
    tokens counts in the loss. ``is_own``: the student wrote the completion. ``token_weights``:
    float32 [n], by which ``weight`` is multiplied; None where all are 1.
    """

    example_id: str
    ids: np.ndarray
    first_target: int
    first_completion: int
    weight: float = 1.0
    is_own: bool = False
    token_weights: np.ndarray | None = None

    @property
    def target_weights(self) -> np.ndarray:
        """What each of its targets counts in the loss, float32 [n_targets]."""
        weights = np.full(self.n_targets, self.weight, dtype=np.float32)
        if self.token_weights is not None:
            weights *= self.token_weights[self.first_target :]
        return weights

    @property
    def n_targets(self) -> int:
        """How many of its tokens are targets."""
        return len(self.ids) - self.first_target

    @property
    def n_completion(self) -> int:
        """How many of its targets are the completion's."""
        return len(self.ids) - self.first_completion


@dataclass(frozen=True)
class Batch:
    """Right-padded rows, of one example each or, where they are packed, of several.

    ``ids``: int64 [B, L]. ``targets``: bool [B, L - 1]; position p marks that the logits at p are
    to predict the token at p + 1. ``examples``: in the order of their rows. A right pad never
    reaches a token before it through causal attention, so no attention mask is needed.

    ``positions``: int64 [B, L], from 0 for each example of a packed row, by which transformers
    keeps its examples apart; None where rows are not packed. ``row_length``: up to which they are.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    examples: tuple[Encoded, ...]
    positions: torch.Tensor | None = None
    row_length: int | None = None

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What a model reads of it."""
        inputs = {"input_ids": self.ids.to(device)}
        if self.positions is not None:
            inputs["position_ids"] = self.positions.to(device)
        return inputs

    def renamed(self, kept_ids: torch.Tensor | None) -> "Batch":
        """The same texts in the teacher's ids, of which ``kept_ids`` has one a student's token."""
        return self if kept_ids is None else replace(self, ids=kept_ids[self.ids])

    def of(self, examples: Sequence[Encoded]) -> "Batch":
        """A batch of some of its examples; itself where these are all."""
        if len(examples) == len(self.examples):
            return self
        return collate(examples, self.row_length)

    def in_parts(self, memory: Memory, work: Callable[["Batch"], Result]) -> list[Result]:
        """What ``work`` makes of it, or of its parts in their order where memory ends."""
        return memory.each(self.examples, lambda examples: work(self.of(examples)))

    def share(self, world: World) -> "Batch | None":
        """This process's examples of it; None where there are fewer examples than processes."""
        if world.size == 1:
            return self
        own = world.share(self.examples)
        return collate(own, self.row_length) if own else None

    @property
    def labels(self) -> torch.Tensor:
        """The target tokens, int64 [N], row by row."""
        return self.ids[:, 1:][self.targets]

    @property
    def n_targets(self) -> int:
        """How many tokens are targets."""
        return sum(example.n_targets for example in self.examples)

    @property
    def n_completion(self) -> int:
        """How many targets are completions' tokens; losses are means over these."""
        return sum(example.n_completion for example in self.examples)

    @property
    def is_completion(self) -> torch.Tensor:
        """Which targets are completions' tokens, bool [N]."""
        of = [torch.arange(e.first_target, len(e.ids)) >= e.first_completion for e in self.examples]
        return torch.cat(of)

    @property
    def is_own(self) -> bool:
        """Whether the student wrote it: all of it, or nothing."""
        return any(example.is_own for example in self.examples)

    @property
    def weights(self) -> torch.Tensor:
        """What each target counts in the loss, float [N]."""
        return torch.from_numpy(np.concatenate([e.target_weights for e in self.examples]))


def encoded(
    pair: Pair,
    tokenizer: Tokenizer,
    render: Render,
    eos_id: int | None,
    *,
    prompts_too: bool = False,
) -> Encoded:
    """Tokenize a pair.

    ``render`` turns chat messages into the text that the model reads. Prompt and completion are
    tokenized apart, as they are when the model writes. A pair without a prompt is plain text: all
    its tokens but the first are targets. With ``prompts_too`` that holds for every pair. A token
    has the weight of the span that it touches, wholly or in part. Raises InputError, with the
    pair's place, where no token of the completion would be a target.
    """
    where = pair.where or f"pair {pair.id}"
    try:
        prompt = render(list(pair.messages)) if pair.messages else ""
    except InputError as error:
        raise InputError(error.message, where=where, remedy=error.remedy) from None
    head = tokenizer.encode(prompt, add_special_tokens=False).ids
    completion = tokenizer.encode(pair.completion, add_special_tokens=False)
    tail = completion.ids
    ids = [*head, *tail] if eos_id is None else [*head, *tail, eos_id]
    first = max(len(head), 1)
    if not tail or len(ids) <= first:
        raise InputError(
            "no token of it can be learnt: the tokenizer makes "
            f"{len(tail) or 'none'} of {json.dumps(pair.completion[:40], ensure_ascii=False)}",
            where=where,
            remedy="leave it out, or give it a completion",
        )
    tokens = np.asarray(ids, dtype=np.int64)
    weights = None
    if pair.spans:
        weights = np.ones(len(ids), dtype=np.float32)
        end = len(head) + len(tail)
        weights[len(head) : end] = token_weights(pair.spans, completion.offsets)
    begin = 1 if prompts_too else first
    return Encoded(pair.id, tokens, begin, first, pair.weight, token_weights=weights)


def collate(examples: Sequence[Encoded], row_length: int | None = None) -> Batch:
    """Right-pad examples (with token 0, which no loss sees) into one batch.

    ``row_length``: pack them, in their order, into rows of up to so many tokens.
    """
    lengths = [len(example.ids) for example in examples]
    if row_length is None:
        rows = [slice(row, row + 1) for row in range(len(examples))]
    else:
        rows = next_fit(lengths, row_length)
    width = max(sum(lengths[row]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    targets = torch.zeros(len(rows), width - 1, dtype=torch.bool)
    for number, row in enumerate(rows):
        begin = 0
        for example in examples[row]:
            end = begin + len(example.ids)
            ids[number, begin:end] = torch.from_numpy(example.ids)
            positions[number, begin:end] = torch.arange(end - begin)
            targets[number, begin + example.first_target - 1 : end - 1] = True
            begin = end
        positions[number, begin:] = torch.arange(width - begin)
    packed = None if row_length is None else positions
    return Batch(ids, targets, tuple(examples), packed, row_length)


def token_batches(
    examples: Sequence[Encoded],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    row_length: int | None = None,
) -> Iterator[Batch]:
    """One epoch of shuffled batches of ``batch_size`` rows, from the batch number ``start`` on.

    Rows are examples, or with ``row_length`` as many of them as fit.
    """
    rng = np.random.default_rng([seed, epoch])
    for batch in planned(examples, batch_size, rng, row_length)[start:]:
        yield collate([examples[i] for i in batch], row_length)


def planned(
    examples: Sequence[Encoded], batch_size: int, rng: np.random.Generator, row_length: int | None
) -> list[list[int]]:
    """The numbers of examples of each batch of an epoch.

    Examples are shuffled, sorted by length inside groups of some batches (little padding) or packed
    within them, and the batches are shuffled again.
    """
    order = [int(i) for i in rng.permutation(len(examples))]
    bucket = batch_size * BATCHES_PER_BUCKET
    if row_length is not None:
        mean = sum(len(example.ids) for example in examples) / max(len(examples), 1)
        bucket = round(bucket * max(row_length / max(mean, 1), 1))
    batches: list[list[int]] = []
    for begin in range(0, len(order), bucket):
        group = order[begin : begin + bucket]
        lengths = [len(examples[i].ids) for i in group]
        if row_length is None:
            rows = [[i] for i in sorted(range(len(group)), key=lambda i: lengths[i])]
        else:
            rows = best_fit(lengths, row_length)
        for first in range(0, len(rows), batch_size):
            chosen = rows[first : first + batch_size]
            batches.append([group[i] for row in chosen for i in row])
    return [batches[i] for i in rng.permutation(len(batches))]


def ordered_batches(examples: Sequence[Encoded], batch_size: int) -> Iterator[Batch]:
    """All examples once, by length: for measuring and for asking the teacher."""
    by_length = sorted(examples, key=lambda example: len(example.ids))
    for begin in range(0, len(by_length), batch_size):
        yield collate(by_length[begin : begin + batch_size])
