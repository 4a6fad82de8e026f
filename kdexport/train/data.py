"""Pairs of texts become batches of token ids whose target tokens are marked.

Knows tokenizers and nothing of models. The order of batches is a function of (seed, epoch) alone,
so that a resumed run sees the batches that an unbroken one would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer

from kdexport.pairs import Pair
from kdexport.train.world import World

BATCHES_PER_BUCKET = 16
Render = Callable[[list[dict[str, str]]], str]


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    ``ids``: int64 [n]. ``first_target``: the index from which on tokens are targets (>= 1: the
    first token has nothing before it to be predicted from). ``first_completion``: the index of the
    completion's first token; targets before it are the prompt's. ``weight``: what each of its
    tokens counts in the loss. ``is_own``: the student wrote the completion.
    """

    example_id: str
    ids: np.ndarray
    first_target: int
    first_completion: int
    weight: float = 1.0
    is_own: bool = False

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
    """Right-padded examples.

    ``ids``: int64 [B, L]. ``targets``: bool [B, L - 1]; position p marks that the logits at p are
    to predict the token at p + 1. A right pad never reaches a token before it through causal
    attention, so no attention mask is needed.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    examples: tuple[Encoded, ...]

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What a model reads of it."""
        return {"input_ids": self.ids.to(device)}

    def renamed(self, kept_ids: torch.Tensor | None) -> "Batch":
        """The same texts in the teacher's ids, of which ``kept_ids`` has one a student's token."""
        return self if kept_ids is None else replace(self, ids=kept_ids[self.ids])

    def halves(self) -> "tuple[Batch, Batch]":
        """The same examples in two batches."""
        middle = len(self.examples) // 2
        return collate(self.examples[:middle]), collate(self.examples[middle:])

    def share(self, world: World) -> "Batch | None":
        """This process's examples of it; None where there are fewer examples than processes."""
        if world.size == 1:
            return self
        own = world.share(self.examples)
        return collate(own) if own else None

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
        starts = torch.tensor([example.first_completion for example in self.examples])
        positions = torch.arange(1, self.ids.shape[1])
        return (positions >= starts[:, None])[self.targets]

    @property
    def is_own(self) -> bool:
        """Whether the student wrote it: all of it, or nothing."""
        return any(example.is_own for example in self.examples)

    @property
    def weights(self) -> torch.Tensor:
        """What each target counts in the loss, float [N]: its example's weight."""
        counts = torch.tensor([example.n_targets for example in self.examples])
        weights = torch.tensor([example.weight for example in self.examples])
        return weights.repeat_interleave(counts)


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    render: Render,
    eos_id: int | None,
    max_length: int,
    *,
    prompts_too: bool = False,
) -> tuple[list[Encoded], int]:
    """Tokenize pairs; return them with the number left out for being over ``max_length`` tokens.

    ``render`` turns chat messages into the text that the model reads. Prompt and completion are
    tokenized apart, as they are when the model writes. A pair without a prompt is plain text: all
    its tokens but the first are targets. With ``prompts_too`` that holds for every pair.
    """
    encoded: list[Encoded] = []
    for pair in pairs:
        prompt = render(list(pair.messages)) if pair.messages else ""
        head = tokenizer.encode(prompt, add_special_tokens=False).ids
        tail = tokenizer.encode(pair.completion, add_special_tokens=False).ids
        ids = [*head, *tail] if eos_id is None else [*head, *tail, eos_id]
        first = max(len(head), 1)
        if first < len(ids) <= max_length:
            first_target = 1 if prompts_too else first
            tokens = np.asarray(ids, dtype=np.int64)
            encoded.append(Encoded(pair.id, tokens, first_target, first, pair.weight))
    return encoded, len(pairs) - len(encoded)


def collate(examples: Sequence[Encoded]) -> Batch:
    """Right-pad examples (with token 0, which no loss sees) into one batch."""
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    targets = torch.zeros(len(examples), length - 1, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.from_numpy(example.ids)
        targets[row, example.first_target - 1 : len(example.ids) - 1] = True
    return Batch(ids, targets, tuple(examples))


def token_batches(
    examples: Sequence[Encoded], batch_size: int, *, seed: int, epoch: int, start: int = 0
) -> Iterator[Batch]:
    """One epoch of shuffled batches of similar length, from the batch number ``start`` on.

    Examples are shuffled, sorted by length inside groups of some batches (little padding), and the
    batches are shuffled again.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(examples))
    bucket = batch_size * BATCHES_PER_BUCKET
    batches: list[np.ndarray] = []
    for begin in range(0, len(order), bucket):
        group = sorted(order[begin : begin + bucket], key=lambda i: len(examples[i].ids))
        batches += [np.asarray(group[i : i + batch_size]) for i in range(0, len(group), batch_size)]
    for number in rng.permutation(len(batches))[start:]:
        yield collate([examples[i] for i in batches[number]])


def ordered_batches(examples: Sequence[Encoded], batch_size: int) -> Iterator[Batch]:
    """All examples once, by length: for measuring and for asking the teacher."""
    by_length = sorted(examples, key=lambda example: len(example.ids))
    for begin in range(0, len(by_length), batch_size):
        yield collate(by_length[begin : begin + batch_size])
