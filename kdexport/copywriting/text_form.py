"""The form that `kdexport generate` is asked to keep its texts to."""

from collections.abc import Sequence
from pathlib import Path

from kdexport.data.jsonl import opened, parse_json
from kdexport.errors import InputError
from kdexport.runtime.constrain import Grammars, TextForm
from kdexport.runtime.sample import Sampler
from kdexport.runtime.text import TextCodec

OPTIONS = {"regex": "--regex", "choice": "--choice", "json": "--schema"}
MOST_BYTES = 2**20


def form_of(regex: str | None, choices: Sequence[str], schema: Path | None) -> TextForm | None:
    """The one form that options name. Raises InputError for several, and for a bad schema file."""
    asked = [
        *([TextForm("regex", regex)] if regex is not None else []),
        *([TextForm("choice", list(choices))] if choices else []),
        *([TextForm("json", _read(schema))] if schema is not None else []),
    ]
    if len(asked) > 1:
        names = " and ".join(OPTIONS[one.kind] for one in asked)
        raise InputError("do not go together", where=names)
    return asked[0] if asked else None


def _read(path: Path) -> object:
    """The schema of a file."""
    with opened(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError("is too large for a schema", where=str(path))
    schema = parse_json(content.decode("utf-8", "replace"), str(path))
    if not isinstance(schema, dict):
        raise InputError("is no JSON schema: an object is wanted", where=str(path))
    return schema


def kept_to(form: TextForm, sampler: Sampler, codec: TextCodec, vocab_size: int) -> Sampler:
    """A sampler for texts of a form. Raises InputError, by the option, where there is none."""
    if form.kind == "choice" and not all(form.wanted):
        raise InputError("a choice is empty", where=OPTIONS[form.kind])
    try:
        return Grammars(codec, vocab_size).keep_to(sampler, form)
    except InputError as error:
        where = OPTIONS[form.kind]
        raise InputError(error.message, where=where, remedy=error.remedy) from None
