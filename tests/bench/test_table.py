"""Ratios are taken round by round, and a bar is met by the median."""

import pytest

from bench.peers.table import BARS, Bar, Verdict, spread, table, verdicts

SERIES = {
    # Two rounds on a machine that halves its speed: absolute numbers overlap, ratios do not.
    "int8": {"decode": [130.0, 60.0], "ttft_long_ms": [100.0, 240.0], "size_mb": [100.0]},
    "llama-q8_0": {"decode": [100.0, 50.0], "ttft_long_ms": [90.0, 300.0]},
    "torch-fp32": {"decode": [10.0, 5.0], "ttft_long_ms": [200.0, 200.0]},
}


def lines(series: dict[str, dict[str, list[float]]]) -> list[str]:
    return [verdict.line for verdict in verdicts(series, ours=["int8"])]


def test_ratios_are_taken_inside_each_round() -> None:
    assert "int8 decode / llama-q8_0: 1.25 (1.20-1.30), bar ≥ 1.2: met" in lines(SERIES)


def test_the_best_peer_may_be_another_in_each_round() -> None:
    # 100 / 90 and 240 / 200; ours are no peers.
    assert "int8 ttft_long_ms / best peer: 1.16 (1.11-1.20), bar ≤ 1.2: met" in lines(SERIES)


@pytest.mark.parametrize(("peak", "verdict"), [(220.0, "met"), (221.0, "NOT met")])
def test_memory_is_held_to_the_bundles_size(peak: float, verdict: str) -> None:
    series = {"int8": {"size_mb": [100.0], "peak_rss_mb": [peak]}}  # 1.6 · 100 + 60 = 220
    assert lines(series) == [f"int8 peak_rss_mb: {peak:.0f}, bar ≤ 220: {verdict}"]


def test_the_median_decides_on_either_side() -> None:
    above = Bar("x", "decode", 1.0, at_least=True)
    below = Bar("x", "load_s", 1.0)
    assert Verdict(above, 1.0, [0.5, 1.0, 9.0]).met and Verdict(below, 1.0, [0.5, 1.0, 9.0]).met
    assert not Verdict(above, 1.0, [0.5, 0.9, 9.0]).met
    assert not Verdict(below, 1.0, [0.5, 1.1, 9.0]).met


def test_what_was_not_measured_has_no_verdict() -> None:
    assert not [line for line in lines(SERIES) if "optimum" in line or "int4" in line]


def test_rounds_of_unequal_number_are_an_error() -> None:
    series = {"int8": {"decode": [1.0]}, "llama-q8_0": {"decode": [1.0, 2.0]}}
    with pytest.raises(ValueError, match="argument 2 is longer"):
        lines(series)


def test_the_table_leaves_out_what_nobody_has() -> None:
    head, rule, *rows = table(SERIES)
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "arm",
        "decode tok/s",
        "TTFT long ms",
        "size MB",
    ]
    assert rule.count("|") == head.count("|") and len(rows) == 3
    assert rows[2].split("|")[-2].strip() == "–"  # noqa: RUF001


def test_a_spread_of_one_value_has_no_range() -> None:
    assert spread([1.234], 2) == "1.23"
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0-3.0)"


def test_every_bar_is_of_a_measure_that_is_taken() -> None:
    taken = {"decode", "prefill", "ttft_long_ms", "deep_share", "batch_gain", "load_s"}
    taken |= {"bytes_per_parameter", "peak_rss_mb", "kl_prefill", "kl_steps"}
    assert {bar.measure for bar in BARS} == taken
