"""What an ONNX file's graph computes on the way, read and asked for in the file's bytes: a board has no onnx package.

An ONNX file is a protobuf message (onnx.proto3): a model holds its graph in field 7, a graph its nodes in field 1 and
its outputs in field 12. A message that is appended to another one is merged with it, so that outputs can be added.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from yolokd_edge.common import EdgeError

GRAPH, NODES, OUTPUTS = 7, 1, 12  # fields of a model, and of a graph
INPUT, OUTPUT, NAME, OPERATOR = 1, 2, 3, 4  # of a node
BYTES = 2  # the kind of a field that has a length; the others are 0 a varint, 1 eight bytes, 5 four bytes


class GraphNode(NamedTuple):
    """A node of a graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_nodes(content: bytes, path: Path) -> list[GraphNode]:
    """The nodes of a file's graph in their order; nodes inside of loops and branches are not among them.

    Raises:
        EdgeError: the file is not an ONNX file, or holds no graph.
    """
    try:
        nodes = [
            _node(content, start, end)
            for field, first, last in _fields(content, 0, len(content))
            if field == GRAPH
            for inner, start, end in _fields(content, first, last)
            if inner == NODES
        ]
    except (IndexError, ValueError):
        nodes = []
    if not nodes:
        raise EdgeError(f"{path} is not an ONNX file with a graph that can be read.")
    return nodes


def with_outputs(content: bytes, names: list[str]) -> bytes:
    """The file with further outputs, by the names of its values."""
    values = b"".join(_message(OUTPUTS, _message(1, name.encode())) for name in names)
    return content + _message(GRAPH, values)


def _node(content: bytes, start: int, end: int) -> GraphNode:
    texts: dict[int, list[str]] = {INPUT: [], OUTPUT: [], NAME: [], OPERATOR: []}
    for field, first, last in _fields(content, start, end):
        if field in texts:
            texts[field].append(content[first:last].decode())
    name, op = ("".join(texts[field][-1:]) for field in (NAME, OPERATOR))
    return GraphNode(name, op, tuple(texts[INPUT]), tuple(texts[OUTPUT]))


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the fields of a message that have a length."""
    while at < end:
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == BYTES:
            length, at = _varint(content, at)
            if at + length > end:
                raise ValueError("a field that is longer than its message")
            yield tag >> 3, at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(content, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _message(field: int, content: bytes) -> bytes:
    """A field with its length before it."""
    length, out = len(content), bytearray([field << 3 | BYTES])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*out, length]) + content
