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
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            "is not UTF-8", where=f"{path}:{line}", remedy="save the file as UTF-8"
        ) from None
    n_rows = 0
    for number, line_text in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line_text.strip():
            continue
        try:
            row = json.loads(line_text)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise InputError(f"is not JSON ({reason})", where=f"{path}:{number}") from None
        if not isinstance(row, dict):
            raise InputError("is not a JSON object", where=f"{path}:{number}")
        n_rows += 1
        yield number, row
    if not n_rows:
        raise InputError("is empty", where=str(path))
