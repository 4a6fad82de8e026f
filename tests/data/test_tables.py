"""Every form of file gives the same rows, and what is wrong is said with its place."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from kdexport.data.tables import FORMATS, format_of, read_rows
from kdexport.errors import InputError, MissingExtraError

Rows = list[dict[str, str]]


def delimited(rows: Rows, delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def in_parquet(rows: list[dict[str, Any]]) -> bytes:
    whole = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), whole)
    return whole.getvalue()


def in_yaml(rows: Rows) -> bytes:
    """Quoted, so that no text is a number or a date."""
    return yaml.safe_dump(rows, default_style='"').encode()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    ".csv": lambda rows: delimited(rows, ","),
    ".tsv": lambda rows: delimited(rows, "\t"),
    ".yaml": lambda rows: in_yaml(rows),
    ".yml": lambda rows: in_yaml(rows),
    ".parquet": in_parquet,
}
FORMS = [*FORMATS, *(f"{suffix}.gz" for suffix in FORMATS)]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def cells(path: Path) -> list[dict[str, Any]]:
    return [row.cells for row in read_rows(path)]


def test_every_form_can_be_written_here() -> None:
    assert set(WRITERS) == set(FORMATS)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    """Any text but an empty one, which tables cannot tell from none."""
    refused = "\0" if "yaml" in form or "yml" in form else ""
    cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=refused), min_size=1)
    row = st.fixed_dictionaries({"prompt": cell, "completion": cell})
    rows: Rows = data.draw(st.lists(row, min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("tables") / f"data{form}"
    write(path, WRITERS[form.removesuffix(".gz")](rows))
    assert cells(path) == rows


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", ".csv"), ("A.CSV.GZ", ".csv"), ("a.parquet.gz", ".parquet"), ("a.txt", None)],
)
def test_a_name_tells_the_form(name: str, kind: str | None) -> None:
    assert format_of(Path(name)) == kind


@pytest.mark.parametrize("name", ["data.txt", "data", "data.gz", "data.jsonl.zip"])
def test_another_name_is_refused_with_the_list(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"use one of \.jsonl, \.csv, \.tsv, \.yaml, \.yml, "):
        read_rows(write(tmp_path / name, b"x"))


def test_rows_are_numbered_by_their_first_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'\xef\xbb\xbftext,id\r\n"one\r\ntwo",a\r\n\r\nthree,\r\n')
    assert [(row.place, row.where, row.cells) for row in read_rows(path)] == [
        ("line 2", f"{path}:2", {"text": "one\r\ntwo", "id": "a"}),
        ("line 5", f"{path}:5", {"text": "three"}),
    ]


def test_rows_of_parquet_are_numbered_and_other_columns_left(tmp_path: Path) -> None:
    rows = [{"text": "a", "more": None, "n": 1}, {"text": "b", "more": [{"x": "y"}], "n": 2}]
    path = write(tmp_path / "a.parquet", in_parquet(rows))
    found = list(read_rows(path, ("text", "more")))
    assert [row.where for row in found] == [f"{path}, row 1", f"{path}, row 2"]
    assert [row.cells for row in found] == [{"text": "a"}, {"text": "b", "more": [{"x": "y"}]}]


@pytest.mark.parametrize(
    ("name", "content", "where", "message"),
    [
        ("a.csv", b"", "", "is empty"),
        ("a.csv", b"a,b\n", "", "has no rows"),
        ("a.csv", b"a,a\n1,2\n", ":1", "column 'a' stands there twice"),
        ("a.csv", b",\n1,2\n", ":1", "names no column"),
        ("a.csv", b"a,b\n1,2\n\n1,2,3\n", ":4", "has 3 cells under a header of 2"),
        ("a.tsv", b"a\tb\n1,2\n", ":2", "has 1 cells under a header of 2"),
        ("a.csv", b'a,b\n1,2\n"x\ny,2\n', ":3", "is no whole row"),
        ("a.csv", b"a,b\n1,\xff\n", ":2", "is not UTF-8"),
        ("a.jsonl.gz", b"", "", "is empty"),
        ("a.parquet", b"PAR1", "", "is no whole Parquet file"),
        ("a.parquet", in_parquet([{"a": 1}])[:-20], "", "is no whole Parquet file"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, name: str, content: bytes, where: str, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_rows(path))
    assert caught.value.where == f"{path}{where}"


CUT_SHORT = gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12]


@pytest.mark.parametrize("content", [b"no gzip", CUT_SHORT], ids=["no gzip", "cut short"])
@pytest.mark.parametrize("form", FORMS[len(FORMATS) :])
def test_a_damaged_archive_is_one_line(tmp_path: Path, form: str, content: bytes) -> None:
    path = tmp_path / f"data{form}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is no whole gzip file") as caught:
        list(read_rows(path))
    assert caught.value.where == str(path)


def test_parquet_without_pyarrow_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", in_parquet([{"a": 1}]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pyarrow is missing") as caught:
        list(read_rows(path))
    assert str(caught.value) == "pyarrow is missing; pip install 'kdexport[parquet]'"


def test_a_long_cell_is_whole(tmp_path: Path) -> None:
    long = "word " * 100_000
    assert cells(write(tmp_path / "a.csv", f"text\n{long}\n".encode())) == [{"text": long}]


def test_rows_of_yaml_are_numbered_by_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", b"# briefs\n- text: a\n  n: 2\n  none:\n\n- {text: b}\n")
    assert [(row.where, row.cells) for row in read_rows(path)] == [
        (f"{path}:2", {"text": "a", "n": 2}),
        (f"{path}:6", {"text": "b"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "numbers", "bad"),
    [
        ("a.jsonl", b'{"a": 1}\n[1]\n{"a"\n{"a": 2}\n', [1, 4], [2, 3]),
        ("a.csv", b"a,b\n1,2\n1\n3,4\n", [2, 4], [3]),
        ("a.yaml", b"- {a: 1}\n- 2\n- {a: 3}\n", [1, 3], [2]),
    ],
)
def test_reading_goes_on_after_a_bad_row_where_it_is_told_of(
    tmp_path: Path, name: str, content: bytes, numbers: list[int], bad: list[int]
) -> None:
    path = write(tmp_path / name, content)
    told: list[InputError] = []
    assert [row.number for row in read_rows(path, on_bad=told.append)] == numbers
    assert [error.where for error in told] == [f"{path}:{number}" for number in bad]
    with pytest.raises(InputError):
        list(read_rows(path))
