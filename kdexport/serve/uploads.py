"""/v1/briefs: a file of briefs, examined as `kdexport briefs check` does. Writes no copy."""

import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from kdexport.content.briefs import examine_briefs
from kdexport.content.channels import Channels
from kdexport.serve.refusals import RefusedError

MOST_BRIEFS = 1000
LARGEST_FILE = 2_000_000  # bytes
ENDINGS = (".csv", ".tsv", ".jsonl")


def examined(name: str, content: bytes, channels: Channels) -> dict[str, Any]:
    """The briefs of a file, and what is wrong with it, named by its own name.

    Raises RefusedError for a name that does not tell what the file is.
    """
    ending = PurePosixPath(name).suffix.lower()
    if ending not in ENDINGS:
        words = f"{name!r} does not tell what it is: use one of {', '.join(ENDINGS)}"
        raise RefusedError(400, words, "name")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"briefs{ending}"
        path.write_bytes(content)
        briefs, problems = examine_briefs(path, channels, most=MOST_BRIEFS)
    return {
        "briefs": [brief.model_dump(mode="json", exclude_defaults=True) for brief in briefs],
        "problems": [
            problem.as_json() | {"where": problem.where.replace(str(path), name)}
            for problem in problems
        ],
    }
