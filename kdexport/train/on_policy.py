"""A student's own samples in place of given completions: on-policy distillation.

Agarwal et al. 2024 (GKD), algorithm 1: a share of the batches is written by the student as it is
now, and the teacher says of each token what it would have written there. Which batches, and what
is drawn for a text, depends on the seed, the step, the batch's number in it and the text's place in
the batch alone: a run that goes on from a checkpoint draws what it would have drawn, and several
processes draw what one would.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from kdexport.train.data import Batch, collate
from kdexport.train.memory import Memory
from kdexport.train.model import low_precision
from kdexport.train.schedule import Schedule
from kdexport.train.targets import TargetRows
from kdexport.train.teacher import TargetFn
from kdexport.train.world import ALONE, World

STREAM = 0x0E11  # tells these draws from others of the same seed


@dataclass(frozen=True)
class OnPolicy:
    """How a share of the batches is written anew.

    ``fraction``: of batches, as training goes on. ``temperature``: of the samples.
    ``max_length``: of prompt and sample. ``end_ids``: tokens that end a sample, and are its last.
    """

    fraction: Schedule
    temperature: float
    max_new_tokens: int
    max_length: int
    end_ids: frozenset[int]
    seed: int
    precision: str = "float32"

    def renewed(
        self,
        student: Any,
        group: Sequence[Batch],
        step: int,
        progress: float,
        world: World = ALONE,
        memory: Memory | None = None,
    ) -> list[Batch]:
        """This process's share of a step's batches, samples in place of some completions.

        A batch is the student's own in all processes, or in none. ``memory``: how many of its texts
        are written at once.
        """
        found, memory = [], memory or Memory()
        for number, batch in enumerate(group):
            rng = np.random.default_rng([STREAM, self.seed, step, number])
            is_own = rng.random() < self.fraction.at(progress)
            draws = rng.random((len(batch.examples), self.max_new_tokens))
            share = batch.share(world)
            if share is None:
                continue
            own_draws = draws[world.rank :: world.size]  # as `World.share` deals
            if is_own:
                share = self._sampled(student, share, own_draws, memory)
            found.append(share)
        return found

    def _sampled(self, student: Any, batch: Batch, draws: np.ndarray, memory: Memory) -> Batch:
        prompts = [example.ids[: example.first_completion] for example in batch.examples]
        rooms = [min(self.max_new_tokens, self.max_length - len(prompt)) for prompt in prompts]

        def write(texts: Sequence[int]) -> list[np.ndarray]:
            asked = [prompts[text] for text in texts], [rooms[text] for text in texts]
            return sample(student, *asked, self.temperature, self.end_ids, draws[[*texts]])

        with low_precision(student, self.precision):
            samples = chain.from_iterable(memory.each(range(len(prompts)), write))
        written = [
            replace(example, ids=np.concatenate([prompt, new]), is_own=True, token_weights=None)
            for example, prompt, new in zip(batch.examples, prompts, samples, strict=True)
        ]
        return collate(written, batch.row_length)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[np.ndarray],
    rooms: Sequence[int],
    temperature: float,
    end_ids: Collection[int],
    draws: np.ndarray,
) -> list[np.ndarray]:
    """What a model writes after prompts, int64 ids each: at least one, at most its room.

    A sample ends with the first of ``end_ids``, which is its last token. The prompts, int64 ids,
    are read at once, padded on the left; a text that has ended leaves the batch. ``draws``, float64
    [texts, longest room] in [0, 1), are each text's own: other texts change it by rounding alone.
    """
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    texts: list[list[int]] = [[] for _ in prompts]
    alive, cache = list(range(len(prompts))), None
    was_training = model.training
    model.eval()
    try:
        while alive:
            asked = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            asked = {name: values.to(model.device) for name, values in asked.items()}
            out = model(**asked, past_key_values=cache, use_cache=True, logits_to_keep=1)
            shares = torch.softmax(out.logits[:, -1].float() / temperature, dim=-1)
            # Of a student that has none, any token: the step is then skipped, and counted.
            shares = shares.nan_to_num(nan=1.0).cpu()
            ids = _at(shares, [draws[text, len(texts[text])] for text in alive])
            for text, token in zip(alive, ids[:, 0].tolist(), strict=True):
                texts[text].append(token)
            going = [
                row
                for row, text in enumerate(alive)
                if texts[text][-1] not in end_ids and len(texts[text]) < rooms[text]
            ]
            cache = out.past_key_values
            if going and len(going) < len(alive):
                cache.batch_select_indices(torch.tensor(going, device=model.device))
            alive = [alive[row] for row in going]
            ids, positions = ids[going], positions[going, -1:] + 1
            mask = torch.cat([mask[going], torch.ones_like(ids)], dim=-1)
    finally:
        model.train(was_training)
    return [np.asarray(text, dtype=np.int64) for text in texts]


def _at(shares: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
    """The token of each row [B, V] where the shares before it add up to its draw, int64 [B, 1]."""
    sums = shares.double().cumsum(-1)
    wanted = sums[:, -1:] * torch.tensor(draws, dtype=torch.float64)[:, None]
    return torch.searchsorted(sums, wanted, right=True).clamp(max=shares.shape[-1] - 1)


def by_origin(given: TargetFn, own: TargetFn) -> TargetFn:
    """Targets of given texts from one source and of a student's own from another."""

    def ask(batch: Batch) -> TargetRows:
        return (own if batch.is_own else given)(batch)

    return ask


def end_ids_of(model: Any, end_id: int | None) -> frozenset[int]:
    """The tokens that end a model's texts: of its tokenizer, and of its own configuration."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return frozenset(token for token in (*listed, end_id) if token is not None)
