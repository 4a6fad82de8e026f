"""Rates are of briefs, the same for both models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.briefs import Brief
from kdexport.verdict.pass_rates import LEAST_PASSED, Passed, groups, total


def briefs(*channels: str) -> list[Brief]:
    return [Brief(id=str(n), product="Tea", channel=one) for n, one in enumerate(channels)]


def passed(*best: float) -> list[Passed]:
    return [Passed(one, one / 2, {"length": 2, "facts": 1}) for one in best]


def test_rates_by_hand() -> None:
    ours, theirs = passed(1, 0, 1, 1), passed(1, 1, 1, 0)
    everything, push, sms = groups(briefs("sms", "push_note", "sms", "sms"), ours, theirs)
    assert (everything.title, everything.n_briefs) == ("all", 4)
    assert (everything.rate.best, everything.rate.candidates) == (0.75, 0.375)
    assert everything.difference and everything.difference.value == 0
    assert everything.ratio is None  # of four briefs some draws have none that passes
    assert (push.title, push.rate.best) == ("channel push_note", 0)
    assert push.difference and push.difference.value == -1
    assert sms.teacher and sms.teacher.best == pytest.approx(2 / 3)
    assert total(ours) == {"length": 8, "facts": 4}
    (alone,) = groups(briefs("sms"), passed(1))
    assert alone.teacher is None and alone.difference is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_intervals_hold_their_value(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = (passed(*side) for side in zip(*pairs, strict=True))
    group = groups(briefs(*["sms"] * len(pairs)), ours, theirs)[0]
    assert group.difference and group.teacher
    assert group.difference.value == pytest.approx(group.rate.best - group.teacher.best)
    assert group.difference.low <= group.difference.value <= group.difference.high
    assert (group.ratio is not None) == (sum(one.best for one in theirs) >= LEAST_PASSED)
    if group.ratio:
        assert group.ratio.value == pytest.approx(group.rate.best / group.teacher.best)
