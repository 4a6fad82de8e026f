"""What long work shows: bars with rate and time left on a terminal, plain lines in a log.

All of it goes to stderr; stdout belongs to results.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

LOG_SECONDS = 10.0
_muted = False


@dataclass
class Tracker:
    """One piece of work under way; call it with what is done and of how much."""

    title: str
    unit: str
    total: float | None = None
    _bar: Any = None
    _task: Any = None
    _started: float = field(default_factory=time.monotonic)
    _printed: float = 0.0
    _first: float | None = None

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None:
        """Show that ``done`` of ``total`` units are done."""
        if _muted:
            return
        if total is not None:
            self.total = total
        if self._first is None:
            self._first = done if done < (self.total or done) else 0.0
        if self._bar is not None:
            rate = self._rate(done, time.monotonic())
            self._bar.update(self._task, completed=done, total=self.total, note=note, rate=rate)
            return
        now = time.monotonic()
        if now - self._printed >= LOG_SECONDS or done == self.total:
            self._printed = now
            print(f"{self.title}: {self._line(done, now)}{note and '  ' + note}", file=sys.stderr)

    def _line(self, done: float, now: float) -> str:
        text = (
            f"{done:.0f}/{self.total:.0f} {self.unit}" if self.total else f"{done:.0f} {self.unit}"
        )
        if rate := self._rate(done, now):
            text += f"  {rate}"
            if self.total and done < self.total:
                text += f"  {_clock((self.total - done) / self._per_second(done, now))} left"
        return text

    def _per_second(self, done: float, now: float) -> float:
        return (done - (self._first or 0.0)) / max(now - self._started, 1e-6)

    def _rate(self, done: float, now: float) -> str:
        rate = self._per_second(done, now)
        return f"{rate:.1f} {self.unit}/s" if rate > 0 else ""


@contextmanager
def tracked(title: str, unit: str, total: float | None = None) -> Iterator[Tracker]:
    """Show the progress of a piece of work while the block runs."""
    if _muted or not sys.stderr.isatty():
        yield Tracker(title, unit, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]}", style="green", markup=False),
        TextColumn("{task.fields[note]}", style="cyan", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(title, total=total or 1, unit=unit, note="", rate="")
        yield Tracker(title, unit, total, _bar=bar, _task=task)


def say(text: str) -> None:
    """One plain line to the person who watches; bars and panels stay below it."""
    if not _muted:
        print(text, file=sys.stderr, flush=True)  # rich has put its own stream in place of stderr


@contextmanager
def muted() -> Iterator[None]:
    """Show nothing: another process of the same work does."""
    global _muted
    before, _muted = _muted, True
    try:
        yield
    finally:
        _muted = before


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and advice: the command line shows ours."""
    import io

    from transformers.utils import logging

    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # some bars are tqdm's, past its settings
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
