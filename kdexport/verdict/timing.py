"""What was timed, and how long it took, run by run.

Units are in the names: `_ms` milliseconds, `_tok_s` tokens per second.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pydantic import Field, FiniteFloat

from kdexport.verdict.scores import Record


class Case(Record):
    """What an arm is asked to do at a time."""

    n_threads: int
    batch_size: int = 1
    prompt_tokens: int
    new_tokens: int

    @property
    def label(self) -> str:
        """In words."""
        threads = "thread" if self.n_threads == 1 else "threads"
        return f"{self.n_threads} {threads}, batch {self.batch_size}, prompt {self.prompt_tokens}"


class Timed(Record):
    """One case, run by run; of a batch, all of its texts together."""

    ttft_ms: list[FiniteFloat] = Field(description="prompt text to first token, one per run")
    itl_ms: list[FiniteFloat] = Field(description="gaps between tokens, all runs pooled")
    prefill_tok_s: FiniteFloat
    decode_tok_s: list[FiniteFloat] = Field(description="one per run")
    joules: list[FiniteFloat] = Field(default=[], description="of the CPU's packages, one per run")

    @property
    def ttft_p50_ms(self) -> float | None:
        """Median time to first token."""
        return percentile(self.ttft_ms, 50)

    @property
    def ttft_p99_ms(self) -> float | None:
        """99th percentile of the time to first token; near the slowest for few runs."""
        return percentile(self.ttft_ms, 99)

    @property
    def tpot_p50_ms(self) -> float | None:
        """Median gap between two tokens."""
        return percentile(self.itl_ms, 50)

    @property
    def tpot_p99_ms(self) -> float | None:
        """99th percentile of the gap between two tokens."""
        return percentile(self.itl_ms, 99)

    @property
    def decode_mean_tok_s(self) -> float | None:
        """Mean over runs of the decoding speed."""
        return statistics.fmean(self.decode_tok_s) if self.decode_tok_s else None

    @property
    def decode_sd_tok_s(self) -> float | None:
        """Sample standard deviation (n - 1) over runs; None for fewer than two."""
        return statistics.stdev(self.decode_tok_s) if len(self.decode_tok_s) > 1 else None


class Timing(Case, Timed):
    """A case beside the report's own, and what it took."""


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (0 to 100), linear between ranks as in numpy; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * q / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)
