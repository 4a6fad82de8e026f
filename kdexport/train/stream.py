"""Training texts that are read again from their file in each epoch, and never all in memory.

Knows where lines begin and in which order they are drawn; what a line means is `Lines`' to tell.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.train.data import BATCHES_PER_BUCKET, Batch, Encoded, collate, planned


@dataclass(frozen=True)
class Lines:
    """The first ``n`` lines of a file; ``read``: one as an example, None where it is too long."""

    path: Path
    n: int
    read: Callable[[bytes], Encoded | None]


@dataclass
class Stream:
    """Lines, epoch after epoch, through a shuffle buffer.

    A line is drawn at random from the ``buffer`` that were read last and not drawn yet; only where
    they begin is kept of them. Examples of some batches are held at a time, batched by length or
    packed as by `Epochs`.

    The order is a function of seed and epoch alone. The state says how many lines were drawn before
    the examples in hand: going on from it draws them again, without reading the texts.
    """

    lines: Lines
    batch_size: int
    seed: int
    buffer: int
    row_length: int | None = None
    epoch: int = 0
    drawn: int = 0
    batch: int = 0

    def __post_init__(self) -> None:
        self._batches = self._from_here()

    @property
    def n_batches(self) -> int:
        """Batches of the first epoch, all of which is read for it."""
        groups = self._groups(0, 0)
        return sum(len(self._planned(group, 0, begin)) for begin, _, group in groups)

    def group(self, n_batches: int) -> list[Batch]:
        """The batches of the next step."""
        return [next(self._batches) for _ in range(n_batches)]

    def state(self) -> dict[str, Any]:
        """Epoch, lines drawn before the examples in hand, and batches of these that are behind."""
        return {"epoch": self.epoch, "drawn": self.drawn, "batch": self.batch}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.epoch, self.drawn, self.batch = state["epoch"], state["drawn"], state["batch"]
        self._batches = self._from_here()

    def _from_here(self) -> Iterator[Batch]:
        while True:
            for begin, end, group in self._groups(self.epoch, self.drawn):
                for batch in self._planned(group, self.epoch, begin)[self.batch :]:
                    self.batch += 1
                    yield collate([group[i] for i in batch], self.row_length)
                self.drawn, self.batch = end, 0
            self.epoch += 1
            self.drawn = 0

    def _planned(self, group: list[Encoded], epoch: int, begin: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch, begin])
        return planned(group, self.batch_size, rng, self.row_length)

    def _groups(self, epoch: int, drawn: int) -> Iterator[tuple[int, int, list[Encoded]]]:
        """Examples that are batched together, and how many lines were drawn before and after."""
        n_rows = self.batch_size * BATCHES_PER_BUCKET
        most = n_rows * (self.row_length or 1)  # in tokens where they are packed
        begin, group, size = drawn, list[Encoded](), 0
        with self.lines.path.open("rb") as file:
            for end, offset in enumerate(islice(self._order(epoch), drawn, None), start=drawn + 1):
                file.seek(offset)
                example = self.lines.read(file.readline())
                if example is not None:
                    group.append(example)
                    size += len(example.ids) if self.row_length else 1
                if size >= most:
                    yield begin, end, group
                    begin, group, size = end, [], 0
        if group:
            yield begin, self.lines.n, group

    def _order(self, epoch: int) -> Iterator[int]:
        """Where the lines begin, in the order of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        waiting: list[int] = []
        for offset in self._offsets():
            if len(waiting) < self.buffer:
                waiting.append(offset)
                continue
            place = int(rng.integers(self.buffer))
            yield waiting[place]
            waiting[place] = offset
        rng.shuffle(waiting)
        yield from waiting

    def _offsets(self) -> Iterator[int]:
        offset = 0
        with self.lines.path.open("rb") as file:
            for line in islice(file, self.lines.n):
                yield offset
                offset += len(line)
