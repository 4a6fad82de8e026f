import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kdexport.verdict.choose import _front, choose, render_choice
from kdexport.verdict.conditions import parse_need
from kdexport.verdict.report import BenchReport
from tests.verdict.fixture import example_report

ROWS = st.dictionaries(
    st.integers(0, 30).map(str),
    st.tuples(st.floats(1, 1000), st.floats(1, 1000), st.just(0.0) | st.floats(0.001, 5)),
    max_size=12,
)


def report_of(**arms: tuple[float, float, float | None]) -> BenchReport:
    """Arms with a size, a speed and a KL."""
    report = example_report()
    return report.model_copy(
        update={
            "arms": [
                report.arms[-1].model_copy(
                    update={"arm": arm, "size_mb": mb, "decode_tok_s": [speed], "kl_mean": kl}
                )
                for arm, (mb, speed, kl) in arms.items()
            ]
        }
    )


BUNDLES = report_of(
    fp32=(190, 100, 0.35),
    torch=(189, 45, 0.35),  # a little smaller, and much slower
    int8=(50, 300, 0.38),
    int8_again=(50.5, 299, 0.381),
    int4=(40, 250, 0.6),
    teacher=(540, 15, 0.0),
    bad=(60, 200, 0.9),
    unknown=(10, 400, None),
)


def test_the_front_is_what_no_other_beats() -> None:
    found = choose(BUNDLES, [])
    front = [one.arm for one in found.candidates if one.on_front]
    assert front == ["fp32", "int8", "int4", "teacher"]
    beaten = {one.arm: one.beaten_by for one in found.candidates if one.beaten_by}
    assert beaten == {"torch": "fp32", "bad": "int8", "int8_again": "int8"}
    assert found.pick is None


def test_a_difference_of_3_percent_is_none() -> None:
    near = choose(report_of(a=(50, 300, 0.36), b=(51, 299, 0.359)), [])
    assert sum(one.on_front for one in near.candidates) == 1
    apart = choose(report_of(a=(50, 300, 0.36), b=(53, 299, 0.33)), [])
    assert sum(one.on_front for one in apart.candidates) == 2


@given(ROWS)
def test_a_front_covers_all_and_holds_none_that_another_beats(
    rows: dict[str, tuple[float, float, float]],
) -> None:
    front, beaten = _front(dict(rows))
    assert set(front) | set(beaten) == set(rows)
    assert not set(front) & set(beaten)
    assert set(beaten.values()) <= set(front)
    for arm, by in beaten.items():
        (mb, speed, kl), (its_mb, its_speed, its_kl) = rows[arm], rows[by]
        assert its_mb <= mb * 1.031 and its_speed >= speed / 1.031 and its_kl <= kl * 1.031
    for one in front:
        for other in front:
            (mb, speed, kl), (its_mb, its_speed, its_kl) = rows[one], rows[other]
            if one != other:
                assert not (its_mb < mb and its_speed > speed and its_kl <= kl)


@pytest.mark.parametrize(
    ("needs", "best", "pick"),
    [
        (["decode_tok_s>=60"], None, "fp32"),
        (["decode_tok_s>=200"], "kl_mean", "int8"),
        (["decode_tok_s>=200", "size_mb<45"], None, "int4"),
        (["size_mb<45"], "decode_tok_s", "unknown"),
        ([], "size_mb", "unknown"),
        ([], "kl_mean", "teacher"),
        (["decode_tok_s>=60"], "size_mb", "unknown"),
    ],
)
def test_the_pick_meets_the_need_and_is_the_best_then(
    needs: list[str], best: str | None, pick: str
) -> None:
    found = choose(BUNDLES, [parse_need(need) for need in needs], best)
    assert found.pick == pick
    assert (best or "kl_mean") in found.why


def test_why_is_said() -> None:
    found = choose(BUNDLES, [parse_need("decode_tok_s>=60")])
    assert found.why == "of 6 that meet decode_tok_s>=60 it has the smallest kl_mean, 0.35 nats"
    none = choose(BUNDLES, [parse_need("decode_tok_s>=1000")])
    assert none.pick is None
    assert none.why == ("nothing meets decode_tok_s>=1000: the nearest is unknown with 400 tok/s")
    missing = choose(report_of(x=(10, 400, None)), [parse_need("kl_mean<1")])
    assert missing.why == "nothing meets kl_mean<1: kl_mean was not measured"
    blind = choose(report_of(x=(10, 400, None)), [parse_need("size_mb<50")])
    assert blind.why == "kl_mean was not measured of what meets size_mb<50"


def test_the_table_marks_front_and_pick() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_choice(choose(BUNDLES, [parse_need("decode_tok_s>=200")])))
    text = console.export_text()
    lines = {line.split()[1]: line for line in text.splitlines()[1:] if line.strip()}
    assert lines["int8"].startswith("→")
    assert lines["int4"].startswith("*")
    assert "fails decode_tok_s>=200" in lines["teacher"]
    assert "beaten by int8" in text
    assert "kl_mean not measured" in text
    assert choose(BUNDLES.model_copy(update={"arms": []}), []).candidates == []
