"""Which files an ONNX graph reads its weights from, told without the onnx package.

A walk over the protobuf wire format, through every message of onnx.proto that may hold a tensor:
initializers, attributes of nodes, subgraphs, sparse tensors, functions.
"""

from collections.abc import Iterator, Mapping

from kdexport.errors import InputError

CHILDREN: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
"""Message -> field number -> the message in that field, where a tensor may be inside."""

_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_LONGEST_TAG = 2**32 - 1  # protobuf cuts longer ones, and would read another field than we do


def external_locations(model: bytes, where: str = "") -> set[str]:
    """The ``location`` of every tensor that lies outside of the graph's own file.

    Raises InputError for bytes that are no protobuf message; ``where`` is the file's name.
    """
    found: set[str] = set()
    waiting = [("ModelProto", memoryview(model))]
    try:
        while waiting:
            kind, message = waiting.pop()
            if kind == "StringStringEntryProto":
                found.update(_locations(message))
                continue
            children = CHILDREN[kind]
            waiting += [(children[n], part) for n, part in _fields(message) if n in children]
    except (IndexError, UnicodeDecodeError):
        raise InputError("is no ONNX graph, corrupt or truncated", where=where) from None
    return found


def _locations(entry: memoryview) -> list[str]:
    """Every value of an entry whose key is "location", or is so once where it has several."""
    parts = [(number, bytes(part)) for number, part in _fields(entry)]
    if (_KEY, b"location") not in parts:
        return []
    return [part.decode("utf-8") for number, part in parts if number == _VALUE]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of a message's length-delimited fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag > _LONGEST_TAG:
            raise IndexError
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise IndexError
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise IndexError


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:  # no integer of protobuf is longer
            raise IndexError
