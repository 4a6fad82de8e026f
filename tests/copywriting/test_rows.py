"""A table of copies is what was put into it, in each format; a journal goes on after any cut."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.copywriting.rows import COLUMNS, journal_path, open_journal, write_copies
from kdexport.data.tables import read_rows
from kdexport.errors import InputError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
cells = st.none() | texts | st.integers() | st.lists(texts, max_size=3)
tables = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS[:5], cells)), min_size=1)
ASKED = {"bundle": "a", "--seed": 0}


def as_text(value: Any) -> str:
    return "; ".join(value) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@given(rows=tables)
def test_a_delimited_table_reads_back(suffix: str, rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"copies{suffix}"
        write_copies(path, rows, COLUMNS[:5])
        found = [row.cells for row in read_rows(path)]
    wanted = [
        {name: as_text(cell) for name, cell in row.items() if cell is not None and as_text(cell)}
        for row in rows
    ]
    assert found == wanted


@given(rows=tables)
def test_jsonl_reads_back(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copies.jsonl"
        write_copies(path, rows, COLUMNS[:5])
        found = [row.cells for row in read_rows(path)]
    assert found == rows


@given(n_bytes=st.integers(0, 400), n_rows=st.integers(0, 5))
def test_a_journal_that_is_cut_anywhere_holds_whole_rows(n_bytes: int, n_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "copies.csv"
        rows = {number: [{"copy": "é" * number}] for number in range(n_rows)}
        with open_journal(out, ASKED, "2026-01-02") as journal:
            for number in rows:
                journal.add(number, rows[number])
                journal.add(number, rows[number])
            journal.sync()
        path = journal_path(out)
        content = path.read_bytes()[:n_bytes]
        path.write_bytes(content)
        with open_journal(out, ASKED, "2026-01-03") as journal:
            there = dict(journal.rows)
            assert journal.date == ("2026-01-02" if b"\n" in content else "2026-01-03")
            for number in rows:
                journal.add(number, rows[number])
        n_whole = max(0, content.count(b"\n") - 1)
        assert there == {number: rows[number] for number in range(n_whole)}
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [line["number"] for line in lines[1:]] == list(rows)


def test_a_journal_of_other_work_is_refused_by_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "copies.csv"
    with open_journal(out, ASKED, ""):
        pass
    with (
        pytest.raises(InputError, match="was begun with another --seed, bundle"),
        open_journal(out, {"bundle": "b", "--seed": 1}, ""),
    ):
        pass
    journal_path(out).write_text("{}\n")
    with pytest.raises(InputError, match="is no journal"), open_journal(out, ASKED, ""):
        pass


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "copies.csv"
    code = (
        "import sys; from pathlib import Path; from kdexport.copywriting.rows import open_journal\n"
        "with open_journal(Path(sys.argv[1]), {}, ''): pass"
    )
    with open_journal(out, {}, ""):
        ran = subprocess.run(
            [sys.executable, "-c", code, out],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            check=False,
        )
    assert "another kdexport is at work here" in ran.stderr


@pytest.mark.parametrize("name", ["copies", "copies.xlsx", "none/copies.csv"])
def test_an_output_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_copies(tmp_path / name, [])
