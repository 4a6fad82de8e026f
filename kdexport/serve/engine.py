"""One thread that writes for all: texts join and leave its batch between two steps.

The thread owns session, codec, kept beginnings and batch; the event loop gives it jobs and gets
pieces. Knows tokens and text; no HTTP.
"""

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.constrain import Grammars
from kdexport.runtime.cpu import MANY_TEXTS
from kdexport.runtime.generate import room_after
from kdexport.runtime.prompt_cache import PromptCache
from kdexport.runtime.scheduler import Batch, Member
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.stream import TextStream
from kdexport.runtime.text import TextCodec, load_text
from kdexport.serve.jobs import Answer, BusyError, Job, Piece, TookTooLongError, UnavailableError
from kdexport.serve.prompt_scores import scored_parts

READ_SECONDS = 0.02  # of prompts between two steps of the texts under way
KEPT_OF_MEAN = 0.9  # of the mean time that a text takes, when another is done
LONGEST_RETRY = 60  # seconds
Event = tuple[Answer, Piece | Exception, bool]  # True: the job's last


class _Text:
    """A job in the engine's hands."""

    def __init__(self, answer: Answer, number: int) -> None:
        self.answer = answer
        self.number = number
        self.job = answer.jobs[number]
        self.reading: Iterator[None] | None = None
        self.stream: TextStream | None = None
        self.certain = ""
        self.error: Exception | None = None
        self.has_failed = False

    def stops(self, _number: int, token_id: int) -> bool:
        """Take a token; whether the text ends there. An error is this text's alone."""
        assert self.stream
        try:
            self.certain = self.stream.push(token_id)
        except Exception as error:  # whatever a tokenizer may raise
            self.error = error
            return True
        return self.stream.stopped

    def taken(self, *, is_last: bool) -> str:
        """The text that became certain by the last token."""
        assert self.stream
        certain, self.certain = self.certain, ""
        try:
            return certain + self.stream.flush() if is_last else certain
        except Exception as error:  # as above
            self.error = self.error or error
            return ""


class Engine:
    """A bundle that writes for many at once. `start` it, wait for `loaded`, `submit` jobs.

    Up to ``max_rows`` texts are written at a time and up to ``max_waiting`` wait besides;
    ``timeout_seconds`` is from a request's coming to its end. ``warn`` is told as in
    `open_session`. All methods are the event loop's.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        n_threads: int | None = None,
        max_rows: int = 32,
        max_waiting: int = 64,
        timeout_seconds: float = 120.0,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.manifest = bundle.manifest
        self.capacity = max_rows + max_waiting
        self.n_rows = 0
        self.n_open = 0
        self.is_ready = False
        self.is_draining = False
        self.codec: TextCodec
        self.grammars: Grammars
        self._bundle = bundle
        self._n_threads = n_threads
        self._max_rows = max_rows
        self._timeout_seconds = timeout_seconds
        self._warn = warn
        self._mean_seconds = 1.0
        self._inbox: queue.SimpleQueue[_Text | None] = queue.SimpleQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Load the bundle and begin to work, in the thread; within a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()

    async def loaded(self) -> None:
        """Wait until the bundle is loaded. Raises what made it fail."""
        await asyncio.shield(self._loaded)

    @property
    def n_waiting(self) -> int:
        """How many texts have no row yet."""
        return max(0, self.n_open - self.n_rows)

    def submit(self, jobs: Sequence[Job], timeout_seconds: float | None = None) -> Answer:
        """Have texts written: all of them or none.

        Raises UnavailableError before the bundle is loaded and once `drain` was called, BusyError
        where there is no room now, InputError where there never is.
        """
        if self.is_draining:
            raise UnavailableError("the server is about to end")
        if not self.is_ready:
            raise UnavailableError("the model is being loaded")
        if len(jobs) > self.capacity:
            raise InputError(
                f"the request is for {len(jobs)} texts; the server takes {self.capacity} at once"
            )
        if self.n_open + len(jobs) > self.capacity:
            raise BusyError(self.n_open, self.capacity, self._retry_seconds())
        answer = Answer(jobs, timeout_seconds or self._timeout_seconds)
        self.n_open += len(jobs)
        for number in range(len(jobs)):
            self._inbox.put(_Text(answer, number))
        return answer

    def _retry_seconds(self) -> int:
        """When a row should be free for another text."""
        rounds = max(1, self.n_waiting) / self._max_rows
        return min(LONGEST_RETRY, math.ceil(rounds * self._mean_seconds))

    async def drain(self, seconds: float) -> None:
        """Take no more jobs, and wait until those under way are done, for so long at most."""
        self.is_draining = True
        until = time.monotonic() + seconds
        while self.n_open and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End the thread; what is still under way fails by UnavailableError."""
        self.is_draining = True
        self._is_closing = True
        self._inbox.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _arrive(self, events: Sequence[Event]) -> None:
        for answer, piece, is_last in events:
            answer.put(piece)
            if is_last:
                self.n_open -= 1
                took = time.monotonic() - answer.asked_at
                self._mean_seconds += (1 - KEPT_OF_MEAN) * (took - self._mean_seconds)

    def _is_loaded(self) -> None:
        self.is_ready = True
        self._loaded.set_result(None)

    # From here on: the thread's.

    def _run(self) -> None:
        try:
            self.codec = load_text(self._bundle)
            session = open_session(
                self._bundle,
                n_threads=self._n_threads,
                many_tokens=self._max_rows >= MANY_TEXTS,
                warn=self._warn,
            )
            # Here, not when it is first asked for: it holds the interpreter for up to a second.
            self.grammars = Grammars(self.codec, session.vocab_size)
        except Exception as error:  # the event loop's to tell
            self._loop.call_soon_threadsafe(self._loaded.set_exception, error)
            return
        worker = _Worker(session, self.codec, self._max_rows)
        self._loop.call_soon_threadsafe(self._is_loaded)
        while not self._is_closing:
            self._take(worker)
            try:
                worker.drop()
                worker.read()
                worker.take()
                self._tell(worker)  # while the model reads on
                worker.read_on()
            except Exception as error:  # a mistake of ours: the thread goes on without its texts
                worker.lose([*worker.waiting, *worker.writing.values()], error)
                worker.waiting.clear()
            self._tell(worker)
        self._take(worker, waits=False)
        worker.drop(UnavailableError("the server has ended"))
        self._tell(worker)

    def _take(self, worker: "_Worker", *, waits: bool = True) -> None:
        """What came in; where there is nothing else to do, wait for it."""
        try:
            while True:
                text = self._inbox.get(block=waits and worker.is_idle)
                if text is None:
                    return
                worker.waiting.append(text)
        except queue.Empty:
            return

    def _tell(self, worker: "_Worker") -> None:
        """What came of the last turn, in one go: each wakes the event loop up."""
        self.n_rows = len(worker.writing)
        events, worker.events = worker.events, []
        if events:
            self._loop.call_soon_threadsafe(self._arrive, events)


class _Worker:
    """What the thread works with: texts that wait, the first of them being read, and the batch."""

    def __init__(self, session: Session, codec: TextCodec, max_rows: int) -> None:
        self.waiting: deque[_Text] = deque()
        self.writing: dict[Member, _Text] = {}
        self.events: list[Event] = []
        self._session = session
        self._codec = codec
        self._kept = PromptCache(session)
        self._max_rows = max_rows
        self._batch = Batch(session, max_rows)

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.writing

    def drop(self, reason: Exception | None = None) -> None:
        """End texts that were cancelled or have no time left; with a reason, all."""
        now = time.monotonic()
        for text in [*self.waiting, *self.writing.values()]:
            why = reason
            if text.answer.is_cancelled:
                why = why or UnavailableError("the request was cancelled")
            elif now > text.answer.deadline:
                seconds = text.answer.deadline - text.answer.asked_at
                why = why or TookTooLongError(f"the request was not done within {seconds:g} s")
            if why:
                self._fail(text, why)
        self.waiting = deque(text for text in self.waiting if not text.error)
        for member in [member for member, text in self.writing.items() if text.error]:
            self._batch.remove(member)
            del self.writing[member]

    def read(self) -> None:
        """Read prompts while there are rows for them, at most for READ_SECONDS and a block."""
        until = time.monotonic() + READ_SECONDS
        while self.waiting and not self._batch.is_full:
            text = self.waiting[0]
            text.reading = text.reading or self._reading(text)
            try:
                next(text.reading)
            except StopIteration:
                self.waiting.popleft()
            except Exception as error:  # one request's failure is not the others'
                self.waiting.popleft()
                self._fail(text, error)
            if time.monotonic() >= until:
                return

    def _reading(self, text: _Text) -> Iterator[None]:
        """Read a prompt in parts, then let its text join the batch."""
        job = text.job
        n_prompt = len(job.prompt_ids)
        n_new = 0
        if job.max_new_tokens or not n_prompt:
            n_new = room_after(self._session, n_prompt, job.max_new_tokens, job.min_new_tokens)
        text.stream = TextStream(self._codec, job.stop)
        cache = None
        if job.scores_prompt:
            cache = self._session.new_cache(1, n_prompt + n_new)
            for scored in scored_parts(self._session, cache, job.prompt_ids, job.n_logprobs or 0):
                self._put(text, Piece(text.number, scored=tuple(scored)))
                yield
            cache.truncate(max(0, n_prompt - 2))
        elif job.max_new_tokens:
            for cache in self._kept.begin_in_parts(job.prompt_ids, n_new):  # noqa: B007
                yield
        if not job.max_new_tokens:
            self._put(text, Piece(text.number, finish_reason="length"))
            return
        member = self._batch.add(
            job.prompt_ids,
            job.sampler,
            max_new_tokens=n_new,
            min_new_tokens=job.min_new_tokens,
            key=job.key,
            cache=cache,
            seed=job.seed,
            stops=text.stops,
            n_logprobs=job.n_logprobs,
        )
        self.writing[member] = text

    def take(self) -> None:
        """The next token of every text of the batch."""
        try:
            found = self._batch.take()
        except Exception as error:  # those who wait are not concerned
            self.lose(list(self.writing.values()), error)
            return
        for member, step in found:
            text = self.writing[member]
            if step is None or step.finish_reason:
                del self.writing[member]
            if step is None:
                self._fail(text, member.error or RuntimeError("no token came"))
                continue
            certain = text.taken(is_last=step.finish_reason is not None)
            if text.error:
                self._fail(text, text.error)
            else:
                reason = step.finish_reason
                self._put(text, Piece(text.number, certain, (step,), finish_reason=reason))

    def read_on(self) -> None:
        """Read the tokens that were taken."""
        try:
            self._batch.read_on()
        except Exception as error:  # those who wait are not concerned
            self.lose(list(self.writing.values()), error)

    def lose(self, texts: Sequence[_Text], error: Exception) -> None:
        """Fail some texts, and all of the batch with them."""
        for text in texts:
            self._fail(text, error)
        self.writing = {}
        self._batch = Batch(self._session, self._max_rows)

    def _put(self, text: _Text, piece: Piece) -> None:
        self.events.append((text.answer, piece, piece.finish_reason is not None))

    def _fail(self, text: _Text, error: Exception) -> None:
        if not text.has_failed:
            text.error, text.has_failed = error, True
            self.events.append((text.answer, error, True))
