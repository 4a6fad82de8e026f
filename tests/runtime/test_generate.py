"""One text and many give the same words; everything ends where it should."""

import numpy as np
import pytest

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.generate import generate, generate_batch
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import Session, open_session

PROMPTS = [[5, 6, 7], [9] * 11, [20, 30], [8, 7, 6, 5, 4], [40, 41, 42, 43]]


@pytest.fixture(scope="module")
def session(llama_bundle: Bundle) -> Session:
    return open_session(llama_bundle, n_threads=1)


def alone(session: Session, prompt: list[int], n: int) -> list[int]:
    eos = set(session.manifest.text.eos_token_ids)
    steps = generate(session, prompt, make_sampler(), max_new_tokens=n)
    return [step.token_id for step in steps if step.token_id not in eos]


def test_greedy_follows_the_scores(session: Session) -> None:
    ids = [5, 6, 7]
    steps = generate(
        session, ids.copy(), make_sampler(), max_new_tokens=6, ignore_eos=True, n_logprobs=0
    )
    for step in steps:
        logits = session.score(ids)[-1].astype(np.float64)
        assert step.token_id == logits.argmax()
        expected = logits.max() - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert step.logprob == pytest.approx(expected, abs=1e-4)
        ids.append(step.token_id)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_writes_what_each_writes_alone(session: Session, batch_size: int) -> None:
    limits = [12, 7, 9, 3, 12]
    done: list[int] = []
    found = generate_batch(
        session,
        PROMPTS,
        make_sampler(),
        max_new_tokens=limits,
        batch_size=batch_size,
        on_done=done.append,
    )
    assert [c.ids for c in found] == [
        alone(session, p, n) for p, n in zip(PROMPTS, limits, strict=True)
    ]
    assert done[-1] == len(PROMPTS)


def test_stop_tokens_end_a_text_and_are_its_last(session: Session) -> None:
    whole = alone(session, PROMPTS[0], 8)
    stop = whole[3]
    before = whole[: whole.index(stop)]
    steps = list(generate(session, PROMPTS[0], make_sampler(), max_new_tokens=8, stop_ids={stop}))
    assert [step.token_id for step in steps] == [*before, stop]
    assert steps[-1].finish_reason == "stop" and steps[-1].in_text
    [found] = generate_batch(
        session, PROMPTS[:1], make_sampler(), max_new_tokens=[8], stop_ids={stop}
    )
    assert found.ids == [*before, stop]
    assert found.finished


def test_sampling_depends_on_seed_and_key_alone(session: Session) -> None:
    def write(keys: list[str], batch_size: int, seed: int = 1) -> dict[str, list[int]]:
        found = generate_batch(
            session,
            PROMPTS[:3],
            make_sampler(temperature=1.0),
            max_new_tokens=[8] * 3,
            seed=seed,
            row_keys=keys,
            batch_size=batch_size,
        )
        return {key: c.ids for key, c in zip(keys, found, strict=True)}

    assert write(["a", "b", "c"], 1) == write(["a", "b", "c"], 3)
    assert write(["a", "b", "c"], 3, seed=2) != write(["a", "b", "c"], 3, seed=1)


def test_an_end_token_ends(session: Session) -> None:
    def always_end(logits: np.ndarray, rows: object) -> np.ndarray:
        return np.full(len(logits), 2, dtype=np.int64)

    steps = list(generate(session, [5], always_end, max_new_tokens=9))
    assert [(s.token_id, s.finish_reason, s.in_text) for s in steps] == [(2, "stop", False)]
    (only,) = generate_batch(session, [[5]], always_end, max_new_tokens=[9])
    assert only.ids == [] and only.finished


def test_the_model_s_length_ends_a_text(session: Session) -> None:
    prompt = [7] * 250
    steps = list(generate(session, prompt, make_sampler(), max_new_tokens=99, ignore_eos=True))
    assert len(steps) == 6
    assert steps[-1].finish_reason == "length"


@pytest.mark.parametrize(("prompt", "reason"), [([], "empty"), ([1] * 256, "shorten")])
def test_prompts_without_room_are_refused(session: Session, prompt: list[int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        next(generate(session, prompt, make_sampler(), max_new_tokens=1))
