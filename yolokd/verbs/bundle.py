"""`yolokd bundle`: pack model, runtime, checks and instructions into one zip file."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="packs model, runtime, checks and instructions into one zip file",
    usage=("yolokd bundle model=best.pt [out=name-edge.zip] [data=my.yaml] [int8=True] [fp16=True] ...",),
    function="yolokd.onnx.bundle.bundle",
    options=(
        Option("model", "the checkpoint"),
        Option("contract", "what the file outputs: raw, e2e or nms, as for `yolokd export`", "raw"),
    ),
    notes=("INT8 is not faster on every device: measure both files.",),
    examples=("yolokd bundle model=best.pt data=my.yaml int8=True", "yolokd bundle model=best.pt out=door-edge.zip"),
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Bundle."""
    from yolokd.onnx.bundle import bundle

    arguments = keyed(words, VERB)
    if "model" not in arguments:
        raise UsageError("no model: give the checkpoint to bundle, model=best.pt.")
    bundle(**arguments)
