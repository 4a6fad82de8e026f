"""Beam search finds the texts that transformers' own finds, with their scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.beam import Beam, beam_search
from kdexport.runtime.generate import generate
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.stream import search_text
from kdexport.runtime.text import load_text

PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 9, 9]]


@pytest.fixture(scope="module", params=["llama_bundle", "gpt2_bundle"])
def pair(request: pytest.FixtureRequest) -> tuple[Session, Any]:
    """A bundle's session and the model in torch that it was made from."""
    from transformers import AutoModelForCausalLM

    bundle: Bundle = request.getfixturevalue(request.param)
    model = AutoModelForCausalLM.from_pretrained(Path(bundle.path).parent / "model")
    return open_session(bundle, n_threads=1), model.eval()


def theirs(model: Any, prompt: list[int], eos_ids: list[int], **options: Any) -> list[Beam]:
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        eos_token_id=eos_ids,
        pad_token_id=0,
        num_return_sequences=options["num_beams"],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    found = []
    for ids, score in zip(
        out.sequences[:, len(prompt) :].tolist(), out.sequences_scores, strict=True
    ):
        ends = [at + 1 for at, token in enumerate(ids) if token in eos_ids]
        ids = ids[: ends[0]] if ends else ids
        penalty = options.get("length_penalty", 1.0)
        reason = "stop" if ends else "length"
        found.append(Beam(ids, float(score) * len(ids) ** penalty, float(score), reason))
    return found


def check_same(found: list[Beam], expected: list[Beam]) -> None:
    assert [beam.ids for beam in found] == [beam.ids for beam in expected]
    assert [beam.finish_reason for beam in found] == [beam.finish_reason for beam in expected]
    for part in ("score", "logprob"):  # sums of up to 12 float32 log-probabilities
        np.testing.assert_allclose(
            [getattr(beam, part) for beam in found],
            [getattr(beam, part) for beam in expected],
            atol=2e-3,
        )


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
@pytest.mark.parametrize(
    ("width", "length_penalty", "early_stopping"),
    [(2, 1.0, False), (4, 0.0, "never"), (4, 2.0, "never"), (3, 1.0, True), (5, -1.0, False)],
)
def test_beams_are_transformers_own(
    pair: tuple[Session, Any],
    prompt: list[int],
    width: int,
    length_penalty: float,
    early_stopping: Any,
) -> None:
    session, model = pair
    # A random model hardly ever ends; with a fifth of the vocabulary as its end, it does.
    ends = [2, *range(0, 320, 5)]
    expected = theirs(
        model,
        prompt,
        ends,
        num_beams=width,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_new_tokens=12,
    )
    found = beam_search(
        session,
        prompt,
        width=width,
        n=width,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_new_tokens=12,
        stop_ids=ends,
    )
    check_same(found, expected)


def test_penalties_and_bars_are_those_of_transformers(pair: tuple[Session, Any]) -> None:
    session, model = pair
    ends = [2, *range(0, 320, 5)]
    expected = theirs(
        model,
        PROMPTS[1],
        ends,
        num_beams=3,
        max_new_tokens=12,
        min_new_tokens=4,
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
    )
    found = beam_search(
        session,
        PROMPTS[1],
        width=3,
        n=3,
        max_new_tokens=12,
        min_new_tokens=4,
        sampler=make_sampler(repetition_penalty=1.3, no_repeat_ngram=2),
        stop_ids=ends,
    )
    check_same(found, expected)
    assert min(len(beam.ids) for beam in found) >= 5


def test_one_beam_is_greedy(llama_bundle: Bundle) -> None:
    session = open_session(llama_bundle, n_threads=1)
    [beam] = beam_search(session, PROMPTS[0], width=1, max_new_tokens=8)
    steps = list(generate(session, PROMPTS[0], make_sampler(), max_new_tokens=8, n_logprobs=0))
    assert beam.ids == [step.token_id for step in steps]
    assert beam.logprob == pytest.approx(sum(step.logprob or 0.0 for step in steps), abs=1e-4)


def test_enough_beams_find_the_likeliest_text(llama_bundle: Bundle) -> None:
    """Against every text of two tokens."""
    session = open_session(llama_bundle, n_threads=1)
    eos = set(session.manifest.text.eos_token_ids)
    first = log_softmax(session.score([5, 6, 7])[-1])
    best = max(
        (
            (first[a] + second, [a, int(b)])
            for a in range(session.vocab_size)
            if a not in eos
            for second_all in [log_softmax(session.score([5, 6, 7, a])[-1])]
            for b, second in enumerate(second_all)
        ),
        key=lambda found: found[0],
    )
    [beam] = beam_search(
        session, [5, 6, 7], width=320, max_new_tokens=2, length_penalty=0.0, early_stopping="never"
    )
    assert beam.ids == best[1]
    assert beam.score == pytest.approx(best[0], abs=1e-3)


def test_a_stop_string_ends_a_beam(llama_bundle: Bundle) -> None:
    session, codec = open_session(llama_bundle, n_threads=1), load_text(llama_bundle)
    whole = search_text(session, codec, PROMPTS[0], width=3, n=3, max_new_tokens=12)
    stop = whole[0][0][1:3]  # of two tokens
    found = search_text(session, codec, PROMPTS[0], width=3, n=3, max_new_tokens=12, stop=[stop])
    assert all(stop not in text for text, _ in found)
    stopped = [beam for _, beam in found if beam.finish_reason == "stop"]
    assert stopped
    for beam in stopped:
        assert stop in codec.decode(beam.ids)
        assert stop not in codec.decode(beam.ids[:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": make_sampler(temperature=1.0)}, "draws no tokens"),
        ({"n": 3}, "width: is 2; it has to be 3 or more"),
        ({"width": 0}, "width"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": 9}, "max_new_tokens: is 8; it has to be 9 or more"),
        ({"stop": [""]}, "empty stop string"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    llama_bundle: Bundle, options: dict[str, Any], message: str
) -> None:
    session, codec = open_session(llama_bundle, n_threads=1), load_text(llama_bundle)
    with pytest.raises(InputError, match=message):
        search_text(session, codec, [5], **{"width": 2, "max_new_tokens": 8, **options})


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())
