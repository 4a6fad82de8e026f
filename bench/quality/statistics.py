"""Ratios of mean KLs over texts and seeds, with paired bootstrap intervals. Knows no models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdexport.verdict.bootstrap import Interval, drawn_counts, interval_of, ratio_of_sums

Array = np.ndarray[Any, Any]
N_DRAWS = 10_000


@dataclass(frozen=True)
class KlSums:
    """KL(teacher ‖ one student) of T texts: ``nats`` float64 [T], and their ``tokens``, int [T]."""

    nats: Array
    tokens: Array

    @property
    def mean(self) -> float:
        """Nats per token, over all tokens at once."""
        return float(self.nats.sum() / self.tokens.sum())


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
    texts = np.concatenate([*drawn_counts(len(tokens[0]), n_draws)])
    chosen = np.concatenate([*drawn_counts(len(seeds), n_draws, seed=1)])
    above, below = ((texts @ side.T * chosen).sum(1) for side in sides)  # both have the tokens
    return interval_of(sides[0].sum() / sides[1].sum(), above / below)


def share_won_back(
    exact: KlSums, control: KlSums, aware: KlSums, n_draws: int = N_DRAWS
) -> Interval:
    """(control - aware) / (control - exact) in mean KL, texts drawn anew.

    ``exact``: the control in float32; ``control``, ``aware``: quantized bundles.
    """
    won, cost = control.nats - aware.nats, control.nats - exact.nats
    return ratio_of_sums(won.tolist(), cost.tolist(), n_draws)
