"""Scores of tokens, against the formulas written out token by token."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.runtime.quality import log_softmax
from kdexport.runtime.token_scores import (
    TeacherScores,
    TextScores,
    calibration_error,
    score_text,
    standard_error,
    sum_up,
    whole_teacher,
)

Shape = st.tuples(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),  # tokens of each text
    st.integers(5, 40),  # vocabulary
    st.integers(0, 2**32 - 1),
    st.floats(0.1, 6),
)


def drawn(lengths: list[int], size: int, seed: int, scale: float) -> list[tuple[np.ndarray, ...]]:
    """(teacher's log-probabilities, model's, targets) of each text."""
    rng = np.random.default_rng(seed)
    return [
        (
            log_softmax(rng.normal(size=(n, size)) * scale),
            log_softmax(rng.normal(size=(n, size)) * scale),
            rng.integers(size, size=n),
        )
        for n in lengths
    ]


@given(Shape)
def test_every_figure_is_numpys(shape: tuple[list[int], int, int, float]) -> None:
    texts = drawn(*shape)
    found = sum_up([score_text(q, t, whole_teacher(p, q, t)) for p, q, t in texts])
    kl, same, among, nll, base, tokens = [], [], [], [], [], []
    for p, q, targets in texts:
        tokens.append(len(targets))
        for log_p, log_q, target in zip(p, q, targets, strict=True):
            terms = [math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True)]
            kl.append(math.fsum(terms))
            best = max(range(len(log_q)), key=lambda i, row=log_q: row[i])
            ranked = sorted(range(len(log_p)), key=lambda i, row=log_p: -row[i])
            same.append(best == ranked[0])
            among.append(best in ranked[:5])
            nll.append(-log_q[target])
            base.append(-log_p[target])
    n = len(kl)
    assert found.n_tokens == n
    near = pytest.approx
    assert found.kl_mean == near(sum(kl) / n)
    assert [found.kl_p50, found.kl_p90, found.kl_p99] == near(list(np.percentile(kl, [50, 90, 99])))
    assert found.kl_max == near(max(kl))
    assert found.top1 == near(sum(same) / n)
    assert found.top5 == near(sum(among) / n)
    assert found.perplexity == near(math.exp(sum(nll) / n))
    assert found.ppl_ratio == near(math.exp((sum(nll) - sum(base)) / n))
    if n > 1:
        # llama-perplexity's: each mean's own error, and the covariance of the two.
        covariance = np.cov(nll, base) / n
        assert found.perplexity_se == near(found.perplexity * math.sqrt(covariance[0, 0]))
        paired = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        assert found.ppl_ratio_se == near(found.ppl_ratio * math.sqrt(max(paired, 0)), rel=1e-6)
    sums = found.texts
    assert sums["tokens"] == tokens
    assert sum(sums["kl"] or []) == near(sum(kl))
    assert sum(sums["nll"] or []) == near(sum(nll))
    assert sum(sums["teacher_nll"] or []) == near(sum(base))
    assert sums["top1"] == near([sum(part) for part in cut(same, tokens)])


def cut(values: list[bool], lengths: list[int]) -> list[list[bool]]:
    """The values of each text."""
    ends = np.cumsum(lengths)
    return [values[end - n : end] for end, n in zip(ends, lengths, strict=True)]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_the_calibration_error_is_that_of_guo(
    tokens: list[tuple[float, bool]], n_bins: int
) -> None:
    total = 0.0
    for number in range(1, n_bins + 1):
        low, high = (number - 1) / n_bins, number / n_bins
        inside = [(c, right) for c, right in tokens if low < c <= high or (c == 0 and number == 1)]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            share = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(tokens) * abs(share - confidence)
    confidences, rights = (np.asarray(column) for column in zip(*tokens, strict=True))
    assert calibration_error(confidences, rights, n_bins) == pytest.approx(total)


def test_a_model_that_is_as_sure_as_it_is_right_is_calibrated() -> None:
    confidence = np.full(1000, 0.7)
    assert calibration_error(confidence, np.arange(1000) < 700) == pytest.approx(0)
    assert calibration_error(confidence, np.arange(1000) < 200) == pytest.approx(0.5)
    assert calibration_error(np.ones(10), np.zeros(10, dtype=bool)) == 1


def test_a_model_is_its_own_best_teacher() -> None:
    ((_, own, targets),) = drawn([50], 30, 3, 2.0)
    found = sum_up([score_text(own, targets, whole_teacher(own, own, targets))])
    assert (found.kl_max, found.top1, found.top5) == (0, 1, 1)
    assert (found.ppl_ratio, found.ppl_ratio_se) == (1, 0)


def test_without_a_teacher_there_is_perplexity_and_calibration_alone() -> None:
    ((_, own, targets),) = drawn([50], 30, 3, 2.0)
    found = sum_up([score_text(own, targets)])
    assert found.perplexity > 1
    assert found.ece > 0
    assert (found.kl_mean, found.top1, found.top5, found.ppl_ratio) == (None,) * 4
    assert set(found.texts) == {"tokens", "nll"}


def test_what_a_teacher_did_not_say_is_missing() -> None:
    ((p, q, targets),) = drawn([8], 30, 3, 2.0)
    whole = whole_teacher(p, q, targets)
    of_four = TeacherScores(whole.kl, whole.top[:, :4], None)
    found = sum_up([score_text(q, targets, of_four)])
    assert found.kl_mean is not None
    assert (found.top5, found.ppl_ratio, found.ppl_ratio_se) == (None, None, None)
    assert "teacher_nll" not in found.texts


def test_one_token_has_no_standard_error() -> None:
    assert standard_error(np.ones(1)) is None
    assert standard_error(np.asarray([1.0, 3.0])) == pytest.approx(1)
    one = TextScores(np.ones(1), np.ones(1), np.zeros(1, dtype=int), np.ones(1, dtype=bool))
    assert sum_up([one]).perplexity_se is None
