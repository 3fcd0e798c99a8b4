"""`yolokd bench` and `yolokd.bench()`: latency of exported models, measured by the same code that runs on a board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd.errors import UsageError
from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="measures latency on this machine",
    usage=("yolokd bench model=a.onnx[,b.onnx] source=images/ [profile=smoke|standard|soak] [provider=cpu|trt] ...",),
    function="yolokd.verbs.bench.bench",
    options=(
        Option("model", "ONNX files or bundles with commas between; for ncnn the folder of `yolo export format=ncnn`",
               required=True),
    ),
    hidden=("models",),
    notes=(
        "threads=, provider=, imgsz=, streams= and precision= may be lists: every combination is measured.",
        "Several models are interleaved frame by frame.",
    ),
    examples=(
        "yolokd bench model=a.onnx,b.onnx source=images/",
        "yolokd bench model=best.onnx source=images/ profile=standard threads=1,2 streams=1,2",
    ),
)  # fmt: skip


def run(words: list[str]) -> None:
    """Measure; in `yolokd bench model=a.onnx b.onnx source=...` bare words after model= are further models."""
    models = [w for a in words for w in a.removeprefix("model=").split(",") if a.startswith("model=") or "=" not in a]
    if not models:
        raise UsageError("no model: give the exported files to time, model=a.onnx,b.onnx.")
    if not any(word.removeprefix("--").startswith("source=") for word in words):
        raise UsageError("no images: give an image or a folder of them, source=images/.")
    options = keyed([f"model={','.join(models)}", *(w for w in words if "=" in w and not w.startswith("model="))], VERB)
    bench(models, **{key: value for key, value in options.items() if key != "model"})


def bench(
    models: str | Path | Sequence[str | Path],
    source: str | Path,
    profile: str = "smoke",
    threads: Any = None,
    provider: Any = "cpu",
    project: str | Path = "runs/bench",
    name: str | None = None,
    exist_ok: bool = False,
    repeats: int | None = None,
    quick: bool = False,
    streams: Any = 1,
    imgsz: Any = None,
    seed: int = 0,
    time_limit: float | None = None,
    power: bool = False,
    idle: float = 10.0,
    fp16: bool = False,
    cache: str | None = None,
    allow_fallback: bool = False,
    trtexec: bool = False,
    precision: Any = None,
) -> list[dict[str, Any]]:
    """Measure exported models side by side, print a table and keep report, raw samples and plot in a new run folder.

    Args:
        models: ONNX files or bundles, for ncnn the folders of `yolo export format=ncnn`; several are interleaved frame
            by frame and so meet the same background load.
        source: An image or a folder of images, 32 or more if possible; they are decoded before the clock starts.
        profile: smoke (100 frames and 3 s), standard (1,000 frames and 30 s) or soak (600 s).
        threads: CPU threads; all usable cores by default. 1,2,all measures each: a sweep. So it is with provider,
            imgsz, streams and precision.
        provider: cpu, cuda, trt, auto (the first of trt, cuda, cpu that is active), openvino or ncnn.
        project: Folder of the run folders.
        name: Name of the run folder, "bench" by default; a number is added if it exists.
        exist_ok: Write into an existing run folder instead, replacing its report.
        repeats: Runs, each in a new process; 5 by default, 1 for soak.
        quick: A single run, in this process.
        streams: Processes that detect at the same time.
        imgsz: Input size, for files without a fixed one.
        seed: Of the images' order and the models' random order.
        time_limit: Seconds after which a run stops even if the profile's counts are not reached.
        power: Sample the board's power, after an idle baseline of `idle` seconds.
        idle: Length of that baseline.
        fp16: Let TensorRT use half precision.
        cache: Folder of TensorRT's engines.
        allow_fallback: Take the next of trt, cuda, cpu where the provider asked for is not active.
        trtexec: Measure with trtexec as well, where it is installed.
        precision: Which file of a bundle: fp32, fp16 or int8.

    Returns:
        One record a model and combination, schema yolokd.latency/1, times in ms. `report.json` in the run folder holds
        the same.
    """
    import yolokd_edge

    paths = [models] if isinstance(models, str | Path) else list(models)
    flags = {"exist_ok": exist_ok, "quick": quick, "power": power, "fp16": fp16, "trtexec": trtexec}
    flags["allow_fallback"] = allow_fallback
    for key, value in flags.items():
        if not isinstance(value, bool):  # a word such as `no` would count as yes, and could cost a report
            raise yolokd_edge.EdgeError(f"{key}={value} is neither True nor False: write one of the two.")
    for key, number in {"time_limit": time_limit, "idle": idle}.items():
        if number is not None and not (isinstance(number, int | float) and number >= 0):
            raise yolokd_edge.EdgeError(f"{key}={number} is not a number of seconds: write one such as {key}=10.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise yolokd_edge.EdgeError(f"seed={seed} is not a whole number of 0 or more: give one such as seed=0.")
    source = str(source)  # a folder's name may be a number
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        raise yolokd_edge.EdgeError(f"{source} is a data set file; bench needs an image or a folder of images.")
    runs = Path(str(project)).expanduser()
    yolokd_edge.check_writable(runs, f"project={project}")
    records: list[dict[str, Any]]
    records, series = yolokd_edge.collect(
        paths,
        source,
        profile,
        threads,
        provider,
        seed,
        time_limit,
        repeats=1 if quick else repeats,
        streams=streams,
        imgsz=imgsz,
        power=power,
        idle_s=idle,
        fp16=fp16,
        cache=cache,
        allow_fallback=allow_fallback,
        trtexec=trtexec,
        precision=precision,
    )

    from ultralytics.utils.files import increment_path  # imports torch: after measuring, not before

    folder = Path(increment_path(runs / str(name or "bench"), exist_ok=exist_ok))
    print(yolokd_edge.table(records))
    yolokd_edge.write_report(records, series, folder / "report.json", overwrite=exist_ok)

    from yolokd.latency.drawing import latency

    latency(records, series, folder / "latency.png")
    print(f"Report, raw samples and plot: {folder}")
    return records
