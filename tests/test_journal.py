from pathlib import Path

import pytest

from kdexport.journal import Journal, fingerprint


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    return folder


def test_a_recorded_stage_is_done(tmp_path: Path, output: Path) -> None:
    Journal(tmp_path / "journal.json").record("x", "print", [output], 1.0)
    assert Journal(tmp_path / "journal.json").is_done("x", "print")
    assert not Journal(tmp_path / "journal.json").is_done("x", "another print")
    assert not Journal(tmp_path / "journal.json").is_done("y", "print")


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_a_changed_output_is_not_done(tmp_path: Path, output: Path, change: str) -> None:
    Journal(tmp_path / "journal.json").record("x", "print", [output], 1.0)
    if change == "edit":
        (output / "a.txt").write_text("b")
    else:
        (output / "a.txt").unlink()
    assert not Journal(tmp_path / "journal.json").is_done("x", "print")


@pytest.mark.parametrize(
    "content", ["", "{", '{"version": 9}', '{"version": 1, "stages": {"x": 1}}']
)
def test_a_damaged_journal_counts_as_empty(tmp_path: Path, content: str) -> None:
    (tmp_path / "journal.json").write_text(content)
    assert Journal(tmp_path / "journal.json").entries == {}


def test_a_fingerprint_sees_every_part() -> None:
    assert fingerprint("a", {"x": 1, "y": 2}) == fingerprint("a", {"y": 2, "x": 1})
    assert len({fingerprint("a", 1), fingerprint("a", "1"), fingerprint("a"), fingerprint()}) == 4
