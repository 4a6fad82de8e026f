"""Several texts for each of many requests, written in one batch that they join and leave.

Knows requests and texts; no briefs, no checks, no files.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kdexport.errors import InputError
from kdexport.runtime.prompt_cache import PromptCache
from kdexport.runtime.sample import Sampler, make_sampler
from kdexport.runtime.scheduler import Batch, Member, Prompt
from kdexport.runtime.session import Session
from kdexport.runtime.stream import TextStream
from kdexport.runtime.text import TextCodec

MAX_ROWS = 32


@dataclass(frozen=True)
class Request:
    """``n`` texts for one prompt. ``opening``: words that each of them begins with.

    ``key`` and ``seed`` set its draws apart from those of other requests.
    """

    key: str
    prompt_ids: Sequence[int]
    max_new_tokens: int
    n: int = 1
    opening: str = ""
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Candidate:
    """One text. ``added``: what was written after ``opening``; ``finished``: it ended by itself.

    ``logprobs``: of its tokens, its end too, in nats under the model at temperature 1.
    """

    number: int
    opening: str
    added: str = ""
    finished: bool = False
    logprobs: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it, without white space around it."""
        return (self.opening + self.added).strip()

    @property
    def mean_logprob(self) -> float | None:
        """The mean of its tokens' log-probabilities."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None


@dataclass(frozen=True)
class Answer:
    """The candidates of a request, by number; or the ``error`` for which there are none."""

    candidates: list[Candidate]
    error: InputError | None = None


class Overgenerator:
    """A bundle that writes candidates for each request: the likeliest text, and drawn ones.

    Of a request the prompt is read once, and what prompts begin with alike is read once for all.
    Number 0 is greedy; the others are drawn at ``temperature`` from the ``top_k`` likeliest tokens
    (0: all), of these from the likeliest that together reach ``top_p``. ``max_rows`` texts are
    under way at a time.
    """

    def __init__(
        self,
        session: Session,
        codec: TextCodec,
        *,
        temperature: float,
        top_p: float,
        top_k: int = 0,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self.codec = codec
        self._session = session
        self._max_rows = max_rows
        self._greedy = make_sampler(temperature=0)
        self._drawn = make_sampler(temperature=temperature, top_p=top_p, top_k=top_k)
        self._kept = PromptCache(session)

    def write(
        self, requests: Sequence[Request], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Answer]]:
        """The number of each request with its answer, as they are done.

        The same requests in the same order give the same texts. ``should_stop`` is asked before
        each step; what is under way then is given up.
        """
        batch = Batch(self._session, self._max_rows)
        waiting = deque(enumerate(requests))
        reading: _Open | None = None
        under_way: dict[Member, tuple[_Open, _Growing]] = {}
        while waiting or reading or under_way:
            if should_stop():
                return
            while not batch.is_full and (waiting or reading):
                if reading is None:
                    number, request = waiting.popleft()
                    try:
                        reading = _Open(number, request, self._read(batch, request))
                    except InputError as error:
                        yield number, Answer([], error)
                        continue
                growing = _Growing(self.codec, reading.request, len(reading.candidates))
                reading.candidates.append(growing.candidate)
                under_way[self._begin(batch, reading, growing)] = reading, growing
                if len(reading.candidates) == reading.request.n:
                    reading = None
            for member, step in batch.step():
                one, growing = under_way[member]
                if member.error is not None and not isinstance(member.error, InputError):
                    raise member.error
                if step is not None:
                    growing.add(step.logprob, step.finish_reason)
                if step is None or step.finish_reason is not None:
                    del under_way[member]
                    one.n_done += 1
                    one.error = one.error or member.error
                    if one.n_done == one.request.n:
                        yield one.number, Answer([] if one.error else one.candidates, one.error)

    def _read(self, batch: Batch, request: Request) -> Prompt:
        cache = self._kept.begin(request.prompt_ids)
        return batch.read(request.prompt_ids, cache=cache)

    def _begin(self, batch: Batch, one: "_Open", growing: "_Growing") -> Member:
        number = growing.candidate.number
        sampler: Sampler = self._drawn if number else self._greedy
        return batch.begin(
            one.prompt,
            sampler,
            key=f"{one.request.key}/{number}",
            seed=one.request.seed,
            max_new_tokens=one.request.max_new_tokens,
            stops=growing.stops,
            n_logprobs=0,
        )


@dataclass
class _Open:
    """A request under way: its candidates so far, and how many of them are done."""

    number: int
    request: Request
    prompt: Prompt
    candidates: list[Candidate] = field(default_factory=list)
    n_done: int = 0
    error: InputError | None = None


class _Growing:
    """A candidate under way."""

    def __init__(self, codec: TextCodec, request: Request, number: int) -> None:
        self.candidate = Candidate(number, request.opening)
        self._stream = TextStream(codec, request.stop)

    def stops(self, _number: int, token_id: int) -> bool:
        """Take a token; whether the text ends there."""
        self.candidate.added += self._stream.push(token_id)
        return self._stream.stopped

    def add(self, logprob: float | None, finish_reason: str | None) -> None:
        """Note what is known of the last token."""
        self.candidate.logprobs.append(logprob or 0.0)
        if finish_reason is not None:
            self.candidate.added += self._stream.flush()
            self.candidate.finished = finish_reason == "stop"
