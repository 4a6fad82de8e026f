"""Penalties against transformers' processors, and against a loop where it has none."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdexport.errors import InputError
from kdexport.runtime.sample import make_sampler, new_row

V = 12
texts = st.lists(st.integers(0, V - 1), min_size=1, max_size=30)
seeds = st.integers(0, 2**31)


def some_logits(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=V) * 3).astype(np.float32)


def theirs(processor: Any, ids: list[int], logits: np.ndarray) -> np.ndarray:
    out = processor(torch.tensor([ids]), torch.from_numpy(logits.copy())[None])
    return np.asarray(out[0])


def ours(ids: list[int], logits: np.ndarray, n_prompt: int = 0, **options: Any) -> np.ndarray:
    before = logits.copy()
    row = new_row(0, prompt_ids=ids[:n_prompt])
    row.ids += ids[n_prompt:]
    found = make_sampler(**options).penalized(logits, row)
    np.testing.assert_array_equal(logits, before)  # the caller's are left alone
    return found


@given(seeds, texts, st.floats(0.5, 2))
def test_repetition(seed: int, ids: list[int], penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = some_logits(seed)
    expected = theirs(RepetitionPenaltyLogitsProcessor(penalty), ids, logits)
    np.testing.assert_allclose(ours(ids, logits, repetition_penalty=penalty), expected, rtol=1e-6)


@given(seeds, texts, st.integers(1, 5))
def test_no_repeated_ngram(seed: int, ids: list[int], n: int) -> None:
    from transformers import NoRepeatNGramLogitsProcessor

    logits = some_logits(seed)
    expected = theirs(NoRepeatNGramLogitsProcessor(n), ids, logits)
    np.testing.assert_array_equal(ours(ids, logits, no_repeat_ngram=n), expected)


@given(seeds, st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), min_size=1))
def test_bias(seed: int, bias: dict[int, float]) -> None:
    from transformers import SequenceBiasLogitsProcessor

    logits = some_logits(seed)
    as_theirs = [[[token], value] for token, value in bias.items()]
    expected = theirs(SequenceBiasLogitsProcessor(as_theirs), [0], logits)
    np.testing.assert_allclose(ours([0], logits, logit_bias=bias), expected, rtol=1e-6)


@given(seeds, texts, st.integers(0, 10), st.floats(-2, 2), st.floats(-2, 2))
def test_counts_are_of_what_was_written(
    seed: int, ids: list[int], n_prompt: int, frequency: float, presence: float
) -> None:
    logits = some_logits(seed)
    expected = logits.astype(np.float64)
    for token in range(V):
        count = ids[n_prompt:].count(token)
        expected[token] -= count * frequency + (presence if count else 0.0)
    found = ours(ids, logits, n_prompt, frequency_penalty=frequency, presence_penalty=presence)
    # float32 of logits up to 12, less up to 62
    np.testing.assert_allclose(found, expected, atol=2e-5)


@given(seeds, st.integers(0, 6), st.integers(0, 6))
def test_end_tokens_are_barred_until_the_least(seed: int, least: int, n_written: int) -> None:
    from transformers import MinNewTokensLengthLogitsProcessor

    logits, prompt, ends = some_logits(seed), [1, 2, 3], [4, 7]
    row = new_row(0, prompt_ids=prompt, min_new_tokens=least, end_ids=frozenset(ends))
    row.ids += [5] * n_written
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), least, ends)
    expected = theirs(processor, row.ids, logits)
    np.testing.assert_array_equal(make_sampler().penalized(logits, row), expected)
    assert make_sampler()(logits[None], [row])[0] == expected.argmax()


@given(seeds, texts)
def test_all_together_are_one_after_the_other(seed: int, ids: list[int]) -> None:
    logits = some_logits(seed)
    options: dict[str, Any] = {
        "logit_bias": {3: 2.5, 4: -1.0},
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "no_repeat_ngram": 2,
    }
    expected = logits
    for name, value in options.items():
        expected = ours(ids, expected, **{name: value})
    np.testing.assert_array_equal(ours(ids, logits, **options), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: is -0.1; it has to be finite and 0 or more"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature: is inf"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 1.5}, "min_p: is 1.5; it has to be between 0 and 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -3.0}, "presence_penalty"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias"),
    ],
)
def test_values_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_sampler(**options)


def test_a_bias_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="token 12 is not of the model's vocabulary of 12"):
        make_sampler(logit_bias={V: 1.0})(some_logits(0)[None], [new_row(0)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.filterwarnings("error")
def test_where_every_token_is_barred_that_is_said(temperature: float) -> None:
    sampler = make_sampler(temperature=temperature, no_repeat_ngram=1)
    with pytest.raises(InputError, match="no token is left"):
        sampler(some_logits(0)[None], [new_row(0, prompt_ids=range(V))])
    with pytest.raises(InputError, match="not finite"):
        sampler(np.full((1, V), np.nan, dtype=np.float32), [new_row(0)])
