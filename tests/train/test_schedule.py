from hypothesis import given
from hypothesis import strategies as st

from kdexport.train.schedule import Budget, learning_rate


def test_whichever_ends_first_counts() -> None:
    budget = Budget(max_steps=100, max_minutes=10)
    assert budget.progress(50, 60) == 0.5
    assert budget.progress(5, 300) == 0.5
    assert budget.progress(200, 0) == 1.0
    assert Budget(max_steps=100).progress(50, 1e9) == 0.5


@given(st.floats(0, 1), st.floats(0, 0.5))
def test_the_rate_stays_between_zero_and_its_peak(progress: float, warmup: float) -> None:
    assert 0 < learning_rate(progress, 1.0, warmup) <= 1.0


def test_the_rate_rises_and_falls() -> None:
    rates = [learning_rate(n / 100, 1.0, 0.1) for n in range(101)]
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert abs(rates[100] - 0.02) < 1e-12
