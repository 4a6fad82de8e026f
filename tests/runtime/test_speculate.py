"""A draft changes what is computed ahead, never what is written.

A text with a draft is the text without, token for token and for every seed. In a session opened
``exact`` logits do not depend on how tokens are grouped into calls, so their bits are the same too.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.generate import Step, generate, generate_variants
from kdexport.runtime.kv_cache import KVCache
from kdexport.runtime.prompt_cache import PromptCache
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.speculate import (
    Speculation,
    Vocabularies,
    grouping_error,
    match_vocabularies,
)
from kdexport.runtime.text import load_text
from tests.models import make_llama

PROMPTS = [[5, 6, 7], [9] * 11, [20, 30], [8, 7, 6, 5, 4], list(range(40, 90))]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def draft_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of its own, with a vocabulary that lacks the last 20 tokens."""
    from kdexport.export.bundles import export_bundle

    folder = tmp_path_factory.mktemp("draft")
    model = make_llama(folder / "model", n_layers=1, vocab_size=300)
    return export_bundle(model, folder / "bundle", name="draft")


@pytest.fixture(scope="module")
def target(llama_bundle: Bundle) -> Session:
    return open_session(llama_bundle, n_threads=1)


@pytest.fixture(scope="module")
def exact(llama_bundle: Bundle) -> Session:
    return open_session(llama_bundle, n_threads=1, exact=True)


@pytest.fixture(scope="module")
def draft(int8_bundle: Bundle) -> Session:
    """The teacher, coarsely: often right and often not, as its random weights have no habits."""
    return open_session(int8_bundle, n_threads=1)


@pytest.fixture(scope="module")
def vocabularies(llama_bundle: Bundle) -> Vocabularies:
    """The draft's last 20 tokens are not for use."""
    tokens = load_text(llama_bundle).tokenizer.get_vocab()
    return Vocabularies(tokens, {text: n for text, n in tokens.items() if n < 300})


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"repetition_penalty": 1.3, "no_repeat_ngram": 2}, {"min_new_tokens": 8}),
    ({"temperature": 0.8}, {"seed": 3}),
    ({"temperature": 1.2, "top_p": 0.9, "frequency_penalty": 0.5}, {"seed": 4}),
    ({"temperature": 0.6, "top_k": 9, "min_p": 0.05}, {"seed": 5, "stop_ids": [17, 80]}),
]


def both(
    target: Any, draft: Any, vocabularies: Vocabularies, prompt: list[int], n: int, at: int
) -> tuple[list[Step], list[Step], Speculation]:
    how, where = OPTIONS[at]
    sampler = make_sampler(**how)
    alone = generate(target, prompt, sampler, max_new_tokens=n, n_logprobs=2, **where)
    guessed = Speculation(target, draft, vocabularies, sampler, most=4, sure=0.0)
    steps = generate(guessed, prompt, guessed.choose, max_new_tokens=n, n_logprobs=2, **where)
    return list(alone), list(steps), guessed


@pytest.mark.parametrize("at", range(len(OPTIONS)))
def test_the_text_is_the_teacher_s_to_the_bit(
    exact: Session, draft: Session, vocabularies: Vocabularies, at: int
) -> None:
    assert grouping_error(exact, PROMPTS[4]) == 0
    n_right = n_wrong = 0
    for prompt in PROMPTS:
        alone, guessed, speculation = both(exact, draft, vocabularies, prompt, 24, at)
        assert guessed == alone  # ids, log-probabilities of the best two, reasons
        guesses = speculation.guesses
        n_right += guesses.n_accepted
        n_wrong += guesses.n_proposed - guesses.n_accepted
    assert n_right > 0 and n_wrong > 0


@pytest.mark.parametrize("at", range(len(OPTIONS)))
def test_a_float32_session_writes_the_same_tokens(
    target: Session, draft: Session, vocabularies: Vocabularies, at: int
) -> None:
    for prompt in PROMPTS:
        alone, guessed, _ = both(target, draft, vocabularies, prompt, 24, at)
        assert [s.token_id for s in guessed] == [s.token_id for s in alone]
        np.testing.assert_allclose(
            [s.logprob for s in guessed], [s.logprob for s in alone], atol=1e-4
        )


@pytest.mark.parametrize("at", [0, 2])
def test_a_draft_that_is_the_teacher_is_always_right(
    llama_bundle: Bundle, target: Session, at: int
) -> None:
    text = load_text(llama_bundle)
    same = match_vocabularies(text, text)
    alone, guessed, speculation = both(target, target, same, PROMPTS[0], 21, at)
    assert [s.token_id for s in guessed] == [s.token_id for s in alone]
    assert speculation.guesses.acceptance == 1
    # 20 tokens after the prompt's own: four calls of five, 4 guesses and the token that follows.
    if len(alone) == 21:
        assert speculation.guesses.n_calls == 4
        assert speculation.guesses.tokens_per_call == 5


@settings(max_examples=20, deadline=None)
@given(
    prompt=st.lists(st.integers(3, 299), min_size=1, max_size=20),
    n=st.integers(1, 30),
    most=st.integers(0, 9),
    sure=st.sampled_from([0.0, 0.01, 0.1, 1.1]),
)
def test_any_prompt_and_any_number_of_guesses(
    exact: Session,
    draft: Session,
    vocabularies: Vocabularies,
    prompt: list[int],
    n: int,
    most: int,
    sure: float,
) -> None:
    sampler = make_sampler(temperature=0.9)
    speculation = Speculation(exact, draft, vocabularies, sampler, most=most, sure=sure)
    alone = list(generate(exact, prompt, sampler, max_new_tokens=n, seed=1))
    found = list(generate(speculation, prompt, speculation.choose, max_new_tokens=n, seed=1))
    assert found == alone
    if most == 0 or sure > 1:
        assert speculation.guesses.n_proposed == 0


def test_a_draft_that_knows_nothing_of_the_teacher(
    exact: Session, llama_bundle: Bundle, draft_bundle: Bundle
) -> None:
    matched = match_vocabularies(load_text(llama_bundle), load_text(draft_bundle))
    stranger = open_session(draft_bundle, n_threads=1)
    for at in range(len(OPTIONS)):
        alone, guessed, _ = both(exact, stranger, matched, PROMPTS[3], 20, at)
        assert guessed == alone


def test_text_after_text_and_after_one_that_was_left(
    exact: Session, draft: Session, vocabularies: Vocabularies
) -> None:
    sampler = make_sampler()
    speculation = Speculation(exact, draft, vocabularies, sampler, sure=0.0)
    for prompt in [*PROMPTS, [9]]:
        left = generate(speculation, [7, 8, 9], speculation.choose, max_new_tokens=9)
        next(left), next(left)
        alone = list(generate(exact, prompt, sampler, max_new_tokens=12))
        assert list(generate(speculation, prompt, speculation.choose, max_new_tokens=12)) == alone


def test_to_the_model_s_length(exact: Session, draft: Session, vocabularies: Vocabularies) -> None:
    prompt = [7] * 245
    alone, guessed, _ = both(exact, draft, vocabularies, prompt, 99, 1)
    assert guessed[-1].finish_reason == "length" and len(guessed) == 11
    assert guessed == alone


def test_with_a_kept_prompt(target: Session, draft: Session, vocabularies: Vocabularies) -> None:
    kept, sampler, prompt = PromptCache(target), make_sampler(), PROMPTS[4]
    speculation = Speculation(target, draft, vocabularies, sampler, sure=0.0)
    alone = [s.token_id for s in generate(target, prompt, sampler, max_new_tokens=16)]
    for _ in range(2):
        cache = kept.begin(prompt, 16)
        steps = generate(speculation, prompt, speculation.choose, max_new_tokens=16, cache=cache)
        assert [s.token_id for s in steps] == alone
    assert kept.reads.from_memory > 0


def test_variants_are_written_without_guesses(
    target: Session, draft: Session, vocabularies: Vocabularies
) -> None:
    sampler = make_sampler(temperature=1.0)
    speculation = Speculation(target, draft, vocabularies, sampler)
    alone = list(generate_variants(target, [5, 6], sampler, n=3, max_new_tokens=8))
    found = generate_variants(speculation, [5, 6], speculation.choose, n=3, max_new_tokens=8)
    assert list(found) == alone
    assert speculation.guesses.n_calls == 0


def test_tokens_that_the_draft_lacks_are_written_too(
    target: Session, draft: Session, vocabularies: Vocabularies
) -> None:
    sampler = make_sampler(logit_bias=dict.fromkeys(range(300, 320), 40.0))
    speculation = Speculation(target, draft, vocabularies, sampler, sure=0.0)
    alone = [s.token_id for s in generate(target, [5, 6], sampler, max_new_tokens=8)]
    steps = generate(speculation, [5, 6], speculation.choose, max_new_tokens=8)
    assert [s.token_id for s in steps] == alone
    assert min(alone) >= 300


def test_a_draft_with_nothing_to_propose_is_silent(
    target: Session, draft: Session, vocabularies: Vocabularies
) -> None:
    sampler = make_sampler(logit_bias=dict.fromkeys(range(300), -np.inf))
    speculation = Speculation(target, draft, vocabularies, sampler, sure=0.0)
    steps = list(generate(speculation, [5, 6], speculation.choose, max_new_tokens=4))
    assert len(steps) == 4 and speculation.guesses.n_proposed == 0


def test_draws_follow_the_teacher_s_distribution(
    target: Session, draft: Session, vocabularies: Vocabularies
) -> None:
    """Chi-square of 1,500 first three tokens against their exact probabilities, fixed seeds."""
    sampler = make_sampler(temperature=1.5, top_k=3)
    speculation = Speculation(target, draft, vocabularies, sampler, sure=0.0, most=3)
    exact: dict[tuple[int, ...], float] = {}

    def follow(ids: tuple[int, ...], mass: float) -> None:
        if len(ids) == 3:
            exact[ids] = mass
            return
        scores = target.score([5, 6, 7, *ids])[-1].astype(np.float64)
        best = np.argsort(-scores)[:3]
        weights = np.exp((scores[best] - scores[best[0]]) / 1.5)
        for token, share in zip(best, weights / weights.sum(), strict=True):
            follow((*ids, int(token)), mass * share)

    follow((), 1.0)
    n = 1500
    found = Counter(
        tuple(
            step.token_id
            for step in generate(
                speculation,
                [5, 6, 7],
                speculation.choose,
                max_new_tokens=3,
                seed=seed,
                ignore_eos=True,
            )
        )
        for seed in range(n)
    )
    assert found.keys() <= exact.keys()
    assert 0 < speculation.guesses.n_accepted < speculation.guesses.n_proposed
    square = sum((found[ids] - n * mass) ** 2 / (n * mass) for ids, mass in exact.items())
    # 27 outcomes: 26 degrees of freedom, whose 99.9th percentile is 54.05.
    assert len(exact) == 27 and square < 54.05


def test_each_token_is_matched_by_its_string(llama_bundle: Bundle, draft_bundle: Bundle) -> None:
    teacher, student = load_text(llama_bundle), load_text(draft_bundle)
    vocabularies = match_vocabularies(teacher, student)
    assert len(vocabularies.draft_ids) == student.tokenizer.get_vocab_size() == 300
    for own, theirs in zip(vocabularies.draft_ids, vocabularies.target_ids, strict=True):
        assert student.tokenizer.id_to_token(own) == teacher.tokenizer.id_to_token(theirs)
    for token in range(320):
        pieces = vocabularies.pieces(token)
        assert len(pieces) == 1 or token >= 300
        assert student.decode(pieces) == teacher.decode([token])


def test_other_numbers_for_the_same_tokens() -> None:
    found = Vocabularies({"a": 7, "b": 2, "ab": 5, "c": 1, "abc": 0}, {"ab": 0, "b": 1, "a": 2})
    assert found.draft_ids.tolist() == [0, 1, 2] and found.target_ids.tolist() == [5, 2, 7]
    assert [found.pieces(n) for n in (7, 5, 0, 1, 99)] == [(2,), (0,), (0,), (), ()]


def test_another_tokenizer_is_no_draft(
    llama_bundle: Bundle, draft_bundle: Bundle, tmp_path: Path
) -> None:
    teacher, student = load_text(llama_bundle), load_text(draft_bundle)
    with pytest.raises(InputError, match=r"its token '.+' is not the teacher's") as caught:
        match_vocabularies(student, teacher)  # the larger one cannot guess for the smaller
    assert caught.value.where == str(llama_bundle.path) and "\n" not in str(caught.value)
    student.tokenizer.add_tokens(["<|endoftext|>"])
    student.tokenizer.decoder = None
    with pytest.raises(InputError, match="makes text of its tokens otherwise"):
        match_vocabularies(teacher, student)


def test_a_special_token_is_not_a_plain_one(llama_bundle: Bundle, draft_bundle: Bundle) -> None:
    teacher, student = load_text(llama_bundle), load_text(draft_bundle)
    student.tokenizer.add_special_tokens(["a"])
    with pytest.raises(InputError, match="its token 'a' is not the teacher's"):
        match_vocabularies(teacher, student)


def test_grouping_is_told(target: Session, exact: Session) -> None:
    assert grouping_error(exact, PROMPTS[4]) == 0
    assert 0 < grouping_error(target, PROMPTS[4]) < 1e-4  # float32, summed in another order
    assert grouping_error(exact, [7]) == 0


def test_a_range_of_a_call_is_told(exact: Session) -> None:
    class Ranged(Session):
        def __init__(self) -> None:
            self.manifest = exact.manifest

        def run(self, ids: Array, cache: KVCache, **options: Any) -> Array:
            return exact.run(ids, cache, **options) + 0.25 * (ids.shape[1] == 6)

    assert grouping_error(Ranged(), PROMPTS[4]) == pytest.approx(0.25, abs=1e-5)
