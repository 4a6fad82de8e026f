"""Who else computed during a turn."""

from collections.abc import Iterator
from typing import Any

import pytest

from bench.peers import process
from bench.peers.process import Bystanders


def test_shares_are_of_the_time_that_turns_took(monkeypatch: pytest.MonkeyPatch) -> None:
    # Uptime, then CPU seconds of the machine, of the arm and of the other arms.
    clocks: Iterator[tuple[float, ...]] = iter(
        [(0, 0, 0, 0), (1, 2.0, 1.5, 0.25), (10, 9, 9, 9), (13, 15, 15, 9)]
    )
    monkeypatch.setattr(process, "_clocks", lambda arm, arms: next(clocks))
    watch, arm = Bystanders(), Any
    for _ in range(2):
        with watch.watched(arm, []):  # type: ignore[arg-type]
            pass
    # In the first second a quarter of a core each; in the three that follow, nothing.
    assert (watch.idle_arms, watch.strangers) == (pytest.approx(0.0625), pytest.approx(0.0625))
    assert (watch.worst_idle_arms, watch.worst_strangers) == (0.25, 0.25)
    assert watch.seconds == 4
