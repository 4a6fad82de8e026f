"""How many examples are worked on at once: fewer, where memory ends.

Knows no models and no batches: what is done with examples is the caller's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from kdexport.errors import KdexportError
from kdexport.system.console import say

Item = TypeVar("Item")
Result = TypeVar("Result")
TOLD_BY = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")


@dataclass
class Memory:
    """What has been found to fit. ``at_most``: items at once; None while memory has been enough.

    ``at_least``: so many at once, or an error.
    """

    at_most: int | None = None
    at_least: int = 1

    def parts(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Items in their order: all, or halves of halves where these are more than fit."""
        if self.at_most is None or len(items) <= self.at_most:
            yield items
            return
        middle = len(items) // 2
        yield from self.parts(items[:middle])
        yield from self.parts(items[middle:])

    def each(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result]) -> list[Result]:
        """What ``work`` makes of items: of all at once, or of its parts, in their order.

        Where memory ends, the part that was worked on is halved. Raises KdexportError where a
        single item is too much.
        """
        found: list[Result] = []
        waiting = [items]
        while waiting:
            part, *others = self.parts(waiting.pop())
            waiting += reversed(others)
            try:
                found.append(work(part))
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self.shrink(len(part))
            waiting.append(part)
        return found

    def anew(self, work: Callable[[], Result], n_items: int, forget: Callable[[], None]) -> Result:
        """What ``work`` gives that asks for `parts` of up to ``n_items`` itself.

        Where memory ends, ``forget`` what it has done, and begin again in smaller parts. Raises
        KdexportError where a single item is too much.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            forget()
            self.shrink(n_items)

    def shrink(self, n_items: int) -> None:
        """Half of ``n_items`` at once from here on, or of the fewer that it was."""
        largest = min(n_items, self.at_most or n_items)
        if largest <= self.at_least:
            raise KdexportError(
                f"there is not memory enough for {largest} examples at once",
                where="distill",
                remedy="lower train.max_length or train.batch_size, or choose a smaller student",
            )
        self.at_most = largest // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(
            f"    out of memory: batches of {self.at_most} from here on, as many of them as make "
            "the same"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error tells that memory ended, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in TOLD_BY)


def gpu_mb() -> float | None:
    """The most of this process's GPU that tensors have taken yet, 10^6 bytes; None without any."""
    most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return most / 1e6 if most else None
