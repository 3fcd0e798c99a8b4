"""`yolokd fit`: the most accurate student within a latency budget."""

from __future__ import annotations

from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="finds and trains the most accurate student within a latency budget",
    usage=("yolokd fit teacher=big.pt data=my.yaml budget=total.p95=12ms [device=here|board|report.json] ...",),
    function="yolokd.fitting.fit.fit",
    options=(
        Option("imgsz", "the largest image size in pixels", "that of the teacher's training"),
        Option("bench.NAME", "an option of `yolokd bench`, such as bench.threads=1", "its default"),
    ),
    notes=(
        "Whatever else `yolokd train` takes applies to every training.",
        "The folder holds student.onnx, the checkpoint in student/train/weights, fit.md, fit.png and result.json.",
        "The same command goes on after any interruption and does only what is missing.",
        "Exit code 3: the student is over the budget or below accuracy=, or a training failed.",
    ),
    examples=(
        "yolokd fit teacher=big.pt data=my.yaml budget=total.p95=12ms epochs=100",
        "yolokd fit teacher=big.pt data=my.yaml budget=infer.p50=8ms device=board bench.profile=standard",
        "yolokd fit teacher=big.pt data=my.yaml budget=infer.p50=8ms device=report.json bench.profile=standard",
    ),
    passes_on=True,
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Fit."""
    from yolokd.config.parse import parse_pairs
    from yolokd.errors import UsageError
    from yolokd.fitting.fit import fit

    given = parse_pairs(words)
    for key, example in (("teacher", "big.pt"), ("data", "my.yaml"), ("budget", "total.p95=12ms")):
        if key not in given:
            raise UsageError(f"no {key}: give {key}={example}.")
    fit(**given)
