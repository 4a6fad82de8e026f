"""kdexport as an arm: the `generate` that users run, of a bundle or around a model in PyTorch."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.fidelity import compare
from bench.peers.protocol import Answer, arguments, memory, serve, speeds
from kdexport.runtime.generate import Runs, generate_variants
from kdexport.runtime.latency import measure_once
from kdexport.runtime.sample import make_sampler

Array = np.ndarray[Any, Any]
Logits = Callable[[Sequence[int]], Array]


def serve_session(session: Runs, codec: Any, facts: Answer) -> None:
    """Answer with a session's times, memory, distances and batches."""
    actions: Mapping[str, Callable[..., Answer]] = {
        "latency": lambda **request: _latency(session, codec, **request),
        "memory": memory,
        "kl": lambda **request: _kl(session, **request),
        "batch": lambda **request: _batch(session, codec, **request),
    }
    serve(facts, actions)


def _latency(session: Runs, codec: Any, prompt: str, new_tokens: int) -> Answer:
    found = asdict(measure_once(session, codec, prompt, new_tokens))
    return speeds(len(codec.encode(prompt)), found["ttft_ms"], found["itl_ms"])


def _kl(session: Runs, reference: str, n_windows: int, stepwise: bool) -> Answer:
    read = logits_by_token if stepwise else logits_at_once
    return compare(Path(reference), n_windows, lambda ids: read(session, ids))


def logits_at_once(session: Runs, ids: Sequence[int]) -> Array:
    """Logits after every token of a text, float32 [S, V], read as one prompt."""
    cache = session.new_cache(1, len(ids))
    rows = np.arange(len(ids), dtype=np.int64)
    return session.run(np.asarray(ids, dtype=np.int64)[None], cache, logit_rows=rows)


def logits_by_token(session: Runs, ids: Sequence[int]) -> Array:
    """The same, read token by token."""

    def rows() -> Iterator[Array]:
        cache = session.new_cache(1, len(ids))
        for token in ids:
            yield session.run(np.asarray([[token]], dtype=np.int64), cache)[0].copy()

    return np.stack(list(rows()))


def _batch(session: Runs, codec: Any, prompt: str, new_tokens: int, n_variants: int) -> Answer:
    """Decoding of several variants of one prompt together: drawn, so that they differ."""
    steps = generate_variants(
        session,
        codec.encode(prompt),
        make_sampler(temperature=0.8),
        n=n_variants,
        max_new_tokens=new_tokens,
        ignore_eos=True,
    )
    for _ in range(n_variants):
        next(steps)  # the prompt, and the first token of each
    started = time.perf_counter()
    n_written = sum(1 for _ in steps)
    return {"decode_tok_s": n_written / (time.perf_counter() - started)}


def main() -> None:
    """Serve a bundle."""
    path, n_threads = arguments()
    from kdexport.bundle import open_bundle
    from kdexport.runtime.session import open_session
    from kdexport.runtime.text import load_text

    started = time.perf_counter()
    bundle = open_bundle(path)
    session, codec = open_session(bundle, n_threads=n_threads), load_text(bundle)
    facts = {
        "load_s": time.perf_counter() - started,
        "engine": f"kdexport, onnxruntime {_version()}",
        "options": f"scheme {bundle.manifest.scheme}",
    }
    serve_session(session, codec, facts)


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


if __name__ == "__main__":
    main()
