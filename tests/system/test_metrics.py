import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kdexport.system.metrics import Log, read_curve, read_rows


def test_a_log_goes_on_without_gap_or_repetition(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path)
    log.go_on(lambda row: True)
    for step in range(1, 6):
        log.add({"step": step, "text": "naïve"})
        assert [row["step"] for row in read_rows(path)] == list(range(1, step + 1))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "te')  # cut off by a kill
    again = Log(path)
    again.go_on(lambda row: row["step"] <= 3)
    again.add({"step": 4, "text": "x"})
    again.close()
    assert [json.loads(line)["step"] for line in path.open(encoding="utf-8")] == [1, 2, 3, 4]
    assert not list(tmp_path.glob("*.partial"))


@given(st.integers(0, 90), st.integers(1, 20), st.sets(st.integers(1, 90)))
def test_a_curve_keeps_ends_evaluations_and_the_mean(
    tmp_path_factory: object, n_steps: int, n_most: int, evaluated: set[int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"  # type: ignore[attr-defined]
    log = Log(path)
    log.go_on(lambda row: True)
    for step in range(1, n_steps + 1):
        log.add({"step": step, "loss": None if step == 7 else float(step), "lr": 1 / step})
        if step in evaluated:
            log.add({"step": step, "evaluation": {"kl": step / 2}})
    log.close()
    points = read_curve(path, n_most)
    seen = {step for step in evaluated if step <= n_steps}
    assert {p.step for p in points if p.evaluation} == seen
    assert len(points) <= n_most + 1 + len(seen)
    before = 0
    for point in points:
        losses = [step for step in range(before + 1, point.step + 1) if step != 7]
        mean = sum(losses) / len(losses) if losses else None
        assert point.row["loss"] == mean
        assert point.row["lr"] == 1 / point.step
        before = point.step
    assert before == n_steps
