"""One task for every way of training: models, texts as token ids, batches, and how it is told.

Standard library only: it runs inside every environment. A task is a folder with ``teacher`` and
``student`` (Hugging Face folders), and ``examples.jsonl`` of ``ids`` and ``first`` (the index of
the completion's first token).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LR = 1e-4
BATCH_SIZE = 8
N_EPOCHS = 2


@dataclass(frozen=True)
class Example:
    """Token ids, and where the completion begins."""

    ids: Sequence[int]
    first: int


def load_examples(task: Path, name: str = "examples.jsonl") -> list[Example]:
    """The training texts, in the order in which every way of training sees them; or others."""
    lines = (task / name).read_text("utf-8").splitlines()
    return [Example(row["ids"], row["first"]) for row in map(json.loads, lines)]


def peak_rss_mb() -> float:
    """The most memory that this process has held at once (VmHWM), 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line for line in lines if line.startswith("VmHWM")).split()[1]
    return int(kilobytes) * 1024 / 1e6


@dataclass
class Clock:
    """Seconds of each epoch, one after another."""

    seconds: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def epoch_ends(self) -> None:
        """An epoch has ended, and another begins."""
        now = time.monotonic()
        self.seconds.append(now - self.begun)
        self.begun = now


def tell(n_tokens: int, seconds: Sequence[float], **more: Any) -> None:
    """Print the result, one JSON object: trained tokens per second of each epoch, and memory."""
    rates = [n_tokens / value for value in seconds]
    print(json.dumps({"tokens_per_s": rates, "peak_rss_mb": peak_rss_mb(), **more}))
