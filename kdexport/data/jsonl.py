"""Read JSONL line by line, plain or gzipped, with errors that name the line."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from kdexport.errors import InputError


def raise_it(error: InputError) -> None:
    """What is done with a row that cannot be read, where nothing else is."""
    raise error from None


def read_jsonl(
    path: Path, on_bad: Callable[[InputError], None] = raise_it
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects; blank lines are passed over.

    ``on_bad`` is told of a line that is no object; where it returns, the next one is read.
    """
    n_rows = 0
    for number, text in read_lines(path):
        if not text.strip():
            continue
        n_rows += 1
        try:
            row = parse_json(text, f"{path}:{number}")
            if not isinstance(row, dict):
                raise InputError("is not a JSON object", where=f"{path}:{number}")
        except InputError as error:
            on_bad(error)
            continue
        yield number, row
    if not n_rows:
        raise InputError("is empty", where=str(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and lines with their ends, one in memory at a time."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                raise InputError(
                    "is not UTF-8", where=f"{path}:{number}", remedy="save the file as UTF-8"
                ) from None
            yield number, text.removeprefix("\ufeff") if number == 1 else text


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """A file's bytes, unpacked where it ends in ``.gz``. Raises InputError where they end badly."""
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise InputError("is a folder; a file is wanted", where=str(path)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"is no whole gzip file ({error})", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=str(path)) from None


def parse_json(text: str, where: str, name: str = "") -> Any:
    """A value from JSON; ``name``: of the column that holds it. Refuses half characters."""
    subject = f"{name} " if name else ""
    try:
        value = json.loads(text)
        if "\\u" in text:  # only an escape can be half a character: the file itself is UTF-8
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = json.dumps(error.object[error.start])
        raise InputError(
            f"{subject}holds half of a character ({half[1:-1]})",
            where=where,
            remedy="write both halves of the pair, or the character itself",
        ) from None
    except (ValueError, RecursionError) as error:
        too = "a number is too long" if isinstance(error, ValueError) else "nested too deeply"
        reason = getattr(error, "msg", too)
        raise InputError(f"{subject}is not JSON ({reason})", where=where) from None
    return value
