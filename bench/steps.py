"""How long a step of a batch and a prompt take, by the graphs of one bundle or of several.

    python bench/steps.py exported/quickstart-int8 exported/quickstart-int8-kv8 --out FILE.json

Each bundle is opened for one text and, where it has a graph for many tokens that this CPU suits,
for many. All take turns, call by call. Milliseconds of CPU and of the clock, medians: of a token
for ``--rows`` texts that are ``--depths`` tokens long, and of a prompt of ``--prompts`` tokens read
in one call. Writes JSON to stdout.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from kdexport.bundle import open_bundle  # noqa: E402
from kdexport.runtime.session import Session, open_session  # noqa: E402

N_WARM = 3


def sessions(paths: list[Path], n_threads: int) -> dict[str, Session]:
    """By the bundle's folder and what the session is for."""
    found = {}
    for path in paths:
        bundle = open_bundle(path)
        for many in (False, True):
            session = open_session(bundle, n_threads=n_threads, many_tokens=many)
            if not many or session.graph != bundle.manifest.graphs.decode:
                kept = session.manifest.kv_cache
                found[f"{path.name}, {'many' if many else 'one'}, {kept} cache"] = session
    return found


def in_turns(calls: Mapping[str, Callable[[], Any]], n: int) -> dict[str, dict[str, float]]:
    """Medians of each call's milliseconds, by the CPU's clock and the wall's."""
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(N_WARM + n):
        for name, call in calls.items():
            began = time.process_time(), time.perf_counter()
            call()
            took = time.process_time() - began[0], time.perf_counter() - began[1]
            if turn >= N_WARM:
                cpu[name].append(1000 * took[0])
                wall[name].append(1000 * took[1])
    return {
        name: {
            "cpu_ms": round(statistics.median(cpu[name]), 2),
            "wall_ms": round(statistics.median(wall[name]), 2),
        }
        for name in calls
    }


def steps(session: Session, n_rows: int, depth: int) -> Callable[[], Any]:
    """A token more for texts of that length, which do not grow by it."""
    draw = np.random.default_rng(0)
    cache = session.new_cache(n_rows, depth + 1)
    session.run(draw.integers(0, session.vocab_size, (n_rows, depth)), cache)
    ids = draw.integers(0, session.vocab_size, (n_rows, 1))

    def step() -> None:
        session.run(ids, cache)
        cache.truncate(depth)

    return step


def prompt(session: Session, n_tokens: int) -> Callable[[], Any]:
    ids = np.random.default_rng(0).integers(0, session.vocab_size, (1, n_tokens))
    return lambda: session.run(ids, session.new_cache(1, n_tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds of a step and of a prompt.")
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--depths", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    opened = sessions(given.bundles, given.threads)
    found: dict[str, Any] = {**record(__file__), "steps": [], "prompts": []}
    for n_rows, depth in itertools.product(given.rows, given.depths):
        calls = {name: steps(one, n_rows, depth) for name, one in opened.items()}
        took = in_turns(calls, given.turns)
        found["steps"].append({"rows": n_rows, "depth": depth, "of": took})
    for n_tokens in given.prompts:
        calls = {name: prompt(one, n_tokens) for name, one in opened.items()}
        found["prompts"].append({"tokens": n_tokens, "of": in_turns(calls, given.turns)})
    print(json.dumps(found, indent=1))
    save(found, given.out)


if __name__ == "__main__":
    main()
