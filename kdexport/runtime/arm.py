"""One arm of a bench: a model in a process of its own, which does as it is told line by line.

    python -m kdexport.runtime.arm BUNDLE --threads 2

Requests come as JSON lines on stdin, answers go as JSON lines to stdout. Arms stay loaded and idle
while others run, so that they can take turns.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from kdexport.content.prompts import split_opening
from kdexport.errors import InputError, KdexportError
from kdexport.runtime.generate import Runs, generate
from kdexport.runtime.latency import measure_once, prompt_of
from kdexport.runtime.quality import load_reference, measure_quality
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.text import first_line, pieces
from kdexport.system.machine import rss_mb

Answer = dict[str, Any]


def serve_arm(session: Runs, codec: Any, facts: Answer) -> None:
    """Say what was loaded, then answer requests until stdin ends."""
    actions: Mapping[str, Callable[..., Answer]] = {
        "latency": lambda **request: _latency(session, codec, **request),
        "quality": lambda **request: _quality(session, **request),
        "sample": lambda **request: sample_copy(session, codec, **request),
        "memory": _memory,
    }
    _answer(facts)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _answer(actions[request.pop("do")](**request))
        except KdexportError as error:
            _answer({"error": str(error)})


def refuse(error: KdexportError) -> NoReturn:
    """Say why nothing was loaded, and end."""
    _answer({"error": str(error)})
    raise SystemExit(2)


def _answer(answer: Answer) -> None:
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)  # whoever asked is gone


def _latency(
    session: Runs, codec: Any, prompt_tokens: int, new_tokens: int, batch_size: int = 1
) -> Answer:
    prompt = prompt_of(codec, prompt_tokens)
    latency = measure_once(session, codec, prompt, new_tokens, batch_size)
    return {**asdict(latency), "decode_tok_s": latency.decode_tok_s}


def _quality(session: Runs, reference: str, teacher_vocabulary: bool) -> Answer:
    loaded = load_reference(Path(reference))
    try:
        quality = measure_quality(session, loaded, teacher_vocabulary=teacher_vocabulary)
    except InputError as error:
        raise InputError(error.message, where=reference) from error
    return {**asdict(quality), "quality_split": loaded.meta.get("split", "test")}


def sample_copy(
    session: Runs, codec: Any, messages: list[dict[str, str]], new_tokens: int, one_line: bool
) -> Answer:
    """What a model writes, greedily: the text, what of it was added to an opening, its pieces."""
    ids = codec.encode(codec.render_chat(messages) if messages else "")
    steps = list(
        generate(
            session,
            ids,
            make_sampler(),
            max_new_tokens=new_tokens,
            stop_ids=codec.line_end_ids if one_line else (),
        )
    )
    tokens = [step.token_id for step in steps if step.in_text]
    written = codec.decode(tokens)
    if one_line:
        written = first_line(written)
    _, opening = split_opening(messages)
    return {
        "text": (opening + written).strip(),
        "added": written,
        "pieces": [piece for piece in pieces(codec, tokens) if piece],
        "finished": steps[-1].finish_reason == "stop",
    }


def _memory() -> Answer:
    now = rss_mb()  # which the kernel counts more coarsely, and may find larger
    return {"peak_rss_mb": max(peak_rss_mb(), now), "steady_rss_mb": now}


def peak_rss_mb() -> float:
    """The most memory that this process has held at once, 10^6 bytes."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Serve a bundle."""
    parser = argparse.ArgumentParser(prog="python -m kdexport.runtime.arm")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    from kdexport.bundle import open_bundle, served_bytes
    from kdexport.runtime.session import open_session
    from kdexport.runtime.text import load_text

    try:
        bundle = open_bundle(arguments.bundle)
        started = time.perf_counter()
        session = open_session(bundle, n_threads=arguments.threads)
        codec = load_text(bundle)
    except KdexportError as error:
        refuse(error)
    facts = {
        "engine": "ONNX Runtime",
        "n_parameters": bundle.manifest.model.n_parameters,
        "size_mb": served_bytes({n: f.bytes for n, f in bundle.manifest.files.items()}) / 1e6,
        "load_s": time.perf_counter() - started,
    }
    serve_arm(session, codec, facts)


if __name__ == "__main__":
    main()
