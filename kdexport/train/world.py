"""The processes that train together: one, unless torchrun started several.

Gradients are summed over all of them and divided by the target tokens of all of them, so that how
the work is divided changes nothing. What several decide, they decide by the same numbers: a clock,
a wish to stop and a loss are no process's own. Knows no students and no files.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from kdexport.errors import KdexportError, first_words

PATIENCE = timedelta(days=7)  # the others wait while the first has data written; torchrun watches
BUCKET_ELEMENTS = 2**24  # gradients summed in one go: 64 MB in float32

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """This process's number among ``size``."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of some items: every nth, as neighbours are of similar length."""
        return items[self.rank :: self.size]

    def summed(self, values: Iterable[float]) -> list[float]:
        """Sums of numbers over all processes."""
        numbers = list(values)
        if self.size == 1:
            return numbers
        together = torch.tensor(numbers, dtype=torch.float64)
        with _reached():
            distributed.all_reduce(together)
        return [float(value) for value in together]

    def first(self, value: float) -> float:
        """The first process's value."""
        return self.summed([value if self.is_first else 0.0])[0]

    def any(self, flag: bool) -> bool:
        """Whether it is so in at least one process."""
        return self.summed([float(flag)])[0] > 0

    def told(self, text: str = "") -> str:
        """The first process's text."""
        content = text.encode()
        n_bytes = int(self.first(len(content)))
        if self.size == 1 or not n_bytes:
            return text if self.is_first else ""
        together = torch.zeros(n_bytes, dtype=torch.uint8)
        if self.is_first:
            together = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        with _reached():
            distributed.broadcast(together, 0)
        return together.numpy().tobytes().decode()

    def wait(self) -> None:
        """Go on when all processes have come so far."""
        self.any(False)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes; some may have none of their own."""
        if self.size == 1:
            return
        every = list(parameters)
        used = self.summed(float(p.grad is not None) for p in every)
        for bucket in _buckets([p for p, n in zip(every, used, strict=True) if n]):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([grad.flatten() for grad in grads])
            with _reached():
                distributed.all_reduce(flat)
            parts = torch.split(flat, [grad.numel() for grad in grads])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def reseed(self, seed: int, step: int) -> None:
        """Draw a step's random numbers from seed, step and rank, so that no state need be kept."""
        if self.size > 1:
            torch.manual_seed((seed + step * self.size + self.rank) % 2**63)


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """The processes that torchrun started, by what it left in the environment, for the block.

    Gradients go through NCCL on GPUs, numbers through gloo.
    """
    on_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    with _reached():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE
        )
    try:
        yield present()
    finally:
        leave()


def leave() -> None:
    """Be alone from here on; the others can reach this process no more."""
    if present().size > 1:
        distributed.destroy_process_group()


def present() -> World:
    """The processes that have joined; this one alone where none have."""
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_rank(), distributed.get_world_size())
    return ALONE


def _buckets(
    parameters: Iterable[torch.nn.Parameter],
) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters of one type and device, in runs of about `BUCKET_ELEMENTS`."""
    bucket: list[torch.nn.Parameter] = []
    n_elements = 0
    for parameter in parameters:
        alike = not bucket or (parameter.dtype, parameter.device) == (
            bucket[0].dtype,
            bucket[0].device,
        )
        if bucket and (not alike or n_elements + parameter.numel() > BUCKET_ELEMENTS):
            yield bucket
            bucket, n_elements = [], 0
        bucket.append(parameter)
        n_elements += parameter.numel()
    if bucket:
        yield bucket


@contextmanager
def _reached() -> Iterator[None]:
    """Tell in one line that the other processes cannot be reached: mostly, that one has ended."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise KdexportError(
            f"the other processes cannot be reached ({first_words(error, 80)})",
            where="torchrun",
            remedy="where one of them has ended, its own message says why",
        ) from error
