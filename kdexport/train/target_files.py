"""Files of targets that another program wrote: JSONL, or safetensors as a cache's shards are.

Knows how rows lie in a file; what they have to be is `imported`'s.

Of safetensors: ``tokens`` int [T], the token ids of all texts, one text after another; ``ids`` int
and ``logprobs`` float [N, k], of the tokens from ``first`` on of each text; in the metadata
``examples`` (JSON: [[id, tokens, first], ...]).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kdexport.data.jsonl import read_jsonl
from kdexport.errors import InputError, first_words

SUFFIX = ".safetensors"
COLUMNS = ("tokens", "ids", "logprobs")


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each text stands in a file, and what is said of it, one in memory at a time.

    Of JSONL a row is the line; of safetensors it has the same names. Raises InputError.
    """
    if path.suffix.lower() != SUFFIX:
        for number, row in read_jsonl(path):
            yield f"{path}:{number}", row
        return
    try:
        with safe_open(path, framework="pt") as file:
            yield from _texts_of(path, file)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"is no whole safetensors file ({first_words(error)})", where=str(path)
        ) from None


def _texts_of(path: Path, file: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    missing = [name for name in COLUMNS if name not in file.keys()]  # noqa: SIM118
    if missing:
        raise InputError(f"has no {', no '.join(missing)}", where=str(path))
    columns = {name: file.get_slice(name) for name in COLUMNS}
    examples = _examples(path, file)
    sizes = [(columns[name].get_shape() or [0])[0] for name in COLUMNS]
    n_tokens = sum(n for _, n, _ in examples)
    n_rows = sum(n - first for _, n, first in examples)
    if sizes != [n_tokens, n_rows, n_rows]:
        raise InputError(
            f"has {sizes[0]} tokens and {sizes[1]} rows of ids, {sizes[2]} of logprobs; examples "
            f"tells of {n_tokens} tokens and {n_rows} rows",
            where=str(path),
        )
    token = row = 0
    for name, n, first in examples:
        own = slice(row, row + n - first)
        yield (
            f"{path}, text {name!r}",
            {
                "id": name,
                "ids": columns["tokens"][token : token + n].tolist(),
                "first": first,
                "top_ids": list(_whole(columns["ids"][own]).numpy()),
                "top_logprobs": list(columns["logprobs"][own].double().numpy()),
            },
        )
        token, row = token + n, own.stop


def _whole(ids: torch.Tensor) -> torch.Tensor:
    """Ids of whatever integers as int64; what is no integer stays, to be refused."""
    return ids.double() if ids.is_floating_point() else ids.long()


def _examples(path: Path, file: Any) -> list[tuple[str, int, int]]:
    """The name of each text, how many tokens it has, and the first that is told of."""
    try:
        found = json.loads((file.metadata() or {})["examples"])
        examples = [(str(name), int(n), int(first)) for name, n, first in found]
    except (KeyError, ValueError, TypeError):
        examples = []
    if not examples or any(not 0 < first <= n for _, n, first in examples):
        raise InputError(
            "examples, in its metadata, has to be JSON: [[id, tokens, first], ...]", where=str(path)
        )
    return examples
