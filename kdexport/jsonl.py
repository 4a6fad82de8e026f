"""Read JSONL line by line, with errors that name the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdexport.errors import InputError


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects; blank lines are passed over."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise InputError("is a folder; a JSONL file is wanted", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            "is not UTF-8", where=f"{path}:{line}", remedy="save the file as UTF-8"
        ) from None
    n_rows = 0
    for number, line_text in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line_text.strip():
            continue
        n_rows += 1
        yield number, _object(line_text, f"{path}:{number}")
    if not n_rows:
        raise InputError("is empty", where=str(path))


def _object(text: str, where: str) -> dict[str, Any]:
    """The JSON object of one line."""
    try:
        row = json.loads(text)
        if "\\u" in text:  # only an escape can be half a character: the file itself is UTF-8
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = json.dumps(error.object[error.start])
        raise InputError(
            f"holds half of a character ({half[1:-1]})",
            where=where,
            remedy="write both halves of the pair, or the character itself",
        ) from None
    except (ValueError, RecursionError) as error:
        too = "a number is too long" if isinstance(error, ValueError) else "nested too deeply"
        raise InputError(f"is not JSON ({getattr(error, 'msg', too)})", where=where) from None
    if not isinstance(row, dict):
        raise InputError("is not a JSON object", where=where)
    return row
