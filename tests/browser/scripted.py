"""A model that writes what a test wants: its logits are computed, and its tokens are a text's."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from kdexport.bundle import Bundle
from kdexport.runtime.sample import Row
from kdexport.runtime.session import Session
from kdexport.runtime.text import load_text
from kdexport.serve.fields import CopyRequest


class Script:
    """A sampler whose tokens are a text's, then the one that ends it."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids

    def __call__(self, logits: Any, rows: Sequence[Row]) -> Any:
        return np.asarray([self._ids[len(row.ids) - row.n_prompt] for row in rows])


def write(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, *texts: str) -> None:
    """Have copies be these texts after their openings, one after another and round again."""
    scripts = _scripts(bundle, texts)
    monkeypatch.setattr(CopyRequest, "sampler", lambda self: next(scripts))


def write_for(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, texts: Mapping[str, Sequence[str]]
) -> None:
    """The same by product, for briefs that come in any order."""
    scripts = {product: _scripts(bundle, own) for product, own in texts.items()}
    monkeypatch.setattr(CopyRequest, "sampler", lambda self: next(scripts[self.brief.product]))


def _scripts(bundle: Bundle, texts: Sequence[str]) -> Iterator[Script]:
    codec, (end, *_) = load_text(bundle), bundle.manifest.text.eos_token_ids
    return itertools.cycle([Script([*codec.encode(text), end]) for text in texts])


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each step of the model take so long."""
    run = Session.run

    def slow(self: Session, *arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return run(self, *arguments, **options)

    monkeypatch.setattr(Session, "run", slow)
