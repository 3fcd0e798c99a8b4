"""What is asked of a fit, checked before anything is measured or trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.config import options
from yolokd.config.checks import check_arguments, check_writable
from yolokd.config.parse import check_keys, is_number, non_negative, pixels, true_or_false
from yolokd.config.recipes import read_arguments
from yolokd.data.splits import read_data, split_images
from yolokd.detectors import TASKS
from yolokd.detectors.opening import open_model, open_student
from yolokd.detectors.teachers import fetched, locate_all
from yolokd.distill.preflight import Ready, preflight
from yolokd.errors import UsageError, as_path
from yolokd.fitting.candidates import Candidate, Family, grid, layout_of, least_side, store_family, yaml_of
from yolokd.fitting.times import Budget, check_percentile, read_budget
from yolokd.init import transfer
from yolokd.studies.plan import read_devices
from yolokd.studies.worker import read_json, write_json
from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.common import EdgeError, sha256

SCHEMA = "yolokd.fit/1"
HERE, BOARD = "here", "board"
BENCH = "bench."  # before an option of `yolokd bench`
SETTINGS = "fit.json"
OF_THE_FIT = {
    "model": "it is what is searched for; family= names another layout than the teacher's",
    "width": "give widths=, a list",
    "depth": "give depths=, a list",
    "init": "every candidate starts from its teacher",
    "resume": "the same command goes on where it stopped",
    "distill_model": "the teacher is teacher=",
    "check": "run `yolokd check` beforehand",
    "report": "`yolokd report` makes one of the run in the folder's student/train",
    "save": "the student needs its checkpoint",
    "val": "candidates are compared by their validation",
    "mode": "a fit trains",
    **dict.fromkeys(("project", "name", "save_dir", "exist_ok"), "the folder is out="),
}
OWN = (
    "teacher", "data", "budget", "device", "accuracy", "family", "widths", "depths", "sizes", "search", "out",
    "devices", "threads",
)  # fmt: skip
KNOWN = (*OWN, *DEFAULT_CFG_DICT, *options.OURS, *options.HIDDEN)


@dataclass(frozen=True)
class Request:
    """A fit that can begin."""

    out: Path
    teacher: str
    budget: Budget
    device: str  # where the student is to run: here, board, or reports with commas between
    reports: tuple[Path, ...]
    accuracy: float | None  # least mAP50-95 in points
    search: float  # share of a training that the search may take
    pool: list[str]  # devices of trainings
    threads: int | None
    bench: dict[str, Any]  # options of the benchmark
    arguments: dict[str, Any]  # of every training, without model and imgsz
    data: dict[str, Any]  # Ultralytics' description
    images: list[Path]  # of the validation
    family: Family
    own_family: bool  # whether it is the teacher's
    candidates: list[Candidate]
    trust: bool

    @property
    def epochs(self) -> int:
        return int(self.arguments.get("epochs") or DEFAULT_CFG_DICT["epochs"])

    @property
    def images_an_epoch(self) -> int:
        """The number of training images, of which fraction= may leave some out."""
        count, fraction = len(split_images(self.data, "train")), self.arguments.get("fraction") or 1.0
        return max(round(count * fraction), 1) if fraction <= 1 else min(count, int(fraction))

    @property
    def largest(self) -> Candidate:
        """The first of the grid, on which detections are measured."""
        return self.candidates[0]

    def training(self, candidate: Candidate) -> dict[str, Any]:
        """The arguments of a candidate's training."""
        model = {"model": yaml_of(self.family, candidate), "imgsz": candidate.imgsz}
        return {**self.arguments, **model, "teacher": self.teacher, "init": "teacher"}

    def ready(self, candidate: Candidate) -> Ready:
        """Student and teacher of a candidate, once its training was seen to be possible."""
        folded = options.fold(self.training(candidate))
        check_arguments(folded, self.trust)
        return preflight(open_student(folded["model"], trust=self.trust), folded, self.trust)


def read_request(
    teacher: Any, data: Any, budget: Any, device: Any, accuracy: Any, family: Any, widths: Any, depths: Any,
    sizes: Any, search: Any, out: Any, devices: Any, threads: Any, arguments: dict[str, Any],
) -> Request:  # fmt: skip
    """Check what can be checked without measuring; then the folder is made, and notes what it is for."""
    arguments = read_arguments_of_all({"teacher": teacher, "data": data}, arguments)
    asked = read_budget(budget)
    trust = true_or_false("trust", arguments.get("trust", False))
    bench = {k.removeprefix(BENCH): arguments.pop(k) for k in list(arguments) if k.startswith(BENCH)}
    check_bench(bench, asked)
    reports = read_device(device)
    least = None if accuracy is None else read_accuracy(accuracy)
    non_negative("search", search)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UsageError(f"threads={threads} is not a whole number of 1 or more.")
    pool = read_devices(devices, None, "local", {})
    located = one_teacher(teacher)
    model = open_teacher(located, trust)
    largest = pixels("imgsz", arguments.pop("imgsz", None) or trained_at(model))
    arguments |= {"data": str(Path(str(data)).resolve()) if Path(str(data)).is_file() else data}
    described = read_data(arguments, trust)
    if int(described.get("channels", 3)) != 3:
        raise UsageError(f"data={data} has images of {described['channels']} channels: a fit exports colour models.")
    folder, layout = check_folder(out), layout_of(model.model, family, trust)
    settings = {
        "budget": str(asked), "family": None if family is None else str(family), "widths": widths, "depths": depths,
        "sizes": sizes, "imgsz": largest, "bench": bench, "search": search, **arguments,
    }  # fmt: skip
    about = {"settings": settings, "inputs": {"teacher": sha256(Path(located)), "layout": digest(layout)}}
    refuse_other_settings(folder, about, out)
    stored = store_family(layout, len(names_of(arguments, described)), described.get("kpt_shape"))
    request = Request(
        folder, located, asked, str(device), reports, least, float(search), pool, threads, bench, arguments, described,
        split_images(described, str(arguments.get("split") or "val")), stored, family is None,
        grid(stored, largest, widths, depths, sizes, least_side(open_student(stored.file).model)), trust,
    )  # fmt: skip
    refuse_unstartable(request)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, {"schema": SCHEMA, **about})
    return request


def read_arguments_of_all(needed: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of every training, those of the file that cfg= names among them."""
    given = {k: v for k, v in arguments.items() if k != "cfg"}
    if arguments.get("cfg"):
        given = {**read_arguments(arguments["cfg"]), **given}
    for key, instead in OF_THE_FIT.items():
        if key in given:
            raise UsageError(f"{key}={given[key]} is not for a fit: {instead}.")
    for key, value in needed.items():
        if not value:
            raise UsageError(f"no {key}: give {key}={'big.pt' if key == 'teacher' else 'my.yaml'}.")
    check_keys([key for key in given if "." not in key], KNOWN)
    return given


def check_bench(bench: dict[str, Any], budget: Budget) -> None:
    """Refuse options that `yolokd bench` would, and a percentile that it cannot give."""
    lists = [key for key, value in bench.items() if isinstance(value, (list, tuple)) or "," in str(value)]
    if lists:
        raise UsageError(f"bench.{lists[0]}={bench[lists[0]]} is a list: a budget is for one setting, give one value.")
    if kept := [key for key in bench if key in ("models", "source", "imgsz", "precision")]:
        raise UsageError(f"bench.{kept[0]}={bench[kept[0]]} is chosen by the fit: leave it out.")
    try:
        asked = BenchOptions(["model.onnx"], "images", **bench)
        asked.combinations()
        check_percentile(budget, asked)
    except TypeError:
        known = ", ".join(f for f in BenchOptions.__dataclass_fields__ if f not in ("models", "source"))
        odd = next(key for key in bench if key not in BenchOptions.__dataclass_fields__)
        raise UsageError(f"bench.{odd} is no option of `yolokd bench`, which has {known}.") from None
    except EdgeError as error:
        raise UsageError(f"{error}") from error


def read_device(device: Any) -> tuple[Path, ...]:
    """The reports that device= names; none for here and board."""
    if device in (HERE, BOARD):
        return ()
    files = tuple(as_path("device", word.strip()) for word in str(device).split(","))
    for file in files:
        if file.suffix != ".json":
            raise UsageError(
                f"device={device} is where the student is to run: give here, board, or the report.json that a board "
                "wrote; devices=0,1 says where trainings run."
            )
        if not file.is_file():
            raise UsageError(f"device={file} does not exist: give the report.json that measure.sh wrote on the board.")
    return files


def read_accuracy(accuracy: Any) -> float:
    """The least mAP50-95 in points."""
    if not is_number(accuracy) or not 0 < accuracy <= 100:
        raise UsageError(f"accuracy={accuracy} is not a mAP50-95 in points, from 0 to 100, such as accuracy=45.")
    return float(accuracy)


# --- the teacher ----------------------------------------------------------------------------------------------------


def one_teacher(teacher: Any) -> str:
    """Path of the teacher's checkpoint."""
    located = locate_all(teacher)
    if len(located) > 1:
        raise UsageError(f"teacher={teacher} names {len(located)} teachers, and a student starts from one: give one.")
    if not located[0].endswith(".pt"):
        what = "an ONNX file" if located[0].endswith(".onnx") else "a transformer of timm"
        raise UsageError(
            f"teacher={teacher} is {what}, which no student can start from: give the .pt file of a YOLO or RT-DETR."
        )
    return fetched(located[0])


def open_teacher(file: str, trust: bool) -> Any:
    """The teacher as Ultralytics' own object; refused where its weights cannot be a student's start."""
    model = open_model(file, "teacher", trust)
    if model.task not in TASKS:
        raise UsageError(
            f"teacher={file} is for the task {model.task}, which no student can start from: give one for "
            f"{', '.join(TASKS)}."
        )
    return model


def trained_at(model: Any) -> int:
    """The image size of a checkpoint's training."""
    trained: Any = (model.ckpt or {}).get("train_args", {}).get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    return int(max(trained) if isinstance(trained, (list, tuple)) else trained)


def refuse_unstartable(request: Request) -> None:
    """Refuse a family whose layers the teacher does not have, and whatever a training would refuse."""
    ready = request.ready(request.largest)
    try:
        transfer.candidates("teacher", ready.student, ready.plans[0].teacher)
    except UsageError:
        raise UsageError(
            f"teacher={request.teacher} shares no layer with {request.family.file.stem}, so that no student can start "
            "from it: leave family= out, or give a nearer one."
        ) from None


def names_of(arguments: dict[str, Any], data: dict[str, Any]) -> dict[int, str]:
    """The classes that a student of the data has."""
    return {0: "item"} if arguments.get("single_cls") else dict(data["names"])


# --- the folder -----------------------------------------------------------------------------------------------------


def check_folder(out: Any) -> Path:
    """The run's folder, which must be new, empty or a fit's."""
    folder = as_path("out", out).resolve()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / SETTINGS).is_file())):
        raise UsageError(f"out={out} exists and is not the folder of a fit: name a new one.")
    check_writable(folder, f"out={out}")
    return folder


def digest(content: Any) -> str:
    """A checksum of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def refuse_other_settings(folder: Path, about: dict[str, Any], out: Any) -> None:
    """Refuse a folder of a fit with other settings: it must neither be mixed in nor be lost."""
    before = read_json(folder / SETTINGS)
    if before is None:
        return
    now = json.loads(json.dumps(about, default=str))
    for part in ("settings", "inputs"):
        was = before.get(part, {})
        for key in sorted({*was, *now[part]}):
            if was.get(key) != now[part].get(key):
                said = (
                    f"the {key} has changed"
                    if part == "inputs"
                    else f"{key}={was.get(key)} then, {now[part].get(key)} now"
                )
                raise UsageError(f"out={out} holds a fit with other settings ({said}): name another folder.")
