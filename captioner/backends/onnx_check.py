"""Check that an ONNX graph names no file and no code, without the `onnx` package.

ONNX files are protocol buffers: nested messages of numbered fields. A graph may point to weights in
other files (external data) and to operators or functions of its own. An export has none of these,
so all of them are refused before a runtime reads the graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from captioner.errors import CheckpointError

_STANDARD_DOMAINS = (b"", b"ai.onnx")
# Kind of message -> number of a field -> kind of the message in it, by onnx.proto.
_MESSAGES = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
    "opset": {},
}
_REFUSED = {
    ("model", 20): "training graphs",
    ("model", 25): "functions of its own",
    ("tensor", 13): "weights in another file",
    ("tensor", 14): "weights in another file",
}
_DOMAINS = {("node", 7), ("opset", 1)}
_MAX_DEPTH = 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def check_graph(graph: bytes, name: str) -> None:
    """Check a serialised ONNX model.

    Args:
        graph: The model.
        name: What to call it in an error.

    Raises:
        CheckpointError: It is damaged, or has external data, operators outside the ONNX standard,
            functions or training graphs.
    """
    try:
        _check(memoryview(graph), "model", 0)
    except _RefusedError as error:
        raise CheckpointError(f"{name} has {error}, which captioner does not load") from None
    except (IndexError, ValueError):
        raise CheckpointError(f"{name} is damaged") from None


class _RefusedError(Exception):
    """The graph has something that is not allowed."""


def _check(message: memoryview, kind: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError
    for number, value in _fields(message):
        if (kind, number) == ("tensor", 14) and value == 0:  # data_location: DEFAULT
            continue
        if (kind, number) in _REFUSED:
            raise _RefusedError(_REFUSED[kind, number])
        if (kind, number) in _DOMAINS and (
            isinstance(value, int) or bytes(value) not in _STANDARD_DOMAINS
        ):
            raise _RefusedError("operators outside the ONNX standard")
        if number in _MESSAGES[kind]:
            if isinstance(value, int):
                raise ValueError
            _check(value, _MESSAGES[kind][number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and value (a number) or content."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key >> 32:  # a runtime would cut the key to 32 bits and see another field
            raise ValueError
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == _BYTES:
            length, place = _varint(message, place)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError
        if place + length > len(message):
            raise ValueError
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of variable length and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError
