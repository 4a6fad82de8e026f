"""Texts that come and go write what each writes alone, and nothing holds them up."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.generate import Step, generate
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.scheduler import Batch, Member
from kdexport.runtime.session import Session, open_session

PROMPTS = [[5, 6, 7], [9] * 11, [20, 30], [8, 7, 6, 5, 4], [40, 41, 42, 43], [3] * 40]


@pytest.fixture(scope="module")
def session(llama_bundle: Bundle) -> Session:
    return open_session(llama_bundle, n_threads=1)


def options_of(number: int) -> dict[str, Any]:
    """Some texts are chosen for together, some alone, with lengths and seeds of their own."""
    sampling: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.0, "frequency_penalty": 0.5},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.0},
    ]
    return {
        "sampler": make_sampler(**sampling[number]),
        "max_new_tokens": 2 + 3 * number,
        "min_new_tokens": number % 2,
        "seed": number,
        "n_logprobs": 0,
    }


def alone(session: Session, number: int) -> list[Step]:
    return list(generate(session, PROMPTS[number], **options_of(number)))


def told(steps: list[Step]) -> list[tuple[int, str | None, bool]]:
    return [(step.token_id, step.finish_reason, step.in_text) for step in steps]


class Running:
    """A batch, and what its texts have written."""

    def __init__(self, session: Session, max_rows: int) -> None:
        self.batch = Batch(session, max_rows)
        self.under_way: dict[Member, int] = {}
        self.written: dict[int, list[Step]] = {}

    def add(self, number: int) -> Member:
        member = self.batch.add(PROMPTS[number], **options_of(number))
        self.under_way[member] = number
        self.written[number] = []
        return member

    def step(self) -> None:
        for member, step in self.batch.step():
            assert step is not None
            self.written[self.under_way[member]].append(step)
            if step.finish_reason:
                del self.under_way[member]
        assert len(self.batch) == len(self.under_way)

    def finish(self) -> None:
        for _ in range(100):
            if not self.under_way:
                return
            self.step()
        raise AssertionError("no end")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_whenever_texts_come_each_writes_as_alone(session: Session, moments: list[int]) -> None:
    """A moment below the number of texts lets one join, if it has not yet; each is a step."""
    running = Running(session, max_rows=4)
    for moment in moments:
        if moment not in running.written and not running.batch.is_full:
            running.add(moment)
        running.step()
    running.finish()
    for number, steps in running.written.items():
        expected = alone(session, number)
        assert told(steps) == told(expected)
        assert [s.logprob for s in steps] == pytest.approx([s.logprob for s in expected], abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 6))
def test_a_text_that_is_taken_out_leaves_the_others_alone(
    session: Session, order: list[int], n_steps: int
) -> None:
    running = Running(session, max_rows=8)
    members = {number: running.add(number) for number in range(5)}
    for number in order[:3]:
        for _ in range(n_steps % 3):
            running.step()
        if members[number] in running.under_way:
            del running.under_way[members[number]]
        running.batch.remove(members[number])
        running.batch.remove(members[number])  # a second time is nothing
        assert len(running.batch) == len(running.under_way)
    running.finish()
    for number in order[3:]:
        assert told(running.written[number]) == told(alone(session, number))


def test_memory_follows_the_number_of_texts(session: Session) -> None:
    running = Running(session, max_rows=6)
    sizes = []
    for number in range(6):
        running.add(number)
        sizes.append(len(running.batch._rows))
    assert sizes == [1, 2, 4, 4, 6, 6]
    assert running.batch.is_full
    with pytest.raises(RuntimeError, match="full"):
        running.add(0)
    running.finish()
    assert running.batch._rows == [] and running.batch._cache is None


def test_a_text_begins_from_what_was_kept(session: Session) -> None:
    cache = session.new_cache(1, 64)
    session.run(np.asarray([PROMPTS[5][:32]], dtype=np.int64), cache)
    running = Running(session, max_rows=4)
    running.add(3)
    running.step()
    member = running.batch.add(PROMPTS[5], cache=cache, **options_of(5))
    running.under_way[member], running.written[5] = 5, []
    running.finish()
    assert told(running.written[5]) == told(alone(session, 5))


def test_texts_of_one_prompt_and_seed_are_told_apart_by_their_keys(session: Session) -> None:
    batch = Batch(session)
    sampler = make_sampler(temperature=1.5)
    members = [batch.add([5, 6], sampler, max_new_tokens=12, key=key) for key in ("", "1", "1")]
    texts: dict[Member, list[int]] = {member: [] for member in members}
    while len(batch):
        for member, step in batch.step():
            assert step is not None
            texts[member].append(step.token_id)
    first, second, third = texts.values()
    assert first != second and second == third


def test_one_that_has_no_token_left_ends_alone(session: Session) -> None:
    everything = dict.fromkeys(range(session.vocab_size), -np.inf)
    batch = Batch(session)
    barred = batch.add([5], make_sampler(logit_bias=everything), max_new_tokens=4)
    other = batch.add([6], make_sampler(), max_new_tokens=4, ignore_eos=True)
    found = dict(batch.step())
    assert found[barred] is None and found[other] is not None
    assert isinstance(barred.error, InputError) and other.error is None
    assert len(batch) == 1


def test_a_mistake_in_one_text_s_sampler_or_end_ends_it_alone(session: Session) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    batch = Batch(session)
    texts = [
        batch.add([5], broken, max_new_tokens=4),
        batch.add([5], make_sampler(), max_new_tokens=4, ignore_eos=True, stops=broken),
        batch.add([6], make_sampler(), max_new_tokens=4, ignore_eos=True),
    ]
    found = dict(batch.step())
    assert [found[text] is None for text in texts] == [True, True, False]
    assert [type(text.error) for text in texts] == [KeyError, KeyError, type(None)]
    assert len(batch) == 1


def test_one_that_loses_its_logits_ends_alone_and_changes_no_other_s_draws(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session.run
    drawn: dict[str, Any] = {"sampler": make_sampler(temperature=1.0), "max_new_tokens": 6}

    def written(breaks: bool) -> list[list[int | None]]:
        batch = Batch(session)
        members = [batch.add([5], key=key, ignore_eos=True, **drawn) for key in "abc"]
        texts: dict[Member, list[int | None]] = {member: [] for member in members}
        for number in range(6):
            for member, step in batch.step():
                texts[member].append(step and step.token_id)
            monkeypatch.setattr(session, "run", broken if breaks and number == 0 else run)
        return list(texts.values())

    def broken(*given: Any, **options: Any) -> Any:
        logits = run(*given, **options)
        logits[1] = np.nan
        return logits

    whole, without = written(False), written(True)
    assert [without[0], without[2]] == [whole[0], whole[2]]
    assert without[1] == [*whole[1][:2], None]


@pytest.mark.parametrize(
    ("prompt", "n_new", "reason"),
    [([], 3, "the prompt is empty"), ([5] * 300, 3, "the model reads"), ([5], 0, "0")],
)
def test_what_cannot_be_written_is_refused_and_takes_no_row(
    session: Session, prompt: list[int], n_new: int, reason: str
) -> None:
    batch = Batch(session)
    with pytest.raises(InputError, match=reason):
        batch.add(prompt, make_sampler(), max_new_tokens=n_new)
    assert len(batch) == 0 and batch.step() == []


def test_texts_that_begin_from_a_prompt_read_once_are_those_that_read_it_themselves(
    session: Session,
) -> None:
    batch = Batch(session, max_rows=4)
    prompt = batch.read(PROMPTS[5])
    drawn = {"sampler": make_sampler(temperature=0.9), "max_new_tokens": 12, "n_logprobs": 0}
    written: dict[Member, list[Step]] = {}
    for key in ("a", "b", "c"):  # one after another: the first has gone on when the last begins
        written[batch.begin(prompt, key=key, **drawn)] = []
        for member, step in batch.step():
            assert step is not None
            written[member].append(step)
    assert int(prompt.cache.lengths[0]) == len(PROMPTS[5])
    while len(batch):
        for member, step in batch.step():
            assert step is not None
            written[member].append(step)
    alone = []
    for key in ("a", "b", "c"):
        own = Batch(session)
        own.add(PROMPTS[5], key=key, **drawn)
        alone.append([step for _ in range(12) for _, step in own.step() if step])
    assert [told(steps) for steps in written.values()] == [told(steps) for steps in alone]
    assert len({tuple(step.token_id for step in steps) for steps in alone}) == 3
    assert len(batch) == 0
