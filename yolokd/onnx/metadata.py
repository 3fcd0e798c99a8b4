"""The metadata of ONNX files: named texts, of which "yolokd" is ours, a JSON text of what the file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

OURS = "yolokd"


def read(file: str | Path) -> dict[str, str]:
    """Name -> text of a file's metadata."""
    return of_graph(onnx.load(file, load_external_data=False))


def of_graph(graph: onnx.ModelProto) -> dict[str, str]:
    """Name -> text of a loaded file's metadata."""
    return {p.key: p.value for p in graph.metadata_props}


def description(metadata: dict[str, str]) -> dict[str, Any]:
    """What yolokd wrote about a file; empty for a file that it did not write."""
    return json.loads(metadata.get(OURS, "{}"))  # type: ignore[no-any-return]


def write(graph: onnx.ModelProto, metadata: dict[str, str | None], described: dict[str, Any] | None = None) -> None:
    """Give a loaded file this metadata in place of its own, without entries that are None.

    Args:
        graph: the loaded file.
        metadata: name -> text.
        described: what yolokd says about the file, None to leave that as it stands in `metadata`.
    """
    if described is not None:
        metadata = {**metadata, OURS: json.dumps(described)}
    onnx.helper.set_model_props(graph, {name: text for name, text in metadata.items() if text is not None})


def change(file: Path, described: dict[str, Any] | None = None, **changes: str | None) -> None:
    """Change entries of a file's metadata; None removes one.

    Args:
        file: changed in place.
        described: what yolokd says about the file, to be added to what it said before.
        **changes: name -> text.
    """
    graph = onnx.load(file)
    before = of_graph(graph)
    write(graph, {**before, **changes}, None if described is None else {**description(before), **described})
    onnx.save(graph, file)
