"""Texts that are wanted, and what comes of them; on the event loop's side of the engine.

Knows tokens and pieces of text; neither HTTP nor models.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from kdexport.errors import KdexportError
from kdexport.runtime.generate import Step
from kdexport.runtime.sample import Sampler


class BusyError(KdexportError):
    """More texts are under way than there is room for. ``seconds``: when to ask again."""

    def __init__(self, n_texts: int, room: int, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"{n_texts} texts are under way or wait, and there is room for {room}")


class UnavailableError(KdexportError):
    """The model is still being loaded, or the server is about to end."""


class TookTooLongError(KdexportError):
    """A request was not done within its time."""


@dataclass(frozen=True)
class Job:
    """One text that is wanted.

    ``max_new_tokens`` 0: the prompt is scored and nothing is written. ``key`` tells texts of one
    prompt and seed apart. ``scores_prompt``: the log-probabilities of the prompt's tokens come
    first. Others as in `kdexport.runtime.generate.Options`.
    """

    prompt_ids: Sequence[int]
    sampler: Sampler
    max_new_tokens: int
    min_new_tokens: int = 0
    stop: Sequence[str] = ()
    seed: int = 0
    key: str = ""
    n_logprobs: int | None = None
    scores_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """What came of a job: the text that is now certain and the tokens that brought it.

    ``number``: of the job among those of its request. ``scored``: tokens of the prompt; the first
    of all has no log-probability. ``finish_reason``: "stop" or "length" on the last piece.
    """

    number: int
    text: str = ""
    steps: tuple[Step, ...] = ()
    scored: tuple[Step, ...] = ()
    finish_reason: str | None = None


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """One piece for each job that has any, in the order of their first ones."""
    of_jobs: dict[int, Piece] = {}
    for piece in pieces:
        before = of_jobs.get(piece.number, Piece(piece.number))
        of_jobs[piece.number] = Piece(
            piece.number,
            before.text + piece.text,
            before.steps + piece.steps,
            before.scored + piece.scored,
            piece.finish_reason,
        )
    return list(of_jobs.values())


class Answer:
    """What comes of the jobs of one request; an asynchronous iterator over lists of pieces.

    A list has one piece for each job of which something came since the last one. Raises what a job
    failed by: the request's other jobs end with it. ``deadline``: by time.monotonic.
    """

    def __init__(self, jobs: Sequence[Job], seconds: float) -> None:
        self.jobs = jobs
        self.asked_at = time.monotonic()
        self.deadline = self.asked_at + seconds
        self.is_cancelled = False
        self._n_open = len(jobs)
        self._arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        """Give up what is not done yet; the engine sees it before its next step."""
        self.is_cancelled = True

    def put(self, piece: Piece | Exception) -> None:
        """Add what came, on the event loop."""
        self._arrived.put_nowait(piece)

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """The pieces, in the order in which they came."""
        try:
            while self._n_open:
                came = [await self._arrived.get()]
                while not self._arrived.empty():
                    came.append(self._arrived.get_nowait())
                pieces = [piece for piece in came if isinstance(piece, Piece)]
                self._n_open -= sum(piece.finish_reason is not None for piece in pieces)
                if pieces:
                    yield joined(pieces)
                for failure in came:
                    if isinstance(failure, Exception):
                        raise failure
        finally:
            self.cancel()
