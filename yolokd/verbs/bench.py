"""`yolokd bench`: latency of exported models on this machine."""

from __future__ import annotations

import shlex

from yolokd.errors import UsageError
from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Option, Verb
from yolokd.verbs.train import REPORT

VERB = Verb(
    summary="measures latency on this machine",
    usage=("yolokd bench model=a.onnx[,b.onnx] source=images/|video.mp4|0 [profile=smoke|standard|soak] ...",),
    function="yolokd.latency.bench.bench",
    options=(
        Option("source", "an image or a folder of images, 32 or more if possible; or a video file or a camera: then "
               "the latency from capture to result; none with random=True"),
        Option("model", "ONNX files or bundles with commas between, or what `yolokd export format=` wrote",
               required=True),
        REPORT,
    ),
    hidden=("models",),
    notes=(
        "threads=, provider=, imgsz=, streams= and precision= may be lists: every combination is measured.",
        "Several models are interleaved frame by frame.",
        "Of a video file or a camera it measures from capture to result, and counts the frames that were dropped.",
    ),
    examples=(
        "yolokd bench model=a.onnx,b.onnx source=images/",
        "yolokd bench model=best.onnx source=images/ profile=standard threads=1,2 streams=1,2",
        "yolokd bench model=best.onnx random=True",
    ),
)  # fmt: skip


def run(words: list[str]) -> None:
    """Measure; in `yolokd bench model=a.onnx b.onnx source=...` bare words after model= are further models."""
    models = [w for a in words for w in a.removeprefix("model=").split(",") if a.startswith("model=") or "=" not in a]
    if not models:
        raise UsageError("no model: give the exported files to time, model=a.onnx,b.onnx.")
    options = keyed([f"model={','.join(models)}", *(w for w in words if "=" in w and not w.startswith("model="))], VERB)
    if "source" not in options and not options.get("random"):
        raise UsageError("no images: give an image or a folder of them, source=images/, or random=True for noise.")
    from yolokd.reports.timed import timed

    report = options.pop("report", True)
    rest = {key: value for key, value in options.items() if key != "model"}
    timed({"models": models, **rest}, report, shlex.join(["yolokd", "bench", *words]))
