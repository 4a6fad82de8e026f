from pathlib import Path

import pytest

from kdexport.data.jsonl import read_jsonl
from kdexport.errors import InputError


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": "\xe2\x80\xa8"}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": "\u2028"})]


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    """What is wrong further on does not keep back what stands before it."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\xff')
    rows = read_jsonl(path)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(InputError, match="is not UTF-8"):
        next(rows)


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        (b"", "", "is empty"),
        (b"\n \n", "", "is empty"),
        (b'{"a": 1}\n\xff\xfe', ":2", "is not UTF-8"),
        (b'{"a": 1}\n{"a": ', ":2", "is not JSON"),
        (b"[1]", ":1", "is not a JSON object"),
        (b'{"a": 1}\n{"a": "hi \\ud83d there"}', ":2", r"half of a character \(.ud83d\)"),
        (b'{"\\udc00": 1}', ":1", "half of a character"),
        (b'{"a": 1}\n{"a": ' + b"1" * 5000 + b"}", ":2", "a number is too long"),
        (b"[" * 100_000, ":1", "nested too deeply"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, content: bytes, where: str, message: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_jsonl(path))
    assert caught.value.where == f"{path}{where}"


def test_a_character_of_two_escapes_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert list(read_jsonl(path)) == [(1, {"a": "\U0001f600"})]


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="is a folder"):
        list(read_jsonl(tmp_path))
