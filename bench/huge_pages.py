"""What huge pages are worth to a bundle on this machine.

    python bench/huge_pages.py exported/quickstart-int8 --out bench/results/huge-pages.json

Processes with and without take turns, each writes a few texts. Told: decode and prefill speed, time
to open and peak memory as medians, and their ratios inside a round; and how much of a process's
memory the system says is in huge pages.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMAPS = Path("/proc/self/smaps_rollup")


def one_arm(folder: Path, huge: bool, n_threads: int, n_texts: int) -> dict[str, float]:
    """Open the bundle, write some texts, say how it went."""
    from kdexport.bundle import open_bundle
    from kdexport.runtime.arm import peak_rss_mb
    from kdexport.runtime.latency import measure_once, prompt_of
    from kdexport.runtime.session import open_session
    from kdexport.runtime.text import load_text

    bundle = open_bundle(folder)
    started = time.perf_counter()
    session = open_session(bundle, n_threads=n_threads, verify=False, huge_pages=huge)
    opened = time.perf_counter() - started
    codec = load_text(bundle)
    prompt = prompt_of(codec, 128)
    measure_once(session, codec, prompt, 8)
    runs = [measure_once(session, codec, prompt, 64) for _ in range(n_texts)]
    return {
        "decode_tok_s": statistics.median(run.decode_tok_s for run in runs),
        "prefill_tok_s": statistics.median(run.prefill_tok_s for run in runs),
        "open_s": opened,
        "peak_rss_mb": peak_rss_mb(),
        "huge_mb": huge_mb(),
    }


def huge_mb() -> float:
    """How much of this process's anonymous memory is in huge pages, 10^6 bytes."""
    line = next(line for line in SMAPS.read_text("ascii").splitlines() if "AnonHuge" in line)
    return int(line.split()[1]) * 1024 / 1e6


def ask(given: argparse.Namespace, huge: bool) -> dict[str, float]:
    """The same in a process of its own."""
    words = [str(given.bundle), "--threads", str(given.threads), "--texts", str(given.texts)]
    command = [sys.executable, __file__, *words, "--arm", "huge" if huge else "small"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    answer: dict[str, float] = json.loads(found)
    return answer


def compared(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of each arm, and of the ratios inside a round."""
    medians = {
        arm: {key: statistics.median(r[arm][key] for r in rounds) for key in rounds[0][arm]}
        for arm in ("small", "huge")
    }
    ratios = {
        key: [r["huge"][key] / r["small"][key] for r in rounds]
        for key in ("decode_tok_s", "prefill_tok_s", "open_s", "peak_rss_mb")
    }
    spread = {
        key: {"median": statistics.median(v), "least": min(v), "most": max(v)}
        for key, v in ratios.items()
    }
    return {"medians": medians, "huge / small": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description="A bundle with and without huge pages.")
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--arm", choices=("huge", "small"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    if given.arm:
        answer = one_arm(given.bundle[0], given.arm == "huge", given.threads, given.texts)
        print(json.dumps(answer))
        return
    sys.path.insert(0, str(ROOT))
    from bench.record import record, save

    result: dict[str, Any] = {**record(__file__), "bundles": {}}
    for bundle in given.bundle:
        one = argparse.Namespace(**{**vars(given), "bundle": bundle})
        rounds = [
            {("huge" if huge else "small"): ask(one, huge) for huge in order}
            for n in range(given.rounds)
            for order in [((True, False), (False, True))[n % 2]]
        ]
        result["bundles"][bundle.name] = {**compared(rounds), "rounds": rounds}
        print(bundle.name, json.dumps(compared(rounds), indent=1))
    save(result, given.out)


if __name__ == "__main__":
    main()
