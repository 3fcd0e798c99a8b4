"""`yolokd steptime`: what one training step costs alone, with Ultralytics' own distillation, and with yolokd."""

from __future__ import annotations

from yolokd.verbs.arguments import require
from yolokd.verbs.declaration import Verb

VERB = Verb(
    summary="measures how much longer a training step takes with distillation",
    usage=("yolokd steptime model=yolo11n.pt teacher=big.pt data=my.yaml [steps=20] [method=pkd] [imgsz=640] ...",),
    function="yolokd.studies.step_time.steptime",
    notes=(
        "Takes Ultralytics' training arguments and those of `yolokd train` too. Quote the ratios: the times depend on "
        "the machine.",
    ),
    examples=("yolokd steptime model=yolo11n.pt teacher=big.pt data=my.yaml imgsz=320 batch=8 device=cpu",),
    passes_on=True,
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Measure and print."""
    from yolokd.config.parse import parse_pairs
    from yolokd.studies.step_time import steptime

    arguments = parse_pairs(words)
    require(arguments, VERB)
    steptime(**arguments)
