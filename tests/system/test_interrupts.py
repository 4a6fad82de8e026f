import os
import signal
import subprocess
import sys
import threading

import click
import pytest

from kdexport.system.interrupts import Interrupted, how_it_ended, noted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_work_says_where_it_ended(number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught, noted() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        raise Interrupted("at step 3")
    assert how_it_ended(caught.value, []) == (
        "interrupted at step 3, all saved; run the same command again to go on",
        128 + number,
    )
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_is_not_lost_where_the_work_ends_first() -> None:
    with pytest.raises(Interrupted) as caught, noted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert how_it_ended(caught.value, [])[1] == 143


def test_an_error_of_the_work_is_told_before_the_signal() -> None:
    with pytest.raises(ValueError, match="mine"), noted():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("mine")


@pytest.mark.parametrize("numbers", [(2, 2), (15, 2), (2, 15)])
def test_the_second_ends_the_process_at_once(numbers: tuple[int, int]) -> None:
    pid = os.fork()
    if pid == 0:
        with noted():
            for number in numbers:
                os.kill(os.getpid(), number)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -numbers[1]


def test_other_threads_work_without_signals() -> None:
    found: list[bool] = []

    def work() -> None:
        with noted() as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_what_an_interrupt_became_is_looked_through() -> None:
    try:
        try:
            raise Interrupted
        except KeyboardInterrupt as error:
            raise click.Abort from error
    except click.Abort as error:
        assert how_it_ended(error, []) == (
            "interrupted, all saved; run the same command again to go on",
            130,
        )
    plain = "interrupted; run the same command again to go on"
    assert how_it_ended(ImportError("half-way"), [signal.SIGTERM]) == (plain, 143)
    assert how_it_ended(click.Abort(), []) == (plain, 130)


DROPPED = """
import os, signal, time, weakref
from kdexport.system.interrupts import noted, raised
received = raised()
class Thing: pass
thing = Thing()
there = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
del thing
print(received, flush=True)
WORK
"""


@pytest.mark.parametrize("work", ["time.sleep(60)", "with noted(): print('begun')"])
def test_a_signal_in_a_weak_reference_s_callback_is_not_dropped(work: str) -> None:
    """Python has to drop the exception there; it comes again, or the work does not begin."""
    found = subprocess.run(
        [sys.executable, "-c", DROPPED.replace("WORK", work)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert found.stdout == "[15]\n"
    assert found.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert "ignored" not in found.stderr
