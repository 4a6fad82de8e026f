"""The peers' side: what is timed, what is answered, and how weights are laid out for GGUF."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.peers.gguf_files import interleaved
from bench.peers.protocol import measure, speeds

ROOT = Path(__file__).parents[2]
NOISY = """
import os
from bench.peers.protocol import serve

def double(n):
    print("a library that prints")
    os.write(1, b"and one in C\\n")
    return {"n": 2 * n}

serve({"engine": "fake"}, {"double": double})
"""


class Fake:
    """Counts upwards from the prompt's last token, and keeps what it was asked."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.calls: list[tuple[str, int]] = []

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def reserve(self, n_tokens: int) -> None:
        self.calls.append(("reserve", n_tokens))

    def start(self, ids: Sequence[int]) -> int:
        self.calls.append(("start", len(ids)))
        return ids[-1] + 1

    def step(self, token: int) -> int:
        self.calls.append(("step", token))
        return token + 1

    def piece(self, token: int) -> str:
        self.calls.append(("piece", token))
        return str(token)

    def score(self, ids: Sequence[int]) -> Any:
        raise AssertionError

    score_steps = score


def test_every_new_token_is_read_back_and_shown() -> None:
    fake = Fake()
    found = measure(fake, "5 6 7", 3)
    written = [("piece", 8), ("step", 8), ("piece", 9), ("step", 9), ("piece", 10)]
    assert fake.calls == [("reserve", 6), ("start", 3), *written]
    assert found["n_prompt"] == 3 and len(found["itl_ms"]) == 2


def test_rates_follow_from_times() -> None:
    found = speeds(128, 64.0, [10.0, 30.0])
    assert found["prefill_tok_s"] == pytest.approx(2000)
    assert found["decode_tok_s"] == pytest.approx(50)


def test_what_libraries_print_is_no_answer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISY],
        input='{"do": "double", "n": 2}\n{"do": "double", "n": 5}\n',
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    answers = [json.loads(line) for line in io.StringIO(done.stdout)]
    assert answers == [{"engine": "fake"}, {"n": 4}, {"n": 10}]
    assert "and one in C" in done.stderr and "a library that prints" in done.stderr


def test_rotating_pairs_of_the_new_layout_is_rotating_halves_of_the_old() -> None:
    rng = np.random.default_rng(0)
    n_heads, size = 3, 8
    q, k = rng.normal(size=(2, n_heads * size, 5))
    x, y = rng.normal(size=(2, 5))
    angles = rng.normal(size=(2, size // 2))  # of two positions

    def turned(values: np.ndarray, angle: np.ndarray, first: Any, second: Any) -> np.ndarray:
        out = values.reshape(n_heads, size).copy()
        a, b = out[:, first].copy(), out[:, second].copy()
        out[:, first] = a * np.cos(angle) - b * np.sin(angle)
        out[:, second] = a * np.sin(angle) + b * np.cos(angle)
        return out

    halves = (slice(0, size // 2), slice(size // 2, None))
    pairs = (slice(0, None, 2), slice(1, None, 2))
    expected = (turned(q @ x, angles[0], *halves) * turned(k @ y, angles[1], *halves)).sum(-1)
    new_q, new_k = (interleaved(weights, n_heads) for weights in (q, k))
    found = (turned(new_q @ x, angles[0], *pairs) * turned(new_k @ y, angles[1], *pairs)).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # float64: the order of sums
    assert not np.allclose(
        (turned(q @ x, angles[0], *pairs) * turned(k @ y, angles[1], *pairs)).sum(-1), expected
    )
