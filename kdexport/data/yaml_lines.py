"""YAML with the line of every key, read safely: small files, no duplicates, no alias bombs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kdexport.errors import InputError

Lines = dict[tuple[str, ...], int]
Value = TypeVar("Value")
MAX_BYTES = 1_000_000
MAX_DEPTH = 32
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")
}
FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # 3e-4, a string in YAML 1.1


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in a file, and the line of each key and item by its path from the top.

    Raises InputError with the line for whatever is not a plain mapping of plain values.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    lines: Lines = {}
    value = _read(content, path, lambda node: _value(node, (), lines, path))
    if not isinstance(value, dict):
        raise InputError("is not a mapping of keys to values", where=str(path))
    return value, lines


def yaml_rows(content: bytes, path: Path) -> list[tuple[int, Any]]:
    """The items of a YAML list, each with its line; `read_yaml` says what is refused."""
    rows = _read(content, path, lambda node: _items(node, path))
    if not rows:
        raise InputError("is empty", where=str(path))
    return rows


def _items(node: yaml.Node, path: Path) -> list[tuple[int, Any]]:
    if not isinstance(node, yaml.SequenceNode):
        raise InputError("is not a list (of lines that begin with -)", where=str(path))
    return [(item.start_mark.line + 1, _value(item, (), {}, path)) for item in node.value]


def _read(content: bytes, path: Path, value_of: Callable[[yaml.Node], Value]) -> Value:
    """What a file's content is, by a function of its node."""
    if len(content) > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES} bytes", where=str(path))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError("is not UTF-8", where=f"{path}:{line}") from None
    try:
        _check_events(text, path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise InputError("is empty", where=str(path))
        return value_of(node)
    except yaml.YAMLError as error:
        raise _not_yaml(error, text, path) from None


def _check_events(text: str, path: Path) -> None:
    """Refuse aliases, a few of which can stand for gigabytes, and what is nested very deep."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}:{event.start_mark.line + 1 if event.start_mark else 1}"
        if isinstance(event, yaml.AliasEvent):
            raise InputError("aliases are not allowed", where=where)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InputError(f"is nested deeper than {MAX_DEPTH} levels", where=where)


def _not_yaml(error: yaml.YAMLError, text: str, path: Path) -> InputError:
    """One line for an error of the parser, which may tell it in several."""
    mark = getattr(error, "problem_mark", None)
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    if isinstance(position, int):
        where = f"{path}:{text.count(chr(10), 0, position) + 1}"
    reason = str(getattr(error, "problem", None) or error).splitlines()[0]
    return InputError(f"is not YAML ({reason})", where=where)


def _value(node: yaml.Node, place: tuple[str, ...], lines: Lines, path: Path) -> Any:
    """A node as a plain value; the lines of its keys are noted."""
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{path}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError("a key must be a plain word", where=where)
            key = str(key_node.value)
            if key in found:
                raise InputError(f"{'.'.join((*place, key))} is given twice", where=where)
            lines[(*place, key)] = key_node.start_mark.line + 1
            found[key] = _value(value_node, (*place, key), lines, path)
        return found
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[(*place, str(number))] = item.start_mark.line + 1
        return [_value(item, place, lines, path) for item in node.value]
    where = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode) and node.tag in PLAIN_TAGS:
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in node.value):
            raise InputError("holds a character that no name or text can have", where=where)
        return scalar(node.value) if node.style is None else node.value
    raise InputError(f"the tag {node.tag} is not allowed", where=where)


def scalar(text: str) -> Any:
    """One value as YAML reads it, and 3e-4 as the number it is."""
    if FLOAT.match(text):
        return float(text)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a 13th month; thousands of digits
        return text
    return value if isinstance(value, (str, int, float, bool, list, type(None))) else text
