"""`yolokd inspect`: parameters, FLOPs, memory and the slowest nodes of an ONNX file."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Verb

VERB = Verb(
    summary="shows parameters, FLOPs, memory and the slowest nodes of an ONNX file",
    usage=("yolokd inspect model=best.onnx [top=10] [threads=1]",),
    function="yolokd.onnx.inspect.inspect",
    examples=("yolokd inspect model=best.onnx top=20",),
)


def run(words: list[str]) -> None:
    """Inspect."""
    from yolokd.onnx.inspect import inspect

    arguments = keyed(words, VERB)
    if "model" not in arguments:
        raise UsageError("no model: give the exported file to inspect, model=student.onnx.")
    inspect(**arguments)
