"""SIGINT and SIGTERM: what the process was asked, and work that ends at a place of its own.

By default both become a KeyboardInterrupt where they come. Within `noted` they are written down,
and the work asks when it can stop with all saved. The second one ends the process at once.

Python drops a KeyboardInterrupt that comes in a finalizer or in a weak reference's callback, of
which torch has many. It is raised again then, and `noted` work does not begin after one.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"
LATER_SECONDS = 0.05  # when a finalizer has ended that dropped a signal


class Interrupted(KeyboardInterrupt):
    """Work was asked to stop, and has saved where it is. ``number``: of the signal, if one came."""

    def __init__(self, where: str = "") -> None:
        self.where = where
        self.number: int | None = None
        super().__init__(where)


_received: list[int] = []  # that became a KeyboardInterrupt


def raised() -> list[int]:
    """From here on signals become a KeyboardInterrupt; the list will have their numbers."""
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    sys.unraisablehook = _raise_again
    return _received


def _interrupt(number: int, _frame: Any) -> None:
    _received.append(number)
    end_at_the_next()
    raise KeyboardInterrupt


def _raise_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Whatever Python had to drop is told as ever, but for an interrupt: it comes once more."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt) or not _received:
        sys.__unraisablehook__(dropped)
        return
    number = _received[-1]
    signal.signal(number, _interrupt)
    main = threading.main_thread().ident
    threading.Timer(LATER_SECONDS, signal.pthread_kill, (main, number)).start()


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Note signals within the block, which is given a function that tells whether one came.

    A block that comes to its end nevertheless ends in Interrupted. Signals are the main thread's:
    in any other, none comes. Raises KeyboardInterrupt where one came before and was dropped.
    """
    if _received:
        raise KeyboardInterrupt
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        end_at_the_next()

    with _handled(note):
        try:
            yield lambda: bool(received)
            if received:
                raise Interrupted
        except Interrupted as stopped:
            stopped.number = received[0] if received else None
            raise


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, its in before.items():
            signal.signal(number, its)


def end_at_the_next() -> None:
    """Leave the next signal to the system, which ends the process whatever it is at."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), SHOW_CURSOR)  # progress has hidden it
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def how_it_ended(error: BaseException, numbers: list[int]) -> tuple[str, int]:
    """The line and the exit code of an interrupted command.

    ``numbers``: of the signals that became a KeyboardInterrupt. Whatever came of that (a library's
    import that fails half-way, click's Abort), Interrupted is what it came from.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Interrupted):
            at = f" {cause.where}" if cause.where else ""
            return (
                f"interrupted{at}, all saved; run the same command again to go on",
                128 + (cause.number or signal.SIGINT),
            )
        cause = cause.__cause__ or cause.__context__
    number = numbers[0] if numbers else signal.SIGINT
    return "interrupted; run the same command again to go on", 128 + number
