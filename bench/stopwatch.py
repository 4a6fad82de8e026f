"""Time per output token by a stopwatch around `generate`, beside what `kdexport bench` says of it.

    python bench/stopwatch.py exported/quickstart-int8 --out bench/results/stopwatch.json

The stopwatch is a process that knows nothing of the bench: it opens the bundle as the README shows,
writes texts, and looks at the clock when a text's first token is there and when its last is. In
each round bench and stopwatch follow one another, and who begins alternates; only their ratio
within a round counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kdexport.runtime.generate import generate  # noqa: E402
from kdexport.runtime.sample import make_sampler  # noqa: E402
from kdexport.runtime.session import open_session  # noqa: E402
from kdexport.runtime.text import load_text  # noqa: E402

BAR = 0.05
PROMPT = "Write a warm e-mail about our new garden tools, and say that delivery is free in May. "


def watch(folder: Path, n_threads: int, n_texts: int, n_prompt: int, n_new: int) -> list[float]:
    """Milliseconds a token after the first, of each text; the first text warms up."""
    session, codec = open_session(folder, n_threads=n_threads), load_text(folder)
    ids = codec.encode(PROMPT * n_prompt)[:n_prompt]
    found = []
    for _ in range(n_texts + 1):
        stream = codec.stream()
        steps = generate(session, ids, make_sampler(), max_new_tokens=n_new, ignore_eos=True)
        stream.push(next(steps).token_id)
        started = time.perf_counter()
        n_later = sum(1 for step in steps if stream.push(step.token_id) is not None)
        found.append(1000 * (time.perf_counter() - started) / n_later)
    return found[1:]


def of_bench(given: argparse.Namespace) -> list[float]:
    """The same, a run each, by `kdexport bench`."""
    words = ["--threads", given.threads, "--runs", given.texts, "--prompt", given.prompt]
    command = [sys.executable, "-m", "kdexport", "bench", given.bundle, *words]
    command += ["--new", given.new, "--json"]
    [arm] = json.loads(_output(command))["arms"]
    return [1000 / speed for speed in arm["decode_tok_s"]]


def of_stopwatch(given: argparse.Namespace) -> list[float]:
    """The same by `watch`, in a process of its own."""
    words = ["--threads", given.threads, "--texts", given.texts, "--prompt", given.prompt]
    command = [sys.executable, __file__, given.bundle, *words, "--new", given.new, "--watch"]
    found: list[float] = json.loads(_output(command))
    return found


def _output(command: Sequence[Any]) -> bytes:
    ran = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        raise SystemExit(ran.returncode)
    return ran.stdout


WAYS = {"bench": of_bench, "stopwatch": of_stopwatch}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What came out, a table and a bar."""
    rounds = found["rounds"]
    yield "| round | bench, ms a token | stopwatch, ms a token | stopwatch / bench |"
    yield "|---:|---:|---:|---:|"
    for number, one in enumerate(rounds, start=1):
        ours, watched = (statistics.median(one[way]) for way in ("bench", "stopwatch"))
        yield f"| {number} | {ours:.3f} | {watched:.3f} | {watched / ours:.3f} |"
    ratio = statistics.median(ratios(rounds))
    met = "met" if abs(ratio - 1) <= BAR else "NOT met"
    yield from ("", f"- median of the rounds {ratio:.3f}, bar 1 ± {BAR:g}: {met}")


def ratios(rounds: Sequence[Mapping[str, Sequence[float]]]) -> list[float]:
    """The stopwatch's median over the bench's in each round."""
    return [statistics.median(r["stopwatch"]) / statistics.median(r["bench"]) for r in rounds]


def main(words: Sequence[str] | None = None) -> None:
    from bench.record import record, save
    from kdexport.system.machine import physical_cores

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument(
        "--texts", type=int, default=10, help="a round, for bench and stopwatch each"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.watch:
        sizes = (given.threads, given.texts, given.prompt, given.new)
        print(json.dumps(watch(given.bundle, *sizes)))
        return
    rounds = []
    for number in range(given.rounds):
        order = list(WAYS) if number % 2 else list(reversed(WAYS))
        rounds.append({way: WAYS[way](given) for way in order})
    found = {
        **record(__file__, words),
        "settings": {name: getattr(given, name) for name in ("threads", "texts", "prompt", "new")},
        "rounds": rounds,
    }
    print("\n".join(lines(found)))
    save(found, given.out)


if __name__ == "__main__":
    main()
