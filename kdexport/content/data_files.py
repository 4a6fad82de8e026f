"""YAML files of content that a user writes, channels and brands, with errors that name the line."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from kdexport.data.yaml_lines import Lines, read_yaml
from kdexport.errors import InputError

Model = TypeVar("Model", bound=BaseModel)
PLAIN_WORDS = {
    "tuple_type": "should be a list",
    "dict_type": "should be keys and values",
    "model_type": "should be keys and values",
    "model_attributes_type": "should be keys and values",
    "string_type": "should be a text",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "string_too_short": "is empty",
    "missing": "is missing",
}  # for what pydantic tells in Python's


def load_model(path: Path, model: type[Model], **defaults: Any) -> Model:
    """The content of a YAML file as a model; ``defaults`` stand for keys that it leaves out.

    Raises InputError with file, line and field for the first thing that is wrong.
    """
    content, lines = read_yaml(path)
    try:
        return model.model_validate({**defaults, **content})
    except ValidationError as error:
        first = error.errors()[0]
        where = _where(path, first["loc"], lines)
        raise InputError(f"{field_of(first)}{problem_of(first, model)}", where=where) from None


def _where(path: Path, place: Sequence[Any], lines: Lines) -> str:
    words = tuple(str(word) for word in place)
    for length in range(len(words), 0, -1):
        if words[:length] in lines:
            return f"{path}:{lines[words[:length]]}"
    return str(path)


def field_of(error: Mapping[str, Any]) -> str:
    """The dotted field of one of pydantic's errors, and a colon; nothing for one of the whole."""
    place = [str(part) for part in error["loc"] if part != "[key]"]
    if error["type"] == "extra_forbidden":
        place.pop()
    return f"{'.'.join(place)}: " if place else ""


def problem_of(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors in plain words, with the nearest key for one that is not known."""
    if error["type"] == "extra_forbidden":
        *above, key = error["loc"]
        known = _fields(model, above)
        return f"unknown key {str(key)!r}" + (did_you_mean(str(key), known) if known else "")
    message = str(error["msg"]).removeprefix("Value error, ").replace("Tuple", "List")
    return PLAIN_WORDS.get(error["type"], message[:1].lower() + message[1:])


def _fields(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """The keys that a model within a model takes."""
    kinds: set[Any] = {model}
    for part in place:
        fields = [kind.model_fields.get(str(part)) for kind in _models(kinds)]
        found = {field.annotation for field in fields if field is not None}
        kinds = found or kinds  # the key of a mapping, or the place in a list
    return [name for kind in _models(kinds) for name in kind.model_fields]


def _models(kinds: set[Any]) -> list[type[BaseModel]]:
    """The models among some types and what these are made of."""
    found: list[type[BaseModel]] = []
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        else:
            found += _models(set(get_args(kind)))
    return found


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The nearest known word as a question, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
