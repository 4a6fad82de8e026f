"""A file is replaced by a whole one, or not at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kdexport.system.files import write_whole


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for lines in (["one\n"], ["two\n", "three\n"]):
        write_whole(path, lines)
        assert path.read_text("utf-8") == "".join(lines)
        assert list(tmp_path.iterdir()) == [path]


def test_what_ends_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        yield "half\n"
        raise RuntimeError

    path = tmp_path / "a.txt"
    path.write_text("whole\n")
    with pytest.raises(RuntimeError):
        write_whole(path, lines())
    assert path.read_text("utf-8") == "whole\n"
    assert list(tmp_path.iterdir()) == [path]
