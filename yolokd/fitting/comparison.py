"""A fit's student beside what else keeps its latency: the arms of a study, each measured before it is one.

The arms lie in the fit's folder as a file, arms.yaml, which may be edited before the study begins. Another student than
the fit's takes the same number of epochs over the same images.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import SETTINGS as UPSTREAM

from yolokd.config.parse import true_or_false
from yolokd.data.splits import read_data
from yolokd.detectors.opening import open_model
from yolokd.distill.pruned import refuse_other_classes
from yolokd.errors import UsageError, as_path
from yolokd.fitting import measuring, pruning
from yolokd.fitting.candidates import Candidate, store_family, task_of
from yolokd.fitting.files import FINAL, export_random, export_silent
from yolokd.fitting.measuring import Journal
from yolokd.fitting.outcome import table
from yolokd.fitting.request import SETTINGS, names_of
from yolokd.fitting.times import Budget, refuse_other_device
from yolokd.init.channel_choice import COPIED, RANDOM
from yolokd.studies.arms import ALONE
from yolokd.studies.worker import read_json

ARMS, PLACE, PRUNED = "arms.yaml", "compare", "pruned.pt"
STANDARD = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
WEIGHTS = {"yolov5n": "yolov5nu"}  # where a standard size's file has another name than its YAML
ENDINGS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb"}  # of the names, by task
TAKEN = ("model", "teacher", "data", "imgsz", "arms", "methods")  # what a fit brings to its study
HEAD = """# For `yolokd study fit={folder}`: what keeps its latency. The study adds the fit's student alone, from
# random weights. Leave out what you do not want before the study begins.
"""


@dataclass(frozen=True)
class Finished:
    """A fit that has come to its end."""

    folder: Path
    arguments: dict[str, Any]  # of the student's training
    student: dict[str, Any]  # what result.json says of it
    budget: Budget
    beyond: float  # ms that detections take
    bench: dict[str, Any]  # options of the benchmark
    record: dict[str, Any] | None  # of the student's file
    sizes: list[int]  # image sizes that were candidates, the largest first

    @property
    def trust(self) -> bool:
        return self.arguments.get("trust") is True

    @property
    def ms(self) -> float:
        """The student's latency."""
        return float(self.student["measured_ms"] or self.student["predicted_ms"])

    @property
    def reference(self) -> Path:
        """The file of the student without training, which finds nothing."""
        return self.folder / "models" / f"{self.student['name']}.onnx"

    @property
    def keypoints(self) -> Any:
        """The shape of the data's keypoints, for poses."""
        return read_data(self.arguments, self.trust).get("kpt_shape")


def arguments_of(fit: str | Path, standard: Any = None, prune: Any = True, **given: Any) -> dict[str, Any]:
    """The arguments of `yolokd.study` that compares a fit's student with what else keeps its latency.

    Args:
        fit: the folder of a finished `yolokd fit`, on whose device this runs.
        standard: names of standard sizes, such as yolo11n,yolo26n; by default the smallest of each family. False for
            none.
        prune: whether the teacher, pruned to the student's latency, is among the arms.
        **given: whatever else the study takes.

    Raises:
        UsageError: something asked for cannot be done; nothing was trained.
    """
    finished = read_fit(fit)
    for key in TAKEN:
        if key in given:
            raise UsageError(f"{key}={given[key]} is not for fit=, which brings its own: leave it out.")
    prune, names = true_or_false("prune", prune), read_standard(standard, finished)
    file = finished.folder / ARMS
    if not file.is_file():
        write_arms(finished, names, prune, file)
    else:
        print(f"Arms of {file}, as they are there; delete it to have them found anew.", flush=True)
    common = {k: v for k, v in finished.arguments.items() if k not in ("init", "method", "init.channels")}
    return {**common, "arms": str(file), "out": str(finished.folder / "study"), **given}


def read_fit(fit: str | Path) -> Finished:
    """What a fit's folder tells."""
    folder = as_path("fit", fit)
    run, result, settings = (read_json(folder / part) for part in ("student/run.json", "result.json", SETTINGS))
    if not run or not result or not settings:
        raise UsageError(f"fit={fit} is not the folder of a finished fit: give one that has a result.json.")
    if "beyond_ms" not in result:
        raise UsageError(f"fit={fit} is of an earlier version: give its `yolokd fit` command once more.")
    stage, _, percentile = result["budget"]["metric"].partition(".")
    records = Journal(folder, str(fit)).records
    sizes = {int(file.removesuffix(".onnx").rpartition("-")[2]) for file in records if file.startswith("w")}
    return Finished(
        folder.resolve(), run["arguments"], result["student"], Budget(stage, percentile, result["budget"]["ms"]),
        float(result["beyond_ms"]), settings["settings"]["bench"], records.get(FINAL),
        sorted(sizes, reverse=True),
    )  # fmt: skip


def read_standard(standard: Any, finished: Finished) -> list[str]:
    """The names of standard sizes for the student's task, without ending."""
    task = task_of(yaml_model_load(finished.arguments["model"]))
    own = [f"{name}{ENDINGS[task]}" for name in STANDARD]
    if standard is None:
        return [name for name in own if layout(name) is not None]
    if standard is False:
        return []
    words = standard if isinstance(standard, (list, tuple)) else str(standard).split(",")
    names = [str(word).strip().removesuffix(".pt").removesuffix(".yaml") for word in words]
    for name in names:
        if (found := layout(name)) is None or task_of(found) != task:
            raise UsageError(
                f"standard={name} is no model of Ultralytics for the task {task}: give names such as {own[1]},{own[4]}."
            )
    if len(set(names)) < len(names):
        raise UsageError(f"standard={standard} names a model twice: leave one out.")
    return names


def layout(name: str) -> dict[str, Any] | None:
    """The layout of a standard size; None if there is none of that name."""
    try:
        return dict(yaml_model_load(f"{name}.yaml"))
    except FileNotFoundError:
        return None


# --- the arms -------------------------------------------------------------------------------------------------------


def write_arms(finished: Finished, names: Sequence[str], prune: bool, file: Path) -> None:
    """Find the arms, and write them."""
    given, student = finished.arguments, finished.student
    if names or prune:
        refuse_unmeasurable(finished)
    teacher = open_model(given["teacher"], "teacher", finished.trust)
    if prune:
        pruning.require()
        pruning.refuse_unprunable(teacher.model, f"teacher={given['teacher']}")
        refuse_other_classes(teacher.model, len(classes(finished)))
    distilled = {"method": given.get("method", "default")}
    start = {**distilled, "init": "teacher"}
    arms: dict[str, Any] = {"fit": start}
    if not isinstance(teacher.model.model[-1], RTDETRDecoder):  # whose channels can only be solved for
        arms |= {f"fit-{how}": {**start, "init.channels": how} for how in (COPIED, RANDOM)}
    rows = [[", ".join(arms), str(student["imgsz"]), f"{finished.ms:.2f}"]]
    if prune:
        ratio, ms = prune_to(finished, teacher)
        cut = {"model": str(finished.folder / PLACE / PRUNED)}
        arms |= {"pruned": {"method": ALONE, **cut}, "pruned-distilled": {**distilled, **cut, "init": "own"}}
        rows.append([f"pruned, pruned-distilled: {ratio:.0%} of the channels gone", str(student["imgsz"]), f"{ms:.2f}"])
    for name, (imgsz, ms) in standard_within(finished, names).items():
        own: dict[str, Any] = {"model": at_hand(name), "imgsz": imgsz}
        arms |= {name: {"method": ALONE, **own}, f"{name}-distilled": {**distilled, **own}}
        weights = "pretrained" if str(own["model"]).endswith(".pt") else "random weights"
        rows.append([f"{name}, {name}-distilled: {weights}", str(imgsz), f"{ms:.2f}"])
    print(table(["arms", "image size", f"{finished.budget.metric} ms"], rows), flush=True)
    part = file.with_name(f"{file.name}.part")
    part.write_text(HEAD.format(folder=finished.folder) + yaml.safe_dump(arms, sort_keys=False), encoding="utf-8")
    part.replace(file)


def at_hand(name: str) -> str:
    """The pretrained weights of a standard size where they are on this machine, else its YAML."""
    file = f"{WEIGHTS.get(name, name)}.pt"
    for place in (Path(), Path(UPSTREAM["weights_dir"])):
        if (place / file).is_file():
            return str((place / file).resolve())
    print(f"{file} is neither here nor in {UPSTREAM['weights_dir']}: {name} begins with random weights.", flush=True)
    return f"{name}.yaml"


def classes(finished: Finished) -> dict[int, str]:
    """The classes of the data."""
    return names_of(finished.arguments, read_data(finished.arguments, finished.trust))


# --- their latency --------------------------------------------------------------------------------------------------


def refuse_unmeasurable(finished: Finished) -> None:
    """Refuse a fit beside whose student nothing can be measured."""
    if finished.record is None or not finished.reference.is_file():
        what = FINAL if finished.record is None else finished.reference.name
        raise UsageError(
            f"fit={finished.folder} has no {what} that others could be measured beside: give prune=False and "
            "standard=False."
        )


def measured(finished: Finished, files: Sequence[Path]) -> list[float]:
    """ms of files without detections, as if measured together with the fit's student and with as many detections."""
    assert finished.record is not None
    records = measuring.measure(
        [finished.reference, *files], finished.folder / "images", finished.folder / PLACE, finished.bench
    )
    refuse_other_device(finished.record, records[0], f"this machine, for the fit {finished.folder},", finished.folder)
    reference, *others = (finished.budget.of(record) + finished.beyond for record in records)
    return [ms * finished.ms / reference for ms in others]


def prune_to(finished: Finished, teacher: Any) -> tuple[float, float]:
    """Prune the teacher to the student's latency: the share of its channels that goes, and ms; stores the network."""
    place, given, names = finished.folder / PLACE, f"teacher={finished.arguments['teacher']}", classes(finished)
    place.mkdir(exist_ok=True)

    def cost(ratio: float) -> float:
        one = copy.deepcopy(teacher)
        one.model = pruning.prune(teacher.model, ratio, given)
        file = export_silent(one, finished.student["imgsz"], names, place / f"pruned-{ratio:.4f}.onnx")
        return measured(finished, [file])[0]

    ratio, ms = pruning.bisected(cost, finished.ms)
    found = pruning.prune(teacher.model, ratio, given).half()
    torch.save({"model": found, "train_args": (teacher.ckpt or {}).get("train_args", {}), "epoch": -1}, place / PRUNED)
    return ratio, ms


def standard_within(finished: Finished, names: Sequence[str]) -> dict[str, tuple[int, float]]:
    """The standard sizes that keep the budget: the largest image size at which each does, and ms there."""
    found: dict[str, tuple[int, float]] = {}
    known, left = classes(finished), list(names)
    for imgsz in finished.sizes if left else ():
        files = []
        for name in left:
            family = store_family(layout(name) or {}, len(known), finished.keypoints)
            as_published = Candidate(family.width, family.depth, imgsz)
            files.append(export_random(family, as_published, known, finished.folder / PLACE / f"{name}-{imgsz}.onnx"))
        times = dict(zip(left, measured(finished, files), strict=True)) if left else {}
        found |= {name: (imgsz, ms) for name, ms in times.items() if ms <= finished.budget.ms}
        left = [name for name in left if name not in found]
    if left:
        print(f"Over the budget at every image size: {', '.join(left)}.", flush=True)
    return found
