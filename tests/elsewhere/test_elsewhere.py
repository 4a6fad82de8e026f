"""A bundle is a folder that other tools open, and each goes on with a text as kdexport does.

Tiny models of random weights, of a family with rotated and one with learnt positions, in every
scheme.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from kdexport.bundle import Bundle
from kdexport.export.bundles import export_bundle
from kdexport.export.quantize import SCHEMES, quantize_bundle
from kdexport.runtime.generate import generate
from kdexport.runtime.quality import log_softmax
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.text import TextCodec, load_text
from tests.elsewhere.environments import ask
from tests.models import make_gpt2, make_llama
from tests.serve.serving import served

MAKE = {"llama": make_llama, "gpt2": make_gpt2}
NAMES = [f"{family}-{scheme}" for family in MAKE for scheme in ("fp32", *SCHEMES)]
PROMPT = "Fresh bread from our oven today"
BATCH = [PROMPT, "Buy two", "Book your weekend in the mountains"]
CHAT = [{"role": "user", "content": "An SMS about fresh bread"}]
N_NEW = 24


@dataclass(frozen=True)
class Opened:
    """A bundle as kdexport itself opens it."""

    bundle: Bundle
    session: Session
    codec: TextCodec

    @property
    def tolerance(self) -> float:
        """Of logits that reach 10: another order of sums; in few bits, other roundings of a row."""
        return 1e-3 if self.bundle.manifest.scheme == "fp32" else 0.5

    def check_greedy(self, prompt: str, found: Sequence[int]) -> None:
        """Every token of a continuation is the likeliest here, too, and its end is the end."""
        ends = self.bundle.manifest.text.eos_token_ids
        told = list(found)
        ended = next((place for place, token in enumerate(told) if token in ends), None)
        told = told if ended is None else told[: ended + 1]  # padding follows
        assert len(told) == N_NEW or ended is not None
        ids = self.codec.encode(prompt)
        cache = self.session.new_cache(1, len(ids) + N_NEW)
        logits = self.session.run(np.asarray([ids], dtype=np.int64), cache)[0]
        for token in told:
            assert logits[token] >= logits.max() - self.tolerance
            logits = self.session.run(np.asarray([[token]], dtype=np.int64), cache)[0]


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Opened]:
    folder = tmp_path_factory.mktemp("elsewhere")
    found = {}
    for family, make in MAKE.items():
        parent = export_bundle(make(folder / family), folder / f"{family}-fp32", name=family)
        bundles = {"fp32": parent}
        for scheme in SCHEMES:
            bundles[scheme] = quantize_bundle(parent, scheme, folder / f"{family}-{scheme}")
        for scheme, bundle in bundles.items():
            session = open_session(bundle, n_threads=1)
            found[f"{family}-{scheme}"] = Opened(bundle, session, load_text(bundle))
    return found


@pytest.fixture(scope="session")
def answers(opened: Mapping[str, Opened]) -> Any:
    """A tool's answers to one question about every bundle, asked in one process."""

    @cache
    def of(tool: str, question: str) -> Mapping[str, Any]:
        requests = [QUESTIONS[question](opened[name]) for name in NAMES]
        told = [request for request in requests if request is not None]
        named = [name for name, request in zip(NAMES, requests, strict=True) if request]
        return dict(zip(named, ask(tool, told), strict=True))

    return of


def one_text(of: Opened) -> dict[str, Any]:
    return {"bundle": str(of.bundle.path), "prompts": [PROMPT], "n_new": N_NEW}


def a_batch(of: Opened) -> dict[str, Any]:
    return {"bundle": str(of.bundle.path), "prompts": BATCH, "n_new": N_NEW}


def a_chat(of: Opened) -> dict[str, Any] | None:
    if of.codec.template is None:
        return None
    return {"bundle": str(of.bundle.path), "messages": CHAT, "n_new": N_NEW}


def a_prompt(of: Opened) -> dict[str, Any]:
    model = of.bundle.manifest.model
    shape = [1, model.n_kv_heads, 0, model.head_dim]
    return {"bundle": str(of.bundle.path), "ids": of.codec.encode(PROMPT), "past_shape": shape}


ROWS: list[dict[str, Any]] = [
    {"prompt": "Fresh bread from our", "choices": [" oven", " running shoes"]},
    {"prompt": "Buy two pairs of", "choices": [" running shoes", " mountains", " fox"]},
]


def scores(backend: str, *, command: bool = False) -> Any:
    def question(of: Opened) -> dict[str, Any] | None:
        if command and of.bundle.path.name != f"llama-{next(iter(SCHEMES))}":
            return None  # the command takes ten seconds
        asked = {"backend": backend, "rows": ROWS, "command": command}
        return {"bundle": str(of.bundle.path)} | asked

    return question


QUESTIONS: Mapping[str, Any] = {
    "text": one_text,
    "batch": a_batch,
    "chat": a_chat,
    "prompt": a_prompt,
    "onnxruntime": scores("onnxruntime"),
    "onnxruntime-genai": scores("onnxruntime-genai"),
    "command": scores("onnxruntime", command=True),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tool", ["optimum", "genai", "transformers.js"])
def test_a_text_goes_on_as_ours(answers: Any, opened: Any, tool: str, name: str) -> None:
    of = opened[name]
    (found,) = answers(tool, "text")[name]
    of.check_greedy(PROMPT, found)
    if of.bundle.manifest.scheme == "fp32":
        steps = generate(
            of.session, of.codec.encode(PROMPT), make_sampler(temperature=0), max_new_tokens=N_NEW
        )
        assert found == [step.token_id for step in steps]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tool", ["optimum", "genai", "transformers.js"])
def test_a_padded_batch_goes_on_as_each_text_alone(
    answers: Any, opened: Any, tool: str, name: str
) -> None:
    found = answers(tool, "batch")[name]
    assert len(found) == len(BATCH)
    for prompt, tokens in zip(BATCH, found, strict=True):
        opened[name].check_greedy(prompt, tokens)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("llama")])
@pytest.mark.parametrize("tool", ["optimum", "genai", "transformers.js"])
def test_a_chat_is_rendered_as_ours(answers: Any, opened: Any, tool: str, name: str) -> None:
    of = opened[name]
    (found,) = answers(tool, "chat")[name]
    of.check_greedy(of.codec.render_chat(CHAT), found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-genai"])
def test_lm_eval_scores_choices_as_ours(answers: Any, opened: Any, backend: str, name: str) -> None:
    check_scores(opened[name], answers("lm-eval", backend)[name])


def test_lm_eval_does_so_by_one_command(answers: Any, opened: Any) -> None:
    told = answers("lm-eval", "command")
    assert len(told) == 1
    for name, found in told.items():
        check_scores(opened[name], found)


def test_lm_eval_scores_choices_over_http(opened: Mapping[str, Opened]) -> None:
    of = opened["llama-fp32"]
    with served(of.bundle) as server:
        asked = {"bundle": str(of.bundle.path), "backend": "local-completions", "command": False}
        url = f"{server.url}/v1/completions"
        (found,) = ask("lm-eval", [asked | {"url": url, "name": "llama", "rows": ROWS}])
        with server.http() as http:
            counted = http.get("/metrics").text
    assert 'kdexport_requests_total{route="/v1/completions",status="200"}' in counted
    check_scores(of, found)


def check_scores(of: Opened, found: Sequence[Sequence[float]]) -> None:
    for row, scored in zip(ROWS, found, strict=True):
        expected = [score_of(of, str(row["prompt"]), choice) for choice in row["choices"]]
        # float32 in another order of summing; the same roundings in int8
        np.testing.assert_allclose(scored, expected, atol=1e-3)


def score_of(of: Opened, prompt: str, choice: str) -> float:
    """Log-probability of a choice after a prompt, nats."""
    before, whole = of.codec.encode(prompt), of.codec.encode(prompt + choice)
    logprobs = log_softmax(of.session.score(whole))
    return float(sum(logprobs[i - 1, whole[i]] for i in range(len(before), len(whole))))


@pytest.mark.parametrize("name", NAMES)
def test_the_browser_s_engine_reads_a_prompt_as_ours(answers: Any, opened: Any, name: str) -> None:
    of = opened[name]
    expected = of.session.score(of.codec.encode(PROMPT))[-1]
    found = answers("onnxruntime-web", "prompt")[name]
    # Of all logits together: how far a single one strays depends on the CPU's kernels here.
    distance = np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected)
    assert distance < (1e-4 if of.bundle.manifest.scheme == "fp32" else 0.2)
