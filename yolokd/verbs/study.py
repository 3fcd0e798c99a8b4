"""`yolokd study`: train a student in several ways with several seeds, and compare them."""

from __future__ import annotations

import shlex

from yolokd.verbs.declaration import Option, Verb
from yolokd.verbs.train import CFG, DISTILLATION, DOTTED, PAIR, REPORT

OF_STUDY = Option("cfg", "a file of arguments, or taxonomy, voc or coco", "none", group=CFG.group)
FITTED = "Beside a fit's student"
COMPARED = (
    Option("fit", "the folder of a finished `yolokd fit`, whose student is compared", "none", group=FITTED),
    Option(
        "standard",
        "with fit=: the standard sizes to compare with, such as yolo11n,yolo26n, or False",
        "the smallest of each family",
        group=FITTED,
    ),
    Option("prune", "with fit=, False: leave out the pruned teacher", "True", group=FITTED),
)

VERB = Verb(
    summary="trains the student in several ways with several seeds and compares them",
    usage=(
        "yolokd study methods=builtin,default,pkd+logit model=... teacher=... data=... [seeds=3] [out=DIR] ...",
        "yolokd study fit=runs/fit [standard=yolo11n,...|False] [prune=False] [seeds=3] ...",
    ),
    function="yolokd.studies.runner.study",
    options=(
        *PAIR,
        DOTTED,
        OF_STUDY,
        *(option for option in DISTILLATION if option is not CFG),
        REPORT,
        *COMPARED,
    ),  # fmt: skip
    notes=(
        "Whatever else `yolokd train` takes applies to every arm. A method's dotted options apply to the arms that "
        "use it. The student alone is always the first arm.",
        "The study's folder holds compare.md, runs.csv, compare.json and the plot compare.png.",
        "cfg=taxonomy trains by every method that the pair can have, from the student's own start and from the "
        "teacher's, and makes a table by level.",
        "With fit= the arms are the fit's student, the same with copied or random channels, the pruned teacher, and "
        "standard sizes, all within the fit's budget; they lie in the fit's folder, arms.yaml.",
        "The same command goes on after any interruption and does only what is missing.",
    ),
    examples=(
        "yolokd study methods=builtin,default model=yolo11n.pt teacher=big.pt data=my.yaml seeds=3 epochs=100",
        "yolokd study cfg=taxonomy model=yolo11n.pt teacher=big.pt data=my.yaml epochs=100",
        "yolokd study fit=runs/fit seeds=3",
    ),
    passes_on=True,
    stands_on_ultralytics=True,
)


def run(words: list[str], **defaults: str) -> None:
    """Train every arm with every seed; `defaults` are for what the words leave open."""
    from yolokd.config.parse import parse_pairs
    from yolokd.reports.trained import studied

    given = {**defaults, **parse_pairs(words)}
    report = given.pop("report", True)
    if "fit" in given:
        from yolokd.fitting.comparison import arguments_of

        given = arguments_of(**given)
    studied(given, report, shlex.join(["yolokd", "study", *words]))
