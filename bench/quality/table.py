"""What a comparison shows: a row an arm, a bar a line, and ablations by what they change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.quality.arms import Result
from bench.quality.statistics import mean_of_seeds, paired_ratio
from kdexport.verdict.bootstrap import Interval

Results = Mapping[str, Mapping[int, Result]]
"""Arm -> seed -> what it gave."""
HEAD = "| arm | M parameters | KL, nats a token | by seed | steps | CPU minutes | {} |"
RULE = "|---|---:|---:|---|---:|---:|---|"


@dataclass(frozen=True)
class Bar:
    """Ours over another arm's mean KL: what it has to stay below, and its interval below 1."""

    other: str
    at_most: float


BARS: Sequence[Bar] = (Bar("sft", 0.8), Bar("trl-gkd", 1.0), Bar("trl-gkd-off-policy", 1.0))


def ratio(results: Results, ours: str, other: str) -> Interval:
    """Mean KL of one arm over another's."""
    mine, its = ({seed: found.kl for seed, found in results[arm].items()} for arm in (ours, other))
    return paired_ratio(mine, its)


def rows(results: Results, base: str) -> list[str]:
    """A Markdown table; the last column is an arm's KL over the base's, with its interval."""
    lines = [HEAD.format(f"KL / {base}'s"), RULE]
    for arm, by_seed in results.items():
        means = [found.kl.mean for found in by_seed.values()]
        one = next(iter(by_seed.values()))
        steps = sum(found.did["n_steps"] for found in by_seed.values()) / len(by_seed)
        cpu = sum(found.did["cpu_s"] for found in by_seed.values()) / len(by_seed) / 60
        apart = "" if arm == base else shown(ratio(results, arm, base))
        lines.append(
            f"| {arm} | {one.n_parameters / 1e6:.1f} "
            f"| {mean_of_seeds({s: f.kl for s, f in by_seed.items()}):.4f} "
            f"| {' '.join(f'{value:.4f}' for value in means)} | {steps:.0f} | {cpu:.1f} "
            f"| {apart} |"
        )
    return lines


def shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def verdicts(results: Results, ours: str) -> list[str]:
    """Whether each bar is met: by the value, and by an interval that excludes no difference."""
    lines = []
    for bar in BARS:
        if bar.other not in results or ours not in results:
            continue
        found = ratio(results, ours, bar.other)
        met = found.value <= bar.at_most and found.side(1) == "below"
        lines.append(
            f"{ours} / {bar.other}: {shown(found)}, bar ≤ {bar.at_most:g} and the interval "
            f"below 1: {'met' if met else 'NOT met'}"
        )
    return lines


def changes(base: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted keys whose values differ between two dumped recipes -> the other's value."""
    found: dict[str, Any] = {}
    for key in [*base, *(key for key in other if key not in base)]:
        mine, its = base.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            found |= changes(mine, its, f"{above}{key}.")
        elif mine != its:
            found[f"{above}{key}"] = its
    return found
