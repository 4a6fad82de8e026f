import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.verdict.conditions import (
    Condition,
    check_arms,
    failures,
    parse_need,
    parse_threshold,
    report_failures,
)
from kdexport.verdict.measures import MEASURES, SHARE
from tests.verdict.fixture import example_report

ARMS = st.none() | st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
LIMITS = st.floats(-1e9, 1e9).map(lambda value: float(f"{value:.12g}"))
SHARES = st.floats(0, 1).map(lambda value: float(f"{value:.12g}"))
SPACES = st.sampled_from(["", " ", "\t "])


@st.composite
def thresholds(draw: st.DrawFn) -> Condition:
    name = draw(st.sampled_from(sorted(MEASURES)))
    measure = MEASURES[name]
    limit = draw(SHARES if measure.unit == SHARE else LIMITS)
    sign = (">" if measure.better == "less" else "<") + draw(st.sampled_from(["", "="]))
    return Condition(draw(ARMS), name, sign, limit)


@given(thresholds())
def test_a_threshold_is_read_as_it_is_written(threshold: Condition) -> None:
    assert parse_threshold(str(threshold)) == threshold


@given(thresholds(), SPACES, SPACES)
def test_spaces_change_nothing(threshold: Condition, before: str, after: str) -> None:
    spaced = str(threshold)
    end = len(spaced) - len(f"{threshold.sign}{threshold.limit:.12g}")
    spaced = f"{before}{spaced[:end]}{before}{threshold.sign}{after}{threshold.limit:.12g}{after}"
    assert parse_threshold(spaced) == threshold


@given(st.text())
def test_no_text_is_another_exception(text: str) -> None:
    try:
        parse_threshold(text)
    except ValueError as error:
        assert "\n" not in str(error)


@given(thresholds(), st.floats(-1e9, 1e9))
def test_it_holds_as_its_sign_says(threshold: Condition, value: float) -> None:
    signs = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
    assert threshold.holds(value) == signs[threshold.sign](value, threshold.limit)


@given(thresholds())
def test_a_need_is_what_a_threshold_refuses(threshold: Condition) -> None:
    with pytest.raises(ValueError, match="asks for what is bad"):
        parse_need(str(threshold))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kl_p98>1", "unknown measure 'kl_p98'; did you mean 'kl_p99'"),
        ("zzz>1", "known are size_mb, "),
        ("kl_p99=1", "is not .* as in kl_p99>1.0"),
        ("kl_p99>", "is not"),
        ("kl_p99>one", "is not"),
        ("kl_p99>nan", "is not"),
        ("kl_p99>1e999", "is not"),
        ("kl_p99>1e99999999999999999999", "is not"),
        ("kl_p99>1_0", "is not"),
        ("0.5>kl_p99>1", "is not"),
        ("", "is not"),
        ("speedup>8", "fails what is good: more is better; write speedup<8"),
        ("kl_mean<=0.5", "less is better; write kl_mean>=0.5"),
        ("top1<90", "between 0 and 1; write 0.9 or 90%"),
        ("kl_p99>90%", "no share"),
    ],
)
def test_what_is_no_threshold_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_threshold(text)


def test_a_share_may_be_in_percent() -> None:
    assert parse_threshold("top1<90%") == parse_threshold("top1<0.9")


def test_without_an_arm_it_is_of_the_arm_that_the_report_is_about() -> None:
    report = example_report()
    for text in ("kl_p99>2.6", "student-int8:kl_p99>2.6"):
        [line] = report_failures(report, [parse_threshold(text)])
        assert line == f"student-int8: kl_p99 is 2.666 nats (fails if {text})"
    assert report_failures(report, [parse_threshold("kl_p99>2.7")]) == []
    assert report_failures(report, [parse_threshold("teacher-int8:kl_p99>1")]) == []
    both = report_failures(report, [parse_threshold("*-int8:size_mb>10")])
    assert [line.partition(":")[0] for line in both] == ["teacher-int8", "student-int8"]


def test_the_border_itself() -> None:
    def failed(text: str) -> bool:
        return bool(report_failures(example_report(), [parse_threshold(text)]))

    assert [failed("size_mb>47.2"), failed("size_mb>=47.2")] == [False, True]
    assert [failed("top1<70.4%"), failed("top1<=70.4%")] == [False, True]


def test_what_was_not_measured_fails() -> None:
    report = example_report()
    bare = report.arms[-1].model_copy(update={"kl_p99": None})
    alone = report.model_copy(update={"arms": [bare]})
    thresholds = [parse_threshold(text) for text in ("kl_p99>9", "speedup<2", "other:load_s>9")]
    assert report_failures(alone, thresholds) == [
        "student-int8: kl_p99 was not measured (fails if kl_p99>9)",
        "student-int8: speedup was not measured (fails if speedup<2)",
        "other: load_s was not measured (fails if other:load_s>9)",
    ]
    nothing = report.model_copy(update={"arms": []})
    assert report_failures(nothing, thresholds[:1]) == [
        "no arm: kl_p99 was not measured (fails if kl_p99>9)"
    ]


def test_arms_that_there_will_not_be_are_refused() -> None:
    check_arms([parse_threshold("student-*:kl_mean>1"), parse_threshold("kl_mean>1")])
    with pytest.raises(ValueError, match="did you mean 'student-int8'"):
        check_arms([parse_threshold("student-int4:kl_mean>1")])
    with pytest.raises(ValueError, match="there are x, y"):
        check_arms([parse_threshold("z?:kl_mean>1")], ["x", "y"])


def test_an_arm_s_name_may_hold_anything() -> None:
    threshold = parse_threshold("a>b:c (1):kl_mean>1")
    assert threshold == Condition("a>b:c (1)", "kl_mean", ">", 1.0)
    assert failures([threshold], ["a>b:c (1)"], None, lambda arm, name: 2.0) != []
    odd = parse_threshold("[x]*:kl_mean>1")
    assert odd.arms(["[x]*", "x1"], None) == ["[x]*"]
