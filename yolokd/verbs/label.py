"""`yolokd label`: a data set of a teacher's predictions over images without labels."""

from __future__ import annotations

from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Verb

VERB = Verb(
    summary="labels images with a teacher's predictions, as a data set to train on and to look through",
    usage=("yolokd label teacher=big.pt images=DIR out=DIR [data=my.yaml] [conf=0.4] ...",),
    function="yolokd.labelling.label.label",
    notes=(
        "The folder holds images/, labels/, data.yaml, summary.json, and sheet.jpg to look at.",
        "The same command goes on after any interruption; labels that are there are left alone.",
    ),
    examples=(
        "yolokd label teacher=big.pt images=new-photos out=labelled data=my.yaml",
        "yolokd label teacher=big.onnx images=new-photos out=labelled conf=0.5",
    ),
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Label, and print the summary."""
    arguments = keyed(words, VERB)
    from yolokd.labelling.label import labelled

    labelled(**arguments)
