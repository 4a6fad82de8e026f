"""The peers' side of an arm: one JSON request a line on stdin, one answer a line on stdout.

Standard library only (numpy where logits are compared): it runs inside every peer's environment.
The questions and answers are those of `kdexport.runtime.arm`, and two more: `kl` and `batch`.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Answer = dict[str, Any]


class Engine(Protocol):
    """What an engine has to be able to do. Greedy, one text at a time."""

    facts: Answer

    def encode(self, text: str) -> list[int]:
        """Token ids, by the engine's own tokenizer."""
        ...

    def reserve(self, n_tokens: int) -> None:
        """Make ready for a text of so many tokens; not timed."""
        ...

    def start(self, ids: Sequence[int]) -> int:
        """Read a prompt; the first new token."""
        ...

    def step(self, token: int) -> int:
        """Read one token; the next."""
        ...

    def piece(self, token: int) -> str:
        """The text of a new token, as a stream would show it."""
        ...

    def score(self, ids: Sequence[int]) -> Any:
        """Logits after every token of a text read at once, float32 [S, V]."""
        ...

    def score_steps(self, ids: Sequence[int]) -> Iterator[Any]:
        """The same, read token by token: float32 [V] at a time."""
        ...


def measure(engine: Engine, prompt: str, new_tokens: int) -> Answer:
    """Write greedily after a prompt, from text to text; see `kdexport.runtime.latency`."""
    n_prompt = len(engine.encode(prompt))
    engine.reserve(n_prompt + new_tokens)
    marks = [time.perf_counter()]
    token = engine.start(engine.encode(prompt))
    engine.piece(token)
    marks.append(time.perf_counter())
    for _ in range(new_tokens - 1):
        token = engine.step(token)
        engine.piece(token)
        marks.append(time.perf_counter())
    gaps = [1000 * (after - before) for before, after in itertools.pairwise(marks)]
    return speeds(n_prompt, gaps[0], gaps[1:])


def speeds(n_prompt: int, ttft_ms: float, itl_ms: Sequence[float]) -> Answer:
    """Times in milliseconds, and the rates that follow from them."""
    return {
        "n_prompt": n_prompt,
        "ttft_ms": ttft_ms,
        "itl_ms": list(itl_ms),
        "prefill_tok_s": 1000 * n_prompt / ttft_ms,
        "decode_tok_s": 1000 * len(itl_ms) / sum(itl_ms),
    }


def memory() -> Answer:
    """The most memory that this process has held at once (VmHWM), 10^6 bytes."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM"):
            return {"peak_rss_mb": int(line.split()[1]) * 1024 / 1e6}
    raise OSError("the system does not tell a process's peak memory")


def serve(facts: Answer, actions: Mapping[str, Callable[..., Answer]]) -> None:
    """Say what was loaded, then answer requests until stdin ends.

    Whatever the libraries print goes to stderr: stdout is for answers alone.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for answer in itertools.chain([facts], map(_answerer(actions), sys.stdin)):
            out.write(json.dumps(answer) + "\n")
            out.flush()


def _answerer(actions: Mapping[str, Callable[..., Answer]]) -> Callable[[str], Answer]:
    def answer(line: str) -> Answer:
        request = json.loads(line)
        return actions[request.pop("do")](**request)

    return answer


def serve_engine(open_engine: Callable[[Path, int], Engine]) -> None:
    """`python -m bench.peers.ENGINE PATH --threads N`: open the model, then answer."""
    path, n_threads = arguments()
    started = time.perf_counter()
    engine = open_engine(path, n_threads)
    facts = {"load_s": time.perf_counter() - started, **engine.facts}
    serve(
        facts,
        {
            "latency": lambda **request: measure(engine, **request),
            "memory": memory,
            "kl": lambda **request: _kl(engine, **request),
        },
    )


def arguments() -> tuple[Path, int]:
    """The model's path and the number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    return given.path, given.threads


def _kl(engine: Engine, reference: str, n_windows: int, stepwise: bool) -> Answer:
    import numpy as np

    from bench.peers.fidelity import compare

    def read(ids: Sequence[int]) -> Any:
        engine.reserve(len(ids))
        return np.stack(list(engine.score_steps(ids))) if stepwise else engine.score(ids)

    return compare(Path(reference), n_windows, read)
