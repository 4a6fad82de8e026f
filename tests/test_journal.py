from pathlib import Path

import pytest

from kdexport.errors import KdexportError
from kdexport.journal import Journal, fingerprint


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    return folder


def test_a_recorded_stage_is_done(tmp_path: Path, output: Path) -> None:
    Journal(tmp_path / "journal.json").record("x", "print", [output], 1.0)
    assert Journal(tmp_path / "journal.json").is_done("x", "print", [output])
    assert not Journal(tmp_path / "journal.json").is_done("x", "another print", [output])
    assert not Journal(tmp_path / "journal.json").is_done("y", "print", [output])


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_a_changed_output_is_not_done(tmp_path: Path, output: Path, change: str) -> None:
    Journal(tmp_path / "journal.json").record("x", "print", [output], 1.0)
    if change == "edit":
        (output / "a.txt").write_text("b")
    else:
        (output / "a.txt").unlink()
    assert not Journal(tmp_path / "journal.json").is_done("x", "print", [output])


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "1", '{"version": 9}', '{"version": 1, "stages": {"x": 1}}'),
        '{"version": 1, "stages": {"x": {"fingerprint": "f", "outputs": 1, "seconds": 1}}}',
    ],
)
def test_a_damaged_journal_counts_as_empty(tmp_path: Path, content: str) -> None:
    (tmp_path / "journal.json").write_text(content)
    assert Journal(tmp_path / "journal.json").entries == {}


def test_outputs_that_are_wanted_elsewhere_are_not_done(tmp_path: Path, output: Path) -> None:
    journal = Journal(tmp_path / "journal.json")
    journal.record("x", "print", [output], 1.0)
    assert not journal.is_done("x", "print", [tmp_path / "elsewhere"])
    assert not journal.is_done("x", "print", [output, tmp_path / "elsewhere"])
    assert journal.is_done("x", "print", [output / "a.txt"])


def test_an_output_that_was_not_written_is_no_finished_stage(tmp_path: Path, output: Path) -> None:
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(KdexportError, match="the stage x has not written it"):
            Journal(tmp_path / "journal.json").record("x", "print", [output, missing], 1.0)
    assert not (tmp_path / "journal.json").exists()


def test_a_run_folder_may_be_a_link(tmp_path: Path, output: Path) -> None:
    (tmp_path / "big" / "disk").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "big" / "disk")
    Journal(tmp_path / "run" / "journal.json").record("x", "print", [output], 1.0)
    assert Journal(tmp_path / "run" / "journal.json").is_done("x", "print", [output])


def test_a_fingerprint_sees_every_part() -> None:
    assert fingerprint("a", {"x": 1, "y": 2}) == fingerprint("a", {"y": 2, "x": 1})
    assert len({fingerprint("a", 1), fingerprint("a", "1"), fingerprint("a"), fingerprint()}) == 4
