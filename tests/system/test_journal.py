import hashlib
from pathlib import Path

import pytest

from kdexport.errors import KdexportError
from kdexport.system.journal import Journal, file_digest, fingerprint


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
        *("", "{", "[]", "1", "[" * 5000, '{"version": 9}', '{"version": 1, "stages": {"x": 1}}'),
        '{"version": 1, "stages": {"x": {"fingerprint": "f", "outputs": 1, "seconds": 1}}}',
    ],
)
def test_a_damaged_journal_counts_as_empty(tmp_path: Path, content: str) -> None:
    (tmp_path / "journal.json").write_text(content)
    assert Journal(tmp_path / "journal.json").entries == {}


def test_a_folder_in_the_journal_s_place_counts_as_empty(tmp_path: Path, output: Path) -> None:
    (tmp_path / "journal.json" / "x").mkdir(parents=True)
    journal = Journal(tmp_path / "journal.json")
    assert journal.entries == {}
    journal.record("x", "print", [output], 1.0)
    assert Journal(tmp_path / "journal.json").is_done("x", "print", [output])


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


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEXPORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Large enough for its digest to be remembered."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10_000_001)
    return tmp_path / "large"


def test_a_digest_is_remembered(large: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(large.read_bytes()).hexdigest()
    assert file_digest(large) == digest
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    assert note.read_text() == digest
    note.write_text("0" * 64)
    assert file_digest(large) == "0" * 64


@pytest.mark.parametrize("content", [b"", b"0" * 63, b"\xff", b"0" * 64 + b"\n"])
def test_a_damaged_note_is_no_digest(large: Path, tmp_path: Path, content: bytes) -> None:
    digest = file_digest(large)
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.write_bytes(content)
    assert file_digest(large) == digest
    assert note.read_text() == digest


def test_a_cache_that_cannot_be_written_remembers_nothing(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder is wanted")
    assert file_digest(large) == hashlib.sha256(large.read_bytes()).hexdigest()

    def full(path: Path, *_: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("KDEXPORT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(Path, "write_text", full)
    file_digest(large)
    assert list((tmp_path / "other" / "digests").iterdir()) == []
