"""Ratios of mean KLs over texts and seeds, with paired bootstrap intervals. Knows no models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
N_DRAWS = 10_000
COVERED = 95  # per cent


@dataclass(frozen=True)
class KlSums:
    """KL(teacher ‖ one student) of T texts: ``nats`` float64 [T], and their ``tokens``, int [T]."""

    nats: Array
    tokens: Array

    @property
    def mean(self) -> float:
        """Nats per token, over all tokens at once."""
        return float(self.nats.sum() / self.tokens.sum())


@dataclass(frozen=True)
class Interval:
    """A value with the percentile interval of its bootstrap."""

    value: float
    low: float
    high: float

    def verdict(self, same: float = 1.0) -> str:
        """Which side of ``same`` it is on, if the interval says so."""
        if self.low > same:
            return "above"
        return "below" if self.high < same else "undecided"


def mean_of_seeds(found: Mapping[int, KlSums]) -> float:
    """The mean KL over seeds, each of which counts alike."""
    return float(np.mean([one.mean for one in found.values()]))


def paired_ratio(
    ours: Mapping[int, KlSums], others: Mapping[int, KlSums], n_draws: int = N_DRAWS
) -> Interval:
    """Mean KL of ours over that of others, on the same texts and with the same seeds.

    Texts and seeds are drawn anew, with replacement and independently of one another, and both
    sides get the same draw (Efron & Tibshirani 1993, chapter 13, for the percentiles). Three seeds
    have few draws that differ: the interval says little of what a fourth would do.
    """
    seeds = sorted(set(ours) & set(others))
    if not seeds:
        raise ValueError("the two have no seed in common")
    tokens = [side[seed].tokens for side in (ours, others) for seed in seeds]
    if any(not np.array_equal(tokens[0], each) for each in tokens):
        raise ValueError("the two were not measured on the same texts")
    sides = [np.stack([side[seed].nats for seed in seeds]) for side in (ours, others)]
    rng = np.random.default_rng(0)
    n_texts = len(tokens[0])
    texts = rng.multinomial(n_texts, np.full(n_texts, 1 / n_texts), size=n_draws)
    chosen = rng.integers(len(seeds), size=(n_draws, len(seeds)))
    above, below = (
        np.take_along_axis(texts @ side.T, chosen, axis=1).sum(1) for side in sides
    )  # tokens cancel: both sides have the same
    return _interval(sides[0].sum() / sides[1].sum(), above / below)


def share_won_back(
    exact: KlSums, control: KlSums, aware: KlSums, n_draws: int = N_DRAWS
) -> Interval:
    """(control - aware) / (control - exact) in mean KL, texts drawn anew.

    ``exact``: the control in float32; ``control``, ``aware``: quantized bundles.
    """
    rng = np.random.default_rng(0)
    n_texts = len(exact.tokens)
    texts = rng.multinomial(n_texts, np.full(n_texts, 1 / n_texts), size=n_draws)
    won, cost = control.nats - aware.nats, control.nats - exact.nats
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (texts @ won) / (texts @ cost)
    return _interval(won.sum() / cost.sum(), draws[np.isfinite(draws)])


def _interval(value: float, draws: Array) -> Interval:
    rest = (100 - COVERED) / 2
    low, high = np.percentile(draws, [rest, 100 - rest])
    return Interval(float(value), float(low), float(high))
