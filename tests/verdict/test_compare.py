import io

import numpy as np
import pytest
from rich.console import Console

from kdexport.verdict.bootstrap import ratio_of_sums
from kdexport.verdict.compare import (
    Change,
    compare_reports,
    comparison_lines,
    render_comparison,
)
from kdexport.verdict.report import BenchReport
from kdexport.verdict.scores import TextSums
from kdexport.verdict.timing import Case
from tests.verdict.fixture import example_report, measured_again, with_case

TIMES = {"ttft_p50_ms", "tpot_p50_ms", "decode_tok_s"}


def change(old: BenchReport, new: BenchReport, arm: str, measure: str) -> Change:
    [found] = [c for c in compare_reports(old, new).changes if (c.arm, c.measure) == (arm, measure)]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_slower_runtime_is_caught(seed: int) -> None:
    base = example_report()
    old = measured_again(base, seed)
    new = measured_again(base, seed + 100, slower=1.2, arms=("student-int8",))
    comparison = compare_reports(old, new)
    worse = {c.measure for c in comparison.changes if c.verdict == "worse"}
    assert worse >= TIMES
    assert {c.arm for c in comparison.changes if c.verdict == "worse"} == {"student-int8"}
    assert comparison.regressions("student-int8") >= 3
    for name, ratio in (("ttft_p50_ms", 1.2), ("tpot_p50_ms", 1.2), ("decode_tok_s", 1 / 1.2)):
        one = change(old, new, "student-int8", name)
        assert one.low is not None
        assert one.high is not None
        assert one.low < ratio < one.high
        assert one.ratio == pytest.approx(ratio, rel=0.1)
    faster = compare_reports(new, old)
    assert {c.verdict for c in faster.changes if c.arm == "student-int8"} >= {"better"}
    assert faster.regressions("student-int8") == 0


def test_what_is_slower_in_a_further_case_alone_is_caught() -> None:
    base = example_report()
    deep, wide, new_case = (Case(n_threads=n, prompt_tokens=512, new_tokens=64) for n in (1, 2, 3))
    old = with_case(with_case(measured_again(base, 1), wide), deep)
    slow = with_case(measured_again(base, 2, slower=1.3, arms=("student-int8",)), deep)
    own = measured_again(base, 2)
    arms = [
        arm.model_copy(update={"others": found.others})
        for arm, found in zip(own.arms, slow.arms, strict=True)
    ]
    new = own.model_copy(update={"arms": arms, "settings": slow.settings})
    comparison = compare_reports(old, new)
    assert comparison.differences == []
    assert {change.case for change in comparison.changes} == {"", deep.label}
    worse = {(c.arm, c.case, c.measure) for c in comparison.changes if c.verdict == "worse"}
    assert worse >= {("student-int8", deep.label, measure) for measure in TIMES}
    assert {one[:2] for one in worse} == {("student-int8", deep.label)}
    assert not [c for c in comparison.changes if c.case and c.measure in ("kl_mean", "size_mb")]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_comparison(comparison))
    assert f"student-int8, {deep.label}" in console.export_text()
    assert not any(c.case for c in compare_reports(old, with_case(own, new_case)).changes)


def test_noise_alone_is_not_caught() -> None:
    """12 comparisons of five arms, 400 of timed measures: at most one sees what is not there."""
    base = example_report()
    found = 0
    for seed in range(12):
        comparison = compare_reports(measured_again(base, seed), measured_again(base, seed + 100))
        found += any(c.verdict in ("worse", "better") for c in comparison.changes)
    assert found <= 1


def test_a_machine_that_is_slower_as_a_whole_leaves_the_speed_up_as_it_is() -> None:
    base = example_report()
    old, new = measured_again(base, 1), measured_again(base, 2, slower=1.3)
    assert change(old, new, "student-int8", "decode_tok_s").verdict == "worse"
    assert change(old, new, "student-int8", "speedup").verdict == "noise"


def test_a_report_and_itself() -> None:
    comparison = compare_reports(example_report(), example_report())
    assert {c.verdict for c in comparison.changes} == {"noise"}
    assert comparison.differences == comparison.alone == []
    assert comparison.regressions("student-int8") == 0


def test_the_interval_covers_what_is_true_about_as_often_as_it_says() -> None:
    """Five runs of 4 % each, 400 times; at 99 % and 400 draws, 97.5 is three deviations below."""
    from kdexport.verdict.compare import _interval
    from kdexport.verdict.measures import MEASURES

    base = example_report()
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        arms = [
            base.arms[-1].model_copy(update={"decode_tok_s": list(100 * rng.normal(1, 0.04, 5))})
            for _ in range(2)
        ]
        found = _interval(MEASURES["decode_tok_s"], [(base, arm) for arm in arms], 1.0, 1.0)
        assert found is not None
        hits += found[0] <= 1 <= found[1]
    assert hits / 400 >= 0.975


def with_hero(**update: object) -> BenchReport:
    report = example_report()
    arms = [*report.arms[:-1], report.arms[-1].model_copy(update=update)]
    return report.model_copy(update={"arms": arms})


@pytest.mark.parametrize(
    ("measure", "update", "verdict"),
    [
        ("size_mb", {"size_mb": 60.0}, "worse"),
        ("size_mb", {"size_mb": 47.3}, "noise"),
        ("shrinkage", {"size_mb": 40.0}, "better"),
        ("load_s", {"load_s": 9.0}, "unknown"),
        ("peak_rss_mb", {"peak_rss_mb": 1.06 * 154}, "noise"),
        ("peak_rss_mb", {"peak_rss_mb": 1.1 * 154}, "worse"),
        ("peak_rss_mb", {"peak_rss_mb": 154 / 1.1}, "better"),
        ("top1", {"top1": 0.66, "texts": None}, "unknown"),  # without sums of texts
        ("decode_tok_s", {"decode_tok_s": [100.0]}, "unknown"),
        ("ttft_p99_ms", {"ttft_ms": [900.0, 901.0, 902.0, 903.0, 904.0]}, "unknown"),
    ],
)
def test_what_is_known_of_the_noise_decides(
    measure: str, update: dict[str, object], verdict: str
) -> None:
    assert change(example_report(), with_hero(**update), "student-int8", measure).verdict == verdict


def test_what_is_not_the_same_is_said() -> None:
    old = example_report()
    machine = old.machine.model_copy(
        update={"cpu": "another", "versions": {**old.machine.versions, "onnxruntime": "1.33.0"}}
    )
    new = old.model_copy(
        update={
            "machine": machine,
            "settings": old.settings.model_copy(update={"n_threads": 1}),
            "arms": old.arms[1:],
        }
    )
    lines = comparison_lines(compare_reports(old, new))
    for part in (
        "not the same: cpu: AMD EPYC 7763 64-Core Processor, now another",
        "not the same: onnxruntime: 1.32.0, now 1.33.0",
        "not the same: n_threads: 2, now 1",
        "not compared: teacher-torch-fp32 is in the old report alone",
    ):
        assert any(part in line for line in lines), part
    assert lines[-1].startswith("student-int8: 0 worse")


def scored(seed: int, *, more: float = 0.0, scatter: float = 0.0, n: int = 120) -> BenchReport:
    """A student with a KL of about 0.4; of each text ``more`` nats a token, give or take."""
    texts = np.random.default_rng(7)
    again = np.random.default_rng(seed)
    tokens = texts.integers(10, 40, n).astype(float)
    kl = tokens * texts.gamma(2, 0.2, n)
    changed = tokens * (more + scatter * again.normal(size=n))
    sums = TextSums(
        tokens=list(tokens),
        nll=list(2 * tokens + kl + changed),
        kl=list(kl + changed),
        top1=list(tokens * 0.7 - changed),
        teacher_nll=list(2 * tokens),
    )
    total = tokens.sum()
    nll = sum(x or 0 for x in sums.nll) / total
    return with_hero(
        texts=sums,
        kl_mean=(kl + changed).sum() / total,
        top1=(0.7 * tokens - changed).sum() / total,
        perplexity=np.exp(nll),
        ppl_ratio=np.exp(nll - 2),
    )


QUALITY = ("kl_mean", "top1", "perplexity", "ppl_ratio")


def test_a_loss_of_quality_is_seen_through_the_scatter_of_texts() -> None:
    """0.03 nats, where texts differ by 0.3: only pairs of the same text can tell."""
    old, new = scored(0), scored(1, more=0.03, scatter=0.05)
    for name in QUALITY:
        one = change(old, new, "student-int8", name)
        assert one.verdict == "worse", name
        assert one.low is not None
        assert one.high is not None
        assert one.ratio is not None
        assert one.low < one.ratio < one.high
    assert change(old, new, "student-int8", "ppl_ratio").ratio == pytest.approx(1.03, abs=0.02)


def test_other_rounding_is_no_loss_of_quality() -> None:
    for seed in range(1, 8):
        comparison = compare_reports(scored(0), scored(seed, scatter=0.03))
        found = [
            c.verdict
            for c in comparison.changes
            if c.measure in QUALITY and c.arm == "student-int8"
        ]
        assert found == ["noise"] * 4


def test_the_error_of_a_difference_is_that_of_drawing_texts_anew() -> None:
    old, new = scored(0), scored(1, more=0.03, scatter=0.1)
    one = change(old, new, "student-int8", "kl_mean")
    before, after = old.arms[-1].texts, new.arms[-1].texts
    assert before is not None and after is not None
    assert before.kl is not None and after.kl is not None
    more = [(b or 0) - (a or 0) for a, b in zip(before.kl, after.kl, strict=True)]
    drawn = ratio_of_sums(more, before.tokens)  # 95 %
    assert one.high is not None and one.low is not None
    width = (one.high - one.low) * one.old
    assert width == pytest.approx((drawn.high - drawn.low) * 2.617 / 1.96, rel=0.12)


def test_quality_of_other_texts_is_not_compared() -> None:
    old, new = scored(0), scored(0, n=100, more=0.3)
    comparison = compare_reports(old, new)
    assert change(old, new, "student-int8", "kl_mean").verdict == "unknown"
    assert comparison.differences == ["the texts that student-int8 is scored on"]
