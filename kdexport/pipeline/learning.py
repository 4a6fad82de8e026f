"""The loop with all that is around it: the best model, signals, what is seen while it runs.

Used for students and for teachers; knows no recipe.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdexport.pipeline.board import Board
from kdexport.pipeline.watching import Watcher, Written, shown
from kdexport.system.interrupts import noted
from kdexport.train.data import Encoded
from kdexport.train.evaluate import Evaluation
from kdexport.train.greedy import write_greedily
from kdexport.train.model import load_tokenizer, recover_folder, save_model
from kdexport.train.rounding import Rounding
from kdexport.train.trainer import Hooks, Material, Position, TrainSettings, distill
from kdexport.train.world import ALONE, World

BEST = "best"
SAMPLE_TOKENS = 32
GIVEN_TOKENS = 8  # of a plain text, which has no prompt


@dataclass(frozen=True)
class Places:
    """Where files of a training go, and where the model's tokenizer is copied from.

    ``checkpoints`` has the best model too, as its folder "best". ``board``: of TensorBoard's files,
    if they are wanted.
    """

    checkpoints: Path
    log: Path
    tokenizer_from: Path
    board: Path | None = None

    @property
    def best(self) -> Path:
        """The best model yet, a Hugging Face folder."""
        return self.checkpoints / BEST


def learn(
    model: Any,
    material: Material,
    settings: TrainSettings,
    places: Places,
    *,
    title: str,
    fingerprint: str,
    n_samples: int = 0,
    keeps_best: bool = True,
    evaluated: Callable[[Position, Evaluation], None] = lambda at, found: None,
    interrupted: Callable[[], bool] = lambda: False,
    rounding: Rounding | None = None,
    world: World = ALONE,
) -> Position:
    """Train a model in place, from its newest checkpoint if any; the best one is in `Places.best`.

    ``n_samples``: held-out prompts for which it writes at each evaluation. Raises Interrupted at
    SIGINT or SIGTERM, and where ``interrupted`` says so (its number is None then), with all saved.
    Called in all processes of ``world``; the first shows and writes.
    """
    where: Any = {"checkpoints": places.checkpoints, "fingerprint": fingerprint, "world": world}
    always = Hooks(rounding=rounding)
    if not world.is_first:
        with noted() as asked:
            hooks = replace(always, interrupted=lambda: asked() or interrupted())
            return distill(model, material, settings, hooks, **where)
    recover_folder(places.best)
    prompts = material.held_out[:n_samples]
    write = _writer(model, prompts, places.tokenizer_from) if prompts else None
    board = Board(places.board) if places.board else None
    with shown(title) as show, noted() as asked:
        watcher = Watcher(show, places.log, board=board, write=write)

        def keep_best(best: Any) -> None:
            if keeps_best:
                save_model(best, places.best, tokenizer_from=places.tokenizer_from)

        def note(at: Position, found: Evaluation) -> None:
            watcher.evaluated(at, found)
            evaluated(at, found)

        try:
            hooks = replace(
                always,
                begins=watcher.begins,
                keep_best=keep_best,
                report=watcher.step,
                evaluated=note,
                interrupted=lambda: asked() or interrupted(),
            )
            return distill(model, material, settings, hooks, **where)
        finally:
            watcher.close()


def _writer(
    model: Any, examples: Sequence[Encoded], tokenizer_from: Path
) -> Callable[[], Iterator[Written]]:
    """A function that has the model, as it is when asked, write for the examples' prompts."""
    tokenizer = load_tokenizer(tokenizer_from)
    longest = model.config.max_position_embeddings

    def text_of(ids: Any) -> str:
        return str(tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def write() -> Iterator[Written]:
        for example in examples:
            n_given = example.first_completion
            if n_given == 1:
                n_given = min(GIVEN_TOKENS, len(example.ids) - 1)
            prompt = example.ids[:n_given]
            ids = write_greedily(
                model,
                torch.from_numpy(prompt),
                min(SAMPLE_TOKENS, longest - n_given),
                {tokenizer.eos_token_id},
            )
            rest = example.ids[n_given:]
            yield Written(example.example_id, text_of(prompt), text_of(ids), text_of(rest))

    return write
