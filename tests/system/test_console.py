import pytest

from kdexport.system import console
from kdexport.system.console import say, tracked


def test_a_log_gets_plain_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    tracker = console.Tracker("writing", "copies", _started=0.0)
    tracker(0, 100)
    tracker(25, 100)  # 20 s in
    tracker(26, 100)  # too soon for another line
    tracker(100, 100, note="the end")
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[-1].endswith("the end")
    assert "25/100 copies" in lines[0]
    assert len(lines) == 2


def test_what_is_said_on_a_terminal_is_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    say("[/x] and [bold]y")
    with tracked("[/work]", "steps", 2) as progress:
        progress(2, note="[/arm]: [red]latency")
    said = capsys.readouterr().err
    for text in ("[/x] and [bold]y", "[/work]", "[/arm]: [red]latency", "steps/s"):
        assert text in said


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with tracked("work", "steps", 2) as progress:
        progress(2)
    say("done")
    said = capsys.readouterr()
    assert said.out == ""
    assert "work: 2/2 steps" in said.err
    assert said.err.endswith("done\n")
