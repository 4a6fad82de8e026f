"""Whether `kdexport bench` says the same when it is asked again, and how long it takes.

    python bench/repeatability.py exported/quickstart-int8 --teacher TEACHER \
        --out bench/results/repeatability.json

All but --times and --out is given to `kdexport bench`, which is called three times. Of every ratio
that a report quotes with an interval it is told whether each bench's interval covers what the other
two found; ratios of quality, which have no noise of time, are held against being equal. Beside that
stands how many measures `kdexport bench --compare` takes for changed where nothing did.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from kdexport.verdict.bootstrap import Interval  # noqa: E402
from kdexport.verdict.cases import gains, interval_text, quicker  # noqa: E402
from kdexport.verdict.compare import compare_reports  # noqa: E402
from kdexport.verdict.report import BenchReport  # noqa: E402

LEAST_COVERED = 0.9  # of the ratios
MOST_SECONDS = 300


def bench(words: Sequence[str]) -> tuple[BenchReport, float]:
    """A report of `kdexport bench`, and the seconds that it took, all in all."""
    command = [sys.executable, "-m", "kdexport", "bench", *words, "--json"]
    started = time.monotonic()
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        raise SystemExit(ran.returncode)
    return BenchReport.model_validate_json(ran.stdout), time.monotonic() - started


def timed_ratios(report: BenchReport) -> dict[str, Interval]:
    """Every ratio of times that the report quotes, with its interval."""
    found = {
        f"{arm.label}: {name}": gain
        for arm in report.ordered_arms
        for name, gain in gains(report, arm).items()
    }
    baseline = report.baseline_arm
    for at, case in enumerate(report.settings.others if baseline else []):
        for arm in report.ordered_arms:
            if arm.arm != report.baseline and baseline is not None:
                for name, gain in quicker(arm.others[at], baseline.others[at]).items():
                    found[f"{arm.label}, {case.label}: {name}"] = gain
    return found


def quality_ratios(report: BenchReport) -> dict[str, float]:
    """Every ratio of perplexities that it quotes."""
    return {
        f"{arm.label}: perplexity": arm.ppl_ratio
        for arm in report.ordered_arms
        if arm.ppl_ratio is not None
    }


def judge(reports: Sequence[BenchReport], seconds: Sequence[float]) -> dict[str, Any]:
    """What several benches of the same say of one another."""
    timed = [timed_ratios(report) for report in reports]
    ratios = {name: [one[name] for one in timed] for name in timed[0]}
    quality = [quality_ratios(report) for report in reports]
    changes = [
        change for pair in combinations(reports, 2) for change in compare_reports(*pair).changes
    ]
    return {
        "ratios": {
            name: {"found": [vars(one) for one in found], "covered": n_covering(found)}
            for name, found in ratios.items()
        },
        "quality": {name: [found[name] for found in quality] for name in quality[0]},
        "changed": [
            f"{change.arm} {change.measure}"
            for change in changes
            if change.verdict in ("worse", "better")
        ],
        "n_compared": sum(change.verdict != "unknown" for change in changes),
        "seconds": list(seconds),
    }


def n_covering(found: Sequence[Interval]) -> int:
    """How many of the intervals cover every one of the values."""
    return sum(all(one.covers(other.value) for other in found) for one in found)


def bars(found: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Each bar as a line, and whether it is met."""
    ratios, n_benches = found["ratios"], len(found["seconds"])
    n_whole = sum(one["covered"] == n_benches for one in ratios.values())
    yield (
        f"{n_whole} of {len(ratios)} ratios: every bench's interval covers what the others found, "
        f"bar ≥ {LEAST_COVERED:.0%}",
        n_whole >= LEAST_COVERED * len(ratios),
    )
    if quality := found["quality"]:
        n_equal = sum(len(set(values)) == 1 for values in quality.values())
        yield (
            f"{n_equal} of {len(quality)} ratios of perplexities are equal each time, bar: all",
            n_equal == len(quality),
        )
    longest = max(found["seconds"])
    yield f"{longest:.0f} s for the longest bench, bar ≤ {MOST_SECONDS}", longest <= MOST_SECONDS


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A Markdown table of the ratios, and the bars."""
    n_benches = len(found["seconds"])
    titles = (f"bench {number + 1}" for number in range(n_benches))
    yield f"| | {' | '.join(titles)} | intervals that cover the others |"
    yield "|---|" + "---:|" * (n_benches + 1)
    for name, one in found["ratios"].items():
        cells = [interval_text(Interval(**each)) for each in one["found"]]
        yield f"| {name} | {' | '.join(cells)} | {one['covered']} of {n_benches} |"
    yield ""
    for line, met in bars(found):
        yield f"- {line}: {'met' if met else 'NOT met'}"
    yield (
        f"- `--compare` takes {len(found['changed'])} of {found['n_compared']} measures for "
        "changed, times in milliseconds among them, which a machine's drift moves"
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    given, of_bench = parser.parse_known_args(words)
    reports, seconds = zip(*(bench(of_bench) for _ in range(given.times)), strict=True)
    found = {
        **record(__file__, words),
        "settings": reports[0].settings.model_dump(mode="json"),
        **judge(reports, seconds),
        "runs": [
            {arm.arm: {"decode_tok_s": arm.decode_tok_s, "ttft_ms": arm.ttft_ms} for arm in r.arms}
            for r in reports
        ],
    }
    print("\n".join(lines(found)))
    save(found, given.out)


if __name__ == "__main__":
    main()
