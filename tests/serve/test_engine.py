"""Many at once write what each writes alone, and none can hold up or end the others."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.generate import generate
from kdexport.runtime.logits import log_sum_exp
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.scheduler import Batch
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.stream import write_text
from kdexport.runtime.text import TextCodec, load_text
from kdexport.serve import engine as engine_module
from kdexport.serve.engine import Engine
from kdexport.serve.jobs import Answer, BusyError, Job, Piece, TookTooLongError, UnavailableError

GREEDY = make_sampler()
PROMPTS = [[5, 6, 7], [9] * 11, [20, 30], [8, 7, 6, 5, 4] * 20, [40, 41, 42, 43], [3] * 70]


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    return open_session(bundle, n_threads=1)


@pytest.fixture(scope="module")
def codec(bundle: Bundle) -> TextCodec:
    return load_text(bundle)


def job_of(number: int) -> Job:
    """Some are greedy, some drawn; with lengths, seeds and stop strings of their own."""
    sampler = make_sampler(temperature=0.9, top_k=20) if number % 2 else GREEDY
    return Job(
        PROMPTS[number],
        sampler,
        2 + 5 * number,
        seed=number,
        stop=("e", "qu") if number > 2 else (),
        n_logprobs=0,
    )


@asynccontextmanager
async def running(bundle: Bundle, **options: Any) -> AsyncIterator[Engine]:
    engine = Engine(bundle, n_threads=1, **options)
    engine.start()
    await engine.loaded()
    try:
        yield engine
    finally:
        await engine.close()


async def all_of(answer: Answer) -> list[Piece]:
    return [piece async for pieces in answer for piece in pieces]


async def ended(engine: Engine) -> None:
    for _ in range(500):
        if not engine.n_open:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("still under way")


def with_engine(bundle: Bundle, work: Callable[[Engine], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with running(bundle, **options) as engine:
            await asyncio.wait_for(work(engine), 60)

    asyncio.run(run())


def forever(**options: Any) -> Job:
    """A text of 200 tokens: no end token is chosen."""
    return Job([5, 6, 7], GREEDY, 200, min_new_tokens=200, **options)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4))
def test_each_writes_as_alone(
    bundle: Bundle, session: Session, codec: TextCodec, numbers: list[int], max_rows: int
) -> None:
    async def work(engine: Engine) -> None:
        answers = [engine.submit([job_of(number)]) for number in numbers]
        found = await asyncio.gather(*(all_of(answer) for answer in answers))
        for number, pieces in zip(numbers, found, strict=True):
            job = job_of(number)
            alone = list(
                write_text(
                    session,
                    codec,
                    job.prompt_ids,
                    job.sampler,
                    max_new_tokens=job.max_new_tokens,
                    seed=job.seed,
                    stop=job.stop,
                    n_logprobs=0,
                )
            )
            assert "".join(p.text for p in pieces) == "".join(p.text for p in alone)
            steps = [step for piece in pieces for step in piece.steps]
            assert [s.token_id for s in steps] == [p.step.token_id for p in alone]
            assert [s.finish_reason for s in steps] == [p.step.finish_reason for p in alone]
            expected = [p.step.logprob for p in alone]
            assert [s.logprob for s in steps] == pytest.approx(expected, abs=1e-4)

    with_engine(bundle, work, max_rows=max_rows)


def test_jobs_of_one_request_come_in_one_answer(bundle: Bundle) -> None:
    async def work(engine: Engine) -> None:
        sampler = make_sampler(temperature=1.5)
        jobs = [Job([5, 6], sampler, 8, key=key, min_new_tokens=8) for key in ("", "1")]
        pieces = await all_of(engine.submit(jobs))
        texts = [[s.token_id for p in pieces if p.number == n for s in p.steps] for n in (0, 1)]
        assert [len(text) for text in texts] == [8, 8] and texts[0] != texts[1]
        assert engine.n_open == 0

    with_engine(bundle, work)


def test_a_prompt_is_scored_as_the_session_scores_it(bundle: Bundle, session: Session) -> None:
    ids = [(7 * n) % 300 + 3 for n in range(100)]
    logits = session.score(ids)
    expected = [
        float(row[token]) - log_sum_exp(row) for row, token in zip(logits, ids[1:], strict=False)
    ]

    async def work(engine: Engine) -> None:
        for n_new in (0, 1):
            job = Job(ids, GREEDY, n_new, n_logprobs=2, scores_prompt=True)
            pieces = await all_of(engine.submit([job]))
            scored = [step for piece in pieces for step in piece.scored]
            assert [step.token_id for step in scored] == ids
            assert scored[0].logprob is None
            assert [s.logprob for s in scored[1:]] == pytest.approx(expected, abs=1e-4)
            best = [int(row.argmax()) for row in logits]
            assert [step.top[0][0] for step in scored[1:]] == best[:-1]
            written = [step.token_id for piece in pieces for step in piece.steps]
            assert written == best[-1:] * n_new
            assert pieces[-1].finish_reason

    with_engine(bundle, work)


def test_a_long_prompt_does_not_hold_up_the_others(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of a prompt takes a while here; tokens of the other text come between them."""
    run = Session.run

    def slow(self: Session, ids: Any, cache: Any, **options: Any) -> Any:
        if ids.shape[1] > 1:
            time.sleep(0.03)
        return run(self, ids, cache, **options)

    async def work(engine: Engine) -> None:
        order: list[str] = []

        async def note(name: str, job: Job) -> None:
            async for pieces in engine.submit([job]):
                order.extend(name for piece in pieces for _ in piece.steps)

        first = asyncio.create_task(note("short", forever()))
        while not order:
            await asyncio.sleep(0)
        monkeypatch.setattr(Session, "run", slow)
        n_before = len(order)
        second = asyncio.create_task(note("long", Job([*range(3, 203)], GREEDY, 1)))
        await second
        assert order[n_before:].index("long") >= 200 // 32
        first.cancel()

    with_engine(bundle, work)


def test_what_is_cancelled_frees_its_row_within_two_tokens(bundle: Bundle) -> None:
    async def work(engine: Engine) -> None:
        answer = engine.submit([forever()])
        n_later = 0
        with pytest.raises(UnavailableError, match="cancelled"):
            async for pieces in answer:
                n_later += sum(len(p.steps) for p in pieces) if answer.is_cancelled else 0
                answer.cancel()
        assert n_later <= 2
        assert engine.n_open == 0

    with_engine(bundle, work, max_rows=1)


def test_who_stops_listening_frees_the_row(bundle: Bundle) -> None:
    async def work(engine: Engine) -> None:
        listening = asyncio.create_task(all_of(engine.submit([forever()])))
        waiting = engine.submit([Job([5], GREEDY, 1)])
        await asyncio.sleep(0)
        listening.cancel()
        assert await all_of(waiting)
        await ended(engine)

    with_engine(bundle, work, max_rows=1)


def test_a_request_has_its_time_and_no_more(bundle: Bundle) -> None:
    async def work(engine: Engine) -> None:
        under_way = engine.submit([forever()], timeout_seconds=0.01)
        behind = engine.submit([forever()], timeout_seconds=0.005)
        for answer in (under_way, behind):
            with pytest.raises(TookTooLongError, match=r"within 0\.0"):
                await all_of(answer)
        assert (await all_of(engine.submit([Job([5], GREEDY, 1)])))[-1].finish_reason
        assert engine.n_open == 0

    with_engine(bundle, work, max_rows=1)


def test_there_is_room_for_so_many_and_then_none(bundle: Bundle) -> None:
    async def work(engine: Engine) -> None:
        answers = [engine.submit([forever()]) for _ in range(3)]
        with pytest.raises(BusyError) as busy:
            engine.submit([forever()])
        assert busy.value.seconds >= 1
        with pytest.raises(InputError, match="4 texts; the server takes 3"):
            engine.submit([forever()] * 4)
        assert engine.n_open == 3
        for answer in answers:
            answer.cancel()
        await ended(engine)
        assert await all_of(engine.submit([Job([5], GREEDY, 1)]))

    with_engine(bundle, work, max_rows=2, max_waiting=1)


@pytest.mark.parametrize(
    "bad",
    [
        Job([], GREEDY, 3),
        Job([5] * 300, GREEDY, 3),
        Job([5], make_sampler(logit_bias=dict.fromkeys(range(320), -np.inf)), 3),
        Job([5], make_sampler(logit_bias={99_999: 1.0}), 3),
        Job([99_999], GREEDY, 3),
        Job([5], GREEDY, 3, stop=("",)),
        Job([], GREEDY, 0, scores_prompt=True),
    ],
)
def test_one_that_fails_fails_alone(bundle: Bundle, bad: Job) -> None:
    async def work(engine: Engine) -> None:
        good = [engine.submit([job_of(1)]) for _ in range(2)]
        failing = engine.submit([bad])
        with pytest.raises(InputError):
            await all_of(failing)
        for answer in good:
            assert (await all_of(answer))[-1].finish_reason
        assert engine.n_open == 0

    with_engine(bundle, work)


def test_a_mistake_in_one_text_s_sampler_ends_no_other(bundle: Bundle) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    async def work(engine: Engine) -> None:
        beside = engine.submit([forever()])
        stream = aiter(beside)
        n_steps = sum(len(piece.steps) for piece in await anext(stream))
        with pytest.raises(KeyError, match="a bug"):
            await all_of(engine.submit([Job([5], broken, 3)]))
        assert n_steps + sum([len(p.steps) async for pieces in stream for p in pieces]) == 200
        assert engine.n_open == 0

    with_engine(bundle, work)


def test_the_thread_outlives_a_step_that_fails(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_on = Batch.read_on

    def failing(self: Batch) -> Any:
        monkeypatch.setattr(Batch, "read_on", read_on)
        raise RuntimeError("a bug")

    async def work(engine: Engine) -> None:
        await all_of(engine.submit([job_of(0)]))
        answer = engine.submit([forever()])
        stream = aiter(answer)
        await anext(stream)
        monkeypatch.setattr(Batch, "read_on", failing)
        with pytest.raises(RuntimeError, match="a bug"):
            while True:
                await anext(stream)
        assert (await all_of(engine.submit([job_of(0)])))[-1].finish_reason
        assert engine.n_open == 0

    with_engine(bundle, work)


def test_a_token_is_told_before_the_model_reads_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_read, read_on = threading.Event(), Batch.read_on

    def waiting(self: Batch) -> None:
        assert may_read.wait(60)
        read_on(self)

    async def work(engine: Engine) -> None:
        monkeypatch.setattr(Batch, "read_on", waiting)
        stream = aiter(engine.submit([forever()]))
        (first,) = await anext(stream)
        assert len(first.steps) == 1 and not may_read.is_set()
        may_read.set()
        await anext(stream)

    with_engine(bundle, work)


def test_the_thread_outlives_a_mistake_of_its_own(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = engine_module._Worker.drop

    def failing(self: Any, *arguments: Any) -> None:
        if self.writing and self.waiting:
            monkeypatch.setattr(engine_module._Worker, "drop", drop)
            raise KeyError("a bug")
        drop(self, *arguments)

    async def work(engine: Engine) -> None:
        monkeypatch.setattr(engine_module._Worker, "drop", failing)
        answers = [engine.submit([forever()]) for _ in range(2)]
        for answer in answers:
            with pytest.raises(KeyError, match="a bug"):
                await all_of(answer)
        assert (await all_of(engine.submit([job_of(0)])))[-1].finish_reason
        assert engine.n_open == 0

    with_engine(bundle, work, max_rows=1)


def test_a_tokenizer_that_fails_ends_one_text(
    bundle: Bundle, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: Engine) -> None:
        decode = engine.codec.decode

        def failing(ids: Any) -> str:
            if 42 in ids:
                raise ValueError("no such token")
            return decode(ids)

        monkeypatch.setattr(engine.codec, "decode", failing)
        good = engine.submit([Job([5], make_sampler(logit_bias={42: -100}), 5)])
        with pytest.raises(ValueError, match="no such token"):
            await all_of(engine.submit([Job([5], make_sampler(logit_bias={42: 100}), 5)]))
        assert (await all_of(good))[-1].finish_reason

    with_engine(bundle, work)


def test_draining_lets_what_is_under_way_end_and_takes_no_more(bundle: Bundle) -> None:
    async def work(engine: Engine) -> None:
        answers = [engine.submit([forever()]) for _ in range(3)]
        draining = asyncio.create_task(engine.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="about to end"):
            engine.submit([forever()])
        for answer in answers:
            assert sum(len(p.steps) for p in await all_of(answer)) == 200
        await draining

    with_engine(bundle, work, max_rows=2)


def test_draining_has_a_limit(bundle: Bundle) -> None:
    async def work(engine: Engine) -> None:
        answer = engine.submit([forever()] * 8)
        await engine.drain(0.01)
        await engine.close()
        with pytest.raises(UnavailableError, match="has ended"):
            await all_of(answer)
        assert engine.n_open == 0

    with_engine(bundle, work, max_rows=1)


def test_before_the_bundle_is_loaded_nothing_is_taken(bundle: Bundle) -> None:
    async def work() -> None:
        engine = Engine(bundle, n_threads=1)
        engine.start()
        with pytest.raises(UnavailableError, match="being loaded"):
            engine.submit([forever()])
        await engine.loaded()
        await engine.close()

    asyncio.run(work())


def test_a_bundle_that_cannot_be_opened_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("is damaged")

    monkeypatch.setattr("kdexport.serve.engine.open_session", refuse)

    async def work() -> None:
        engine = Engine(bundle)
        engine.start()
        with pytest.raises(InputError, match="damaged"):
            await engine.loaded()
        await engine.close()

    asyncio.run(work())


def test_generate_and_the_engine_agree_on_a_seed(bundle: Bundle, session: Session) -> None:
    sampler = make_sampler(temperature=0.8)
    steps = list(generate(session, [5, 6], sampler, max_new_tokens=9, seed=11))

    async def work(engine: Engine) -> None:
        pieces = await all_of(engine.submit([Job([5, 6], sampler, 9, seed=11)]))
        assert [s.token_id for p in pieces for s in p.steps] == [step.token_id for step in steps]

    with_engine(bundle, work)
