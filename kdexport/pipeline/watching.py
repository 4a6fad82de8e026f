"""What is seen of training while it runs: a panel or lines, the log, samples, TensorBoard.

Knows what the loop tells, and nothing of recipes.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdexport.pipeline.board import Board
from kdexport.system.console import LOG_SECONDS, say
from kdexport.system.machine import rss_mb
from kdexport.system.metrics import Log
from kdexport.train.evaluate import Evaluation
from kdexport.train.memory import gpu_mb
from kdexport.train.trainer import Event, Position

RECENT_STEPS = 50  # over which loss and speed are averaged
SHOWN_CHARACTERS = 100  # of a sample, in the log


@dataclass(frozen=True)
class Written:
    """What the model wrote for a held-out prompt, and the text that is there."""

    example_id: str
    prompt: str
    copy: str
    text: str


@dataclass(frozen=True)
class Seen:
    """Where a training is. ``loss`` and ``tokens_per_s`` over the last steps, ``kl`` on validation.

    ``left_s`` and ``kl`` are None until they are known; ``memory_mb`` of the process, 10^6 bytes;
    ``gpu_mb``: the most of its GPU, where it has one.
    """

    step: int
    progress: float
    loss: float
    lr: float
    tokens_per_s: float
    left_s: float | None
    memory_mb: float
    skipped: int
    kl: float | None = None
    best_kl: float | None = None
    gpu_mb: float | None = None

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and values in the order of their importance."""
        found = [("loss", f"{self.loss:.3f}")]
        if self.kl is not None and self.best_kl is not None:
            found.append(("KL", f"{self.kl:.3f} (best {self.best_kl:.3f})"))
        found += [
            ("lr", f"{self.lr:.2e}"),
            ("tokens/s", f"{self.tokens_per_s:,.0f}"),
            ("left", "?" if self.left_s is None else _clock(self.left_s)),
            ("memory", f"{self.memory_mb:,.0f} MB"),
        ]
        if self.gpu_mb is not None:
            found.append(("GPU memory", f"{self.gpu_mb:,.0f} MB"))
        return found + [("skipped", str(self.skipped))] * bool(self.skipped)


class Watcher:
    """Takes what the loop tells, and shows and logs it.

    ``write``: samples of the model as it is, at each evaluation.
    """

    def __init__(
        self,
        show: Callable[[Seen], None],
        log: Path,
        *,
        board: Board | None = None,
        write: Callable[[], Iterable[Written]] | None = None,
    ) -> None:
        self._show = show
        self._log = Log(log)
        self._board = board
        self._write = write
        self._samples = Log(samples_beside(log)) if write else None
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=RECENT_STEPS)
        self._kl: float | None = None
        self._best: float | None = None

    def begins(self, at: Position) -> None:
        """Forget what was logged of steps that are going to be made again."""
        self._log.go_on(
            lambda row: row["step"] <= (at.evaluated if "evaluation" in row else at.step)
        )
        if self._samples:
            self._samples.go_on(lambda row: row["step"] <= at.evaluated)
        if self._board:
            self._board.begins(at.step)
        self._recent.append((at.elapsed_s, at.tokens, math.nan))

    def step(self, event: Event) -> None:
        """Show and log a step."""
        self._recent.append((event.elapsed_s, event.tokens, event.loss))
        seen = self._seen(event)
        row = {**asdict(event), "tokens_per_s": seen.tokens_per_s, "memory_mb": seen.memory_mb}
        if seen.gpu_mb is not None:
            row["gpu_mb"] = seen.gpu_mb
        row = {name: _finite(value) for name, value in row.items()}
        self._log.add(row)
        if self._board:
            self._board.add(event.step, row)
        self._show(seen)

    def evaluated(self, at: Position, found: Evaluation) -> None:
        """Show and log an evaluation, and samples if they are wanted."""
        row = {name: _finite(value) for name, value in asdict(found).items()}
        self._log.add({"step": at.step, "evaluation": row})
        if self._board:
            self._board.add(at.step, {f"validation/{name}": value for name, value in row.items()})
        self._kl = found.kl
        self._best = at.best_score if found.kl is not None else None
        told = f"perplexity {found.perplexity:.2f}"
        if found.kl is not None and found.top1 is not None:
            told = f"KL {found.kl:.3f}, top-1 {100 * found.top1:.1f} %, {told}"
        say(f"    step {at.step}: {told}")
        for sample in self._write() if self._write else ():
            self._sampled(at.step, sample)

    def _sampled(self, step: int, sample: Written) -> None:
        assert self._samples is not None
        row = asdict(sample)
        self._samples.add({"step": step, "id": row.pop("example_id"), **row})
        copy = " ".join(sample.copy.split())
        cut = copy if len(copy) <= SHOWN_CHARACTERS else f"{copy[: SHOWN_CHARACTERS - 1]}…"
        say(f"        {sample.example_id}: {cut}")
        if self._board:
            self._board.text(step, f"sample/{sample.example_id}", sample.copy)

    def close(self) -> None:
        """Close what is written to."""
        for log in (self._log, self._samples, self._board):
            if log:
                log.close()

    def _seen(self, event: Event) -> Seen:
        first_s, first_tokens, _ = self._recent[0]
        losses = [loss for _, _, loss in self._recent if math.isfinite(loss)]
        left = event.elapsed_s * (1 - event.progress) / event.progress if event.progress else None
        return Seen(
            step=event.step,
            progress=event.progress,
            loss=sum(losses) / len(losses) if losses else math.nan,
            lr=event.lr,
            tokens_per_s=(event.tokens - first_tokens) / max(event.elapsed_s - first_s, 1e-6),
            left_s=left,
            memory_mb=rss_mb(),
            skipped=event.skipped,
            kl=self._kl,
            best_kl=self._best,
            gpu_mb=gpu_mb(),
        )


def samples_beside(log: Path) -> Path:
    """Where the samples of a training go: samples.jsonl beside its metrics.jsonl."""
    return log.with_name(log.name.replace("metrics", "samples"))


@contextmanager
def shown(title: str) -> Iterator[Callable[[Seen], None]]:
    """A live panel on a terminal, a line now and then elsewhere, while the block runs."""
    if not sys.stderr.isatty():
        printed = [0.0]

        def show_line(seen: Seen) -> None:
            now = time.monotonic()
            if now - printed[0] >= LOG_SECONDS or seen.progress >= 1:
                printed[0] = now
                say(line_of(title, seen))

        yield show_line
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=4) as live:
        yield lambda seen: live.update(panel_of(title, seen))


def line_of(title: str, seen: Seen) -> str:
    """Where a training is, in a line."""
    facts = ", ".join(f"{name} {value}" for name, value in seen.facts)
    return f"{title}: {100 * seen.progress:.0f} %, step {seen.step}, {facts}"


def panel_of(title: str, seen: Seen) -> Any:
    """Where a training is, as rich's panel."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    facts = [Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in seen.facts]
    bar = Table.grid(expand=True)
    bar.add_row(ProgressBar(total=1.0, completed=seen.progress))
    head = Text(f"{title.strip()}: {100 * seen.progress:.0f} %, step {seen.step:,}")
    return Panel(Group(bar, Columns(facts, padding=(0, 3))), title=head, title_align="left")


def _finite(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
