"""What is seen of training: lines, the panel, the log, samples, TensorBoard's files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdexport.errors import LIBRARIES, MissingExtraError
from kdexport.pipeline.board import Board
from kdexport.pipeline.watching import Seen, Watcher, Written, line_of, shown
from kdexport.train.evaluate import Evaluation
from kdexport.train.trainer import Event, Position


def event(step: int, **changes: Any) -> Event:
    numbers = {"loss": 2.0, "task": 1.0, "divergence": 1.0, "norm": 0.5, "lr": 1e-3, "skipped": 0}
    return Event(
        **{"step": step, "tokens": 100 * step, "elapsed_s": 2.0 * step, "progress": step / 10}
        | numbers
        | changes
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_step_is_logged_and_what_comes_again_is_not_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Seen] = []
    copies = [Written("b1", "Say", "one\ntwo", "the text")]
    for begin, end in ((0, 5), (3, 6)):
        watcher = Watcher(seen.append, tmp_path / "metrics.jsonl", write=lambda: copies)
        watcher.begins(Position(step=begin, evaluated=begin // 2 * 2))
        for step in range(begin + 1, end + 1):
            watcher.step(event(step))
            if step % 2 == 0:
                watcher.evaluated(Position(step, best_score=0.3), Evaluation(0.4, 0.5, 9.0))
        watcher.close()
    log = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in log if "evaluation" in row] == [2, 4, 6]
    assert log[0]["memory_mb"] > 1
    assert rows(tmp_path / "samples.jsonl") == [
        {"step": step, "id": "b1", "prompt": "Say", "copy": "one\ntwo", "text": "the text"}
        for step in (2, 4, 6)
    ]
    said = capsys.readouterr().err
    assert "step 4: KL 0.400, top-1 50.0 %, perplexity 9.00\n        b1: one two\n" in said
    assert seen[4].tokens_per_s == pytest.approx(50)
    assert seen[4].left_s == pytest.approx(10)
    assert (seen[4].kl, seen[4].best_kl) == (0.4, 0.3)


def test_the_memory_of_a_gpu_is_told_where_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most that it was yet: what is short is the GPU's, not the process's."""
    seen: list[Seen] = []
    watcher = Watcher(seen.append, tmp_path / "metrics.jsonl")
    watcher.begins(Position())
    watcher.step(event(1))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for step, n_bytes in ((2, 0), (3, 7_300_000_000)):
        monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda n_bytes=n_bytes: n_bytes)
        watcher.step(event(step))
    watcher.close()
    assert [row.get("gpu_mb") for row in rows(tmp_path / "metrics.jsonl")] == [None, None, 7300.0]
    assert ["GPU memory" in dict(one.facts) for one in seen] == [False, False, True]
    assert "GPU memory 7,300 MB" in line_of("training", seen[-1])


def test_a_step_without_finite_numbers_is_json_still(tmp_path: Path) -> None:
    seen: list[Seen] = []
    watcher = Watcher(seen.append, tmp_path / "metrics.jsonl")
    watcher.begins(Position())
    watcher.step(event(1, loss=math.nan, norm=math.inf, skipped=1))
    watcher.step(event(2, loss=3.0, skipped=1))
    watcher.close()
    first, _ = rows(tmp_path / "metrics.jsonl")
    assert (first["loss"], first["norm"], first["skipped"]) == (None, None, 1)
    assert seen[-1].loss == 3.0
    assert ("skipped", "1") in seen[-1].facts


SEEN = Seen(120, 0.25, 1.2345, 3e-4, 812.4, 3725.0, 1034.2, 2, 0.81, 0.79)


def test_a_log_gets_a_line_of_all_that_counts() -> None:
    assert line_of("    distilling", SEEN) == (
        "    distilling: 25 %, step 120, loss 1.234, KL 0.810 (best 0.790), lr 3.00e-04, "
        "tokens/s 812, left 1:02:05, memory 1,034 MB, skipped 2"
    )


def test_without_a_terminal_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("distilling") as show:
        for step in range(1, 11):
            show(Seen(step, step / 10, 1.0, 1e-3, 1.0, None, 1.0, 0))
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[1] for line in said] == [" step 1", " step 10"]


def test_a_terminal_has_a_panel(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    with shown("[/distilling]") as show:
        show(SEEN)
    said = capsys.readouterr().err
    assert "[/distilling]: 25 %, step 120" in said
    for name, value in SEEN.facts:
        assert name in said and value in said
    assert [name for name, _ in SEEN.facts] == [
        *("loss", "KL", "lr", "tokens/s", "left", "memory", "skipped"),
    ]


def test_tensorboard_shows_the_last_word_on_each_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard"
    for begin, end, loss in ((0, 5, 1.0), (3, 6, 2.0)):
        watcher = Watcher(lambda seen: None, tmp_path / "metrics.jsonl", board=Board(folder))
        watcher.begins(Position(step=begin))
        for step in range(begin + 1, end + 1):
            watcher.step(event(step, loss=loss, norm=math.nan))
        watcher.evaluated(Position(end), Evaluation(None, None, 9.0))
        watcher.close()
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        *((step, 1.0) for step in (1, 2, 3)),
        *((step, 2.0) for step in (4, 5, 6)),
    ]
    assert [e.step for e in events.Scalars("validation/perplexity")] == [6]
    assert "norm" not in events.Tags()["scalars"]


def test_without_tensorboard_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIBRARIES, "tensorboard", ("tensorboard_that_is_not_there",))
    with pytest.raises(MissingExtraError, match=r"is missing; pip install 'kdexport\[tensorboard"):
        Board(tmp_path)
