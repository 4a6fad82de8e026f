"""One text and many give the same words; everything ends where it should."""

from typing import Any

import numpy as np
import pytest

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.generate import generate, generate_batch, generate_variants
from kdexport.runtime.sample import make_sampler, new_row
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


def variants(session: Session, n: int, **options: Any) -> list[list[int]]:
    """The tokens of each variant of the first prompt."""
    sampler = make_sampler(temperature=options.pop("temperature", 1.0))
    texts: list[list[int]] = [[] for _ in range(n)]
    options = {"max_new_tokens": 10, "seed": 3, **options}
    for number, step in generate_variants(session, PROMPTS[0], sampler, n=n, **options):
        texts[number].append(step.token_id)
    return texts


def test_variants_have_their_own_draws(session: Session) -> None:
    texts = variants(session, 5)
    assert len(set(map(tuple, texts))) == 5
    assert variants(session, 5) == texts
    assert variants(session, 3) == texts[:3]  # fp32: whatever the batch
    assert variants(session, 5, seed=4) != texts
    sampler = make_sampler(temperature=1.0)
    steps = generate(session, PROMPTS[0], sampler, max_new_tokens=10, seed=3)
    assert [step.token_id for step in steps] == texts[0]
    row = new_row(3, prompt_ids=PROMPTS[0])  # whose key is the default one
    assert sampler(session.score(PROMPTS[0])[-1:], [row])[0] == texts[0][0]
    assert len(set(map(tuple, variants(session, 3, temperature=0.0)))) == 1  # the same are allowed


def test_variants_of_an_int8_bundle_are_repeatable(int8_bundle: Bundle) -> None:
    session = open_session(int8_bundle, n_threads=1)
    assert variants(session, 4) == variants(session, 4)


def test_the_prompt_of_variants_is_read_once(session: Session) -> None:
    shapes = []

    class Noting:
        manifest = session.manifest
        new_cache = session.new_cache

        def run(self, ids: np.ndarray, cache: Any, **options: Any) -> np.ndarray:
            shapes.append(ids.shape)
            return session.run(ids, cache, **options)

    variants(Noting(), 4, max_new_tokens=3, ignore_eos=True)  # type: ignore[arg-type]
    assert shapes == [(1, 3), (4, 1), (4, 1)]


def test_variants_that_end_leave_the_others_alone(session: Session) -> None:
    whole = variants(session, 4, ignore_eos=True)
    stop = whole[1][2]
    for text, full in zip(variants(session, 4, stop_ids={stop}), whole, strict=True):
        cut = full.index(stop) + 1 if stop in full else len(full)
        assert text == full[:cut]


def test_stops_end_a_text_and_see_its_number_and_tokens(session: Session) -> None:
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def stops(number: int, token_id: int) -> bool:
        seen[number].append(token_id)
        return len(seen[number]) == 2 + number

    texts = variants(session, 3, stops=stops, ignore_eos=True)
    assert texts == list(seen.values())
    assert [len(text) for text in texts] == [2, 3, 4]
    seen = {0: [], 1: [], 2: []}
    found = generate_batch(
        session, PROMPTS[:3], make_sampler(), max_new_tokens=[9] * 3, stops=stops
    )
    assert [c.ids for c in found] == list(seen.values())
    assert all(c.finished for c in found)


def test_no_end_before_the_least_tokens(session: Session) -> None:
    free = alone(session, PROMPTS[0], 12)
    ends = {free[0], free[2]}
    for least in (0, 1, 5):
        steps = list(
            generate(
                session,
                PROMPTS[0],
                make_sampler(),
                max_new_tokens=12,
                min_new_tokens=least,
                stop_ids=ends,
            )
        )
        assert not {step.token_id for step in steps[:least]} & ends
        assert len(steps) > least
        [found] = generate_batch(
            session,
            PROMPTS[:1],
            make_sampler(),
            max_new_tokens=[12],
            min_new_tokens=least,
            stop_ids=ends,
        )
        assert found.ids == [step.token_id for step in steps if step.in_text]
    assert (
        len(list(generate(session, PROMPTS[0], make_sampler(), max_new_tokens=9, stop_ids=ends)))
        == 1
    )


@pytest.mark.parametrize("n", [0, 1, 5, 999])
def test_log_probabilities_are_the_models(session: Session, n: int) -> None:
    """At temperature 1 and without the penalties, whatever the sampler does."""
    ids = list(PROMPTS[0])
    sampler = make_sampler(temperature=0.7, repetition_penalty=1.5, top_k=3)
    for step in generate(session, PROMPTS[0], sampler, max_new_tokens=6, n_logprobs=n):
        logits = session.score(ids)[-1].astype(np.float64)
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        # the graph rounds a prompt read at once and token by token apart: 1e-4 in logits to 10
        assert step.logprob == pytest.approx(expected[step.token_id], abs=2e-4)
        assert len(step.top) == min(n, session.vocab_size)
        best = np.sort(expected)[::-1][:n]
        np.testing.assert_allclose([value for _, value in step.top], best, atol=2e-4)
        for token, value in step.top:
            assert value == pytest.approx(expected[token], abs=2e-4)
        ids.append(step.token_id)


def test_log_probabilities_of_a_batch(session: Session) -> None:
    [found] = generate_batch(session, PROMPTS[:1], make_sampler(), max_new_tokens=[5], n_logprobs=2)
    steps = list(generate(session, PROMPTS[0], make_sampler(), max_new_tokens=5, n_logprobs=2))
    assert [s.token_id for s in found.steps] == [s.token_id for s in steps]
    np.testing.assert_allclose(
        [s.logprob for s in found.steps], [s.logprob for s in steps], atol=2e-4
    )
    free = generate(session, PROMPTS[0], make_sampler(), max_new_tokens=5)
    assert all((s.logprob, s.top) == (None, ()) for s in free)


def test_a_cache_that_holds_the_beginning_is_gone_on_with(session: Session) -> None:
    prompt = PROMPTS[3]
    for n in (1, 3):
        cache = session.new_cache(1, 4)
        session.run(np.asarray([prompt[:3]]), cache)
        texts: list[list[int]] = [[] for _ in range(n)]
        for number, step in generate_variants(
            session, prompt, make_sampler(), n=n, max_new_tokens=8, cache=cache, ignore_eos=True
        ):
            texts[number].append(step.token_id)
        steps = generate(session, prompt, make_sampler(), max_new_tokens=8, ignore_eos=True)
        assert texts == [[step.token_id for step in steps]] * n


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: is 0; it has to be 1 or more"),
        ({"min_new_tokens": 11}, "max_new_tokens: is 10; it has to be 11 or more"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"n_logprobs": -1}, "n_logprobs"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        variants(session, 1, **options)
    with pytest.raises(InputError, match="n: is 0"):
        variants(session, 0)
