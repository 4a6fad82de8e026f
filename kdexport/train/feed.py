"""Which batches come next; a feed's place can be written down and found again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kdexport.train.data import Batch, Encoded, planned, token_batches


class Feed(Protocol):
    """Batches without end."""

    def group(self, n_batches: int) -> list[Batch]:
        """The batches of the next step, for all processes together."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it is, as JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


@dataclass
class Epochs:
    """Examples epoch after epoch; their order is a function of seed and epoch alone.

    ``row_length``: they are packed into rows of up to so many tokens, ``batch_size`` rows a batch.
    """

    examples: Sequence[Encoded]
    batch_size: int
    seed: int
    epoch: int = 0
    batch: int = 0
    row_length: int | None = None

    def __post_init__(self) -> None:
        self._batches = self._from_here()

    def group(self, n_batches: int) -> list[Batch]:
        """The batches of the next step."""
        return [next(self._batches) for _ in range(n_batches)]

    @property
    def n_batches(self) -> int:
        """Batches of the first epoch; packed rows may be one more or less in another."""
        rng = np.random.default_rng([self.seed, 0])
        return len(planned(self.examples, self.batch_size, rng, self.row_length))

    def state(self) -> dict[str, Any]:
        """Epoch, and batches of it that are behind."""
        return {"epoch": self.epoch, "batch": self.batch}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._batches = self._from_here()

    def _from_here(self) -> Iterator[Batch]:
        while True:
            for batch in token_batches(
                self.examples,
                self.batch_size,
                seed=self.seed,
                epoch=self.epoch,
                start=self.batch,
                row_length=self.row_length,
            ):
                self.batch += 1
                yield batch
            self.epoch += 1
            self.batch = 0
