"""Which files an ONNX graph reads its weights from, told without the onnx package.

A walk over the protobuf wire format: ModelProto.graph (7) -> GraphProto.initializer (5) ->
TensorProto.external_data (13) -> StringStringEntryProto {key (1), value (2)}.
"""

from collections.abc import Iterator

from kdexport.errors import InputError

_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2


def external_locations(model: bytes) -> set[str]:
    """The ``location`` of every tensor that lies outside of the graph's own file."""
    view = memoryview(model)
    found: set[str] = set()
    try:
        for graph in _fields(view, _GRAPH):
            for tensor in _fields(graph, _INITIALIZER):
                for entry in _fields(tensor, _EXTERNAL_DATA):
                    key, value = (b"".join(_fields(entry, n)) for n in (_KEY, _VALUE))
                    if key == b"location":
                        found.add(value.decode("utf-8"))
    except (IndexError, UnicodeDecodeError):
        raise InputError("an ONNX file is corrupt or truncated") from None
    return found


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The length-delimited fields of a message that carry the number ``wanted``."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise IndexError
            if tag >> 3 == wanted:
                yield message[at : at + length]
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
