"""`yolokd check`: is a training ready to start, will it pay, how long will it take?"""

from __future__ import annotations

from yolokd.verbs.declaration import Verb
from yolokd.verbs.train import TRAINING

VERB = Verb(
    summary="says whether a training can start, whether it will pay, and how long it will take",
    usage=("yolokd check model=yolo11n.pt teacher=big.pt data=my.yaml [images=200] [json=FILE] [epochs=100] ...",),
    function="yolokd.checks.check.check",
    options=TRAINING,
    notes=(
        "Takes the arguments of `yolokd train`, with Ultralytics' own among them. Nothing is written into the data "
        "set, and no run is left.",
        "Exit codes: 0 ready, 2 the training could not start, 3 it may not pay or the data has faults.",
    ),
    examples=("yolokd check model=yolo11n.pt teacher=big.pt data=my.yaml epochs=100 imgsz=640",),
    passes_on=True,
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Check; what is not ready is raised with its exit code."""
    from yolokd.checks.check import checked
    from yolokd.config.parse import parse_pairs

    checked(**parse_pairs(words))
