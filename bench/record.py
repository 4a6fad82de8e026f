"""What every result says beside its numbers, under the names that `document.py` reads; its file."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdexport.system.files import write_whole
from kdexport.system.machine import machine_facts

ROOT = Path(__file__).parents[1]


def record(script: str, words: Sequence[str] | None = None) -> dict[str, Any]:
    """When it was measured, by which command and on which machine.

    ``script``: the ``__file__`` of what measured; ``words``: its arguments, None for those of this
    process. What is this machine's own in them (the checkout, the home) is shortened.
    """
    asked = sys.argv[1:] if words is None else words
    script = str(Path(script).resolve().relative_to(ROOT))
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", script, *map(shortened, asked)],
        "machine": machine_facts().model_dump(mode="json"),
    }


def shortened(word: object) -> str:
    """A word of a command without this machine's own folders."""
    return str(word).replace(str(ROOT), ".").replace(str(Path.home()), "~")


def save(found: Mapping[str, Any], path: Path | None) -> None:
    """Write a result as JSON, whole or not at all; without a path nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [json.dumps(found, indent=1, ensure_ascii=False), "\n"])
