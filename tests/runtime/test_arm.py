"""One line of copy ends at its line, whoever asks for it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdexport.bundle import TextFacts
from kdexport.content.briefs import Brief
from kdexport.copywriting.writing import Writer
from kdexport.pipeline.synthesize import Sampling, synthesize
from kdexport.runtime.arm import sample_copy
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.text import TextCodec
from tests.models import byte_level_bpe


class Scripted:
    """A session whose most likely tokens are a given text's, whatever it reads."""

    def __init__(self, codec: TextCodec, text: str) -> None:
        self.script = codec.encode(text)
        self.vocab_size = codec.tokenizer.get_vocab_size()
        self.manifest = SimpleNamespace(
            text=codec.facts, model=SimpleNamespace(max_length=10_000, vocab_size=self.vocab_size)
        )

    def new_cache(self, batch_size: int = 1, capacity: int = 256) -> Any:
        return SimpleNamespace(step=0, keep_rows=lambda rows: None)

    def run(self, ids: np.ndarray, cache: Any, **_: object) -> np.ndarray:
        logits = np.zeros((len(ids), self.vocab_size), dtype=np.float32)
        logits[:, self.script[cache.step]] = 1
        cache.step += 1
        return logits


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    """Some tokens are a full stop and a line break in one, as Qwen's and Llama 3's are."""
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([".\n", "!\n\n- "])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return TextCodec(tmp_path / "tokenizer.json", TextFacts(eos_token_ids=[2]), None)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Fresh bread.\nAnd more", "Fresh bread."),
        ("Fresh bread!\n\n- today", "Fresh bread!"),
        ("Fresh bread\nAnd more", "Fresh bread"),
        ("Fresh bread.<|im_end|>", "Fresh bread."),
    ],
)
def test_one_line_ends_at_its_line(
    codec: TextCodec, tmp_path: Path, written: str, expected: str
) -> None:
    session: Any = Scripted(codec, written)
    asked = [{"role": "user", "content": "x"}]
    answer = sample_copy(session, codec, asked, 40, one_line=True)
    assert (answer["text"], answer["added"], answer["finished"]) == (expected, expected, True)
    assert "".join(answer["pieces"]).startswith(expected)

    writer = Writer(session, codec, make_sampler(), 40, 0)
    pieces = list(writer.stream("x", max_new_tokens=40, one_line=True))
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1].step.finish_reason == "stop"

    briefs = [
        Brief(id=f"b{n}", product="Tea", facts=("green",), channel="ad_headline") for n in range(3)
    ]
    synthesize(
        briefs,
        session,
        codec,
        Sampling(temperature=0.0),
        drafts_path=tmp_path / "drafts.jsonl",
        teacher="t",
        progress=lambda *_: None,
    )
    rows = map(json.loads, (tmp_path / "drafts.jsonl").read_text("utf-8").splitlines())
    assert [(r["text"], r["finished"]) for r in rows if "text" in r] == [(expected, True)] * 3


def test_many_lines_go_on(codec: TextCodec) -> None:
    session: Any = Scripted(codec, "One.\nTwo.\n<|im_end|>")
    asked = [{"role": "user", "content": "x"}]
    answer = sample_copy(session, codec, asked, 40, one_line=False)
    assert answer["text"] == "One.\nTwo."
    assert "".join(answer["pieces"]) == answer["added"] == "One.\nTwo.\n"
    assert not sample_copy(session, codec, asked, 2, one_line=False)["finished"]


@pytest.mark.parametrize("least", [0, 6])
def test_a_writer_ends_no_text_before_its_least_tokens(codec: TextCodec, least: int) -> None:
    session: Any = Scripted(codec, "Hi<|im_end|>")
    session.script += [2] * 20  # nothing but ends from there on
    writer = Writer(session, codec, make_sampler(), 40, min_new_tokens=least)
    pieces = list(writer.stream("x", max_new_tokens=10, one_line=False))
    assert len(pieces) == max(len(codec.encode("Hi<|im_end|>")), least + 1)
    assert pieces[-1].step.finish_reason == "stop"
