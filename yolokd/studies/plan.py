"""`yolokd study`: which way of distilling helps on one's own data, measured against the noise between seeds.

A study is arms x seeds. Every run is a new process with its own folder, `OUT/ARM/seedN`, whose run.json holds the
settings and whose result.json appears when it is done. There is no other state, so the same command continues after any
interruption. Arms are interleaved by seed: a study that is stopped early has complete pairs.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.config import options
from yolokd.config.checks import check_arguments, check_values, check_writable
from yolokd.config.parse import check_keys, is_file_name, true_or_false
from yolokd.config.recipes import read_arguments
from yolokd.data.findings import PROBLEM
from yolokd.data.splits import read_data
from yolokd.detectors.opening import open_model, open_student, scaled_yaml
from yolokd.detectors.teachers import fetched, locate_all
from yolokd.distill import outlook
from yolokd.distill.preflight import Ready, preflight, recheck
from yolokd.errors import UsageError, as_path
from yolokd.studies.arms import ALONE, OWN, TEACHER, Arm, build_arms, read_arms, read_starts, refuse_owned, swept
from yolokd.studies.worker import RESULT, SPEC, read_json

SCHEMA = "yolokd.study/1"
FILES = ("model", "teacher", "distill_model", "data", "method", "pretrained", "classes", "teacher.names")


@dataclass(frozen=True)
class Job:
    """One run: its folder and the content of its run.json."""

    label: str
    folder: Path
    spec: dict[str, Any]

    def result(self) -> dict[str, Any] | None:
        """The run's result, or None until it is done."""
        return read_json(self.folder / RESULT)


@dataclass
class Study:
    """A plan whose checks have passed; nothing is written yet."""

    out: Path
    arms: list[Arm]
    seeds: list[int]
    teacher: Job | None
    jobs: dict[tuple[str, int], Job]  # (arm, seed), in the order in which they run
    common: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)  # what of methods=all the pair cannot have -> why
    failed: dict[str, str] = field(default_factory=dict)  # label -> the last line of the log

    def everything(self) -> list[Job]:
        """The runs, the teacher's own validation first."""
        return [*filter(None, [self.teacher]), *self.jobs.values()]


def plan_study(
    methods: Any, arms: Any, seeds: Any, out: str | Path, arguments: dict[str, Any], starts: Any = None
) -> Study:
    """Check everything that can be checked without training, including what the folder already holds."""
    given = {"methods": methods, "arms": arms, "starts": starts}
    if arguments.get("cfg"):
        file = read_arguments(arguments["cfg"], of_study=True)
        of_file = {key: file.pop(key, None) for key in given}
        given = {key: of_file[key] if value is None else value for key, value in given.items()}
        arguments = {**file, **{k: v for k, v in arguments.items() if k != "cfg"}}
    refuse_owned(arguments, "")
    true_or_false("trust", arguments.get("trust", False))
    for key, example in (("model", "model=yolo11n.pt"), ("teacher", "teacher=big.pt"), ("data", "data=my.yaml")):
        if not arguments.get(key):
            raise UsageError(f"no {key}: a study trains a student under a teacher, give {example}.")
    numbers = read_seeds(seeds)
    teachers = [fetched(t) for t in locate_all(arguments["teacher"])]
    arguments = {**arguments, "teacher": teachers[0] if len(teachers) == 1 else teachers}
    from_each = read_starts(given["starts"], arguments)
    read = read_arms(given["methods"], given["arms"])
    chosen = build_arms(read, arguments, from_each, swept(given["methods"]))
    folder = as_path("out", out).resolve()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "study.json").is_file())):
        raise UsageError(f"out={out} exists and is not the folder of a study: name a new one.")
    check_writable(folder, f"out={out}")
    checked, left_out = check_arms(chosen)
    jobs = {
        (arm.name, seed): Job(f"{arm.name} seed {seed}", folder / arm.name / f"seed{seed}", _run_spec(arm, seed))
        for k, seed in enumerate(numbers)
        for arm in checked[k % len(checked) :] + checked[: k % len(checked)]  # so that no arm is always the first
    }
    plan = Study(folder, checked, numbers, _teacher_job(folder, arguments), jobs, arguments, left_out)
    for job in plan.everything():
        _refuse_other_settings(job, out)
    return plan


def read_seeds(seeds: Any) -> list[int]:
    """The seeds that seeds=3 or seeds=0,4,7 stands for."""
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 0 < seeds <= 1000:
        return list(range(seeds))
    if isinstance(seeds, (list, tuple)) and seeds and all(type(s) is int and s >= 0 for s in seeds):
        if len(set(seeds)) == len(seeds):
            return list(seeds)
    raise UsageError(
        f"seeds={seeds} is neither a number of seeds nor a list of different seeds: give seeds=3 or seeds=0,4,7."
    )


def read_devices(devices: Any, jobs: int | None, engine: str, arguments: dict[str, Any]) -> list[str]:
    """The device of each run that may be at work, from devices=0,1 or jobs=2; an empty one is the run's own choice."""
    if devices is None:
        if engine == "ray" and jobs is not None:
            raise UsageError(
                f"jobs={jobs} is for one machine: with engine=ray as many run as the cluster has room for."
            )
        return [""] * (jobs or 1)
    words = devices if isinstance(devices, (list, tuple)) else str(devices).split(",")
    names = [str(word).strip() for word in words]
    gpus = [name for name in names if name != "cpu"]
    if not all(names) or len(set(gpus)) < len(gpus):
        raise UsageError(f"devices={devices} names a device twice, or none: write devices=0,1,2,3.")
    for name in dict.fromkeys(names):
        check_values({"device": name})
    for key, value in (("jobs", jobs), ("device", arguments.get("device")), ("engine", engine)):
        if value not in (None, "", "local"):
            raise UsageError(
                f"{key}={value} and devices= both say where runs are at work: one runs on each device, keep one of the "
                "two."
            )
    return names


def check_arms(arms: list[Arm]) -> tuple[list[Arm], dict[str, str]]:
    """The arms that the pair can have, checked, and what of methods=all it cannot have with the reason.

    Raises:
        UsageError: an arm that was named cannot be trained, or nothing of methods=all can.
    """
    pair: Ready | None = None
    checked: list[Arm] = []
    left_out: dict[str, str] = {}
    for arm in arms:
        start = f"starts={arm.start}"
        if arm.title in left_out or (arm.swept and start in left_out):
            continue  # what a method cannot compare it cannot from any start
        if not arm.swept:
            checked.append(preflight_arm(arm))
            continue
        check_own_options(arm)
        pair = pair or open_pair(arm)
        try:
            checked.append(preflight_arm(arm, pair))
        except UsageError as error:
            why = str(error).removeprefix(f"arm {arm.name}: ")
            left_out[start if arm.title == ALONE else arm.title] = why
    if left_out and not any(arm.swept and arm.title != ALONE for arm in checked):
        raise UsageError(f"nothing of methods=all can be had: {next(iter(left_out.values()))}")
    return checked, left_out


def check_own_options(arm: Arm) -> None:
    """Refuse an option that is wrong whatever the pair is: it must not leave out its method unnoticed."""
    try:
        options.fold({k: v for k, v in arm.arguments.items() if k not in ("width", "depth")})
    except UsageError as error:
        raise UsageError(f"arm {arm.name}: {error}") from error


def open_pair(arm: Arm) -> Ready:
    """Student and teachers of an arm, opened once for all of methods=all; what no method needs is not checked."""
    plain = {k: v for k, v in arm.arguments.items() if "." not in k or k in options.OURS}
    return _opened({**plain, "method": "default", "kd": 0, "init": OWN})


def _opened(arguments: dict[str, Any]) -> Ready:
    trust = bool(arguments.get("trust"))
    arguments = _scaled(arguments)
    folded = options.fold(arguments)
    check_arguments(folded, trust)
    return preflight(open_student(arguments["model"], trust=trust), folded, trust)


def _scaled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments without width= and depth=, which are in their model= then."""
    rest = {k: v for k, v in arguments.items() if k not in ("width", "depth")}
    if scaling := {k: arguments[k] for k in ("width", "depth") if arguments.get(k) is not None}:
        rest["model"] = scaled_yaml(str(rest["model"]), **scaling, trust=bool(arguments.get("trust")))
    return rest


def preflight_arm(arm: Arm, pair: Ready | None = None) -> Arm:
    """The arm with absolute paths, after the checks of `yolokd train`: they take a second, a failed run far longer.

    Args:
        pair: student and teachers, if they were opened already; the arm differs from theirs by method and start only.
    """
    arguments = arm.arguments
    trust = bool(arguments.get("trust"))
    try:
        if "," in str(arguments.get("device", "")):
            raise UsageError(
                f"device={arguments['device']}: a study trains each run on one device, give devices= for several."
            )
        if "teacher" in arguments:
            arguments = _scaled(arguments)
            if pair is None:
                _opened(arguments)
            else:
                recheck(pair, options.fold(arguments))
        else:
            check_keys(arguments, [*DEFAULT_CFG_DICT, *options.OURS, *options.HIDDEN])
            arguments = _scaled(arguments)
            check_arguments(arguments, trust)
            open_student(arguments["model"], trust=trust)
            read_data(arguments, trust)
        if arguments.get("distill_model"):
            open_model(arguments["distill_model"], "distill_model", trust)
    except UsageError as error:
        raise UsageError(f"arm {arm.name}: {error}") from error
    arguments = dict(arguments)
    for key in ("model", "data", "teacher", "distill_model"):
        if key in arguments and Path(str(arguments[key])).is_file():
            arguments[key] = str(Path(str(arguments[key])).resolve())
    return replace(arm, arguments=arguments)


def check_data(plan: Study) -> None:
    """The part of `yolokd check` that costs seconds, once for all arms: what it finds is logged, a problem refused."""
    teacher = plan.common["teacher"]
    teachers = [teacher] if isinstance(teacher, str) else teacher
    alone = plan.arms[0].arguments  # which comes first
    found = outlook.of_pair(alone, teachers, bool(plan.common.get("trust")))
    if problems := [finding.text.rstrip(".") for finding in found if finding.level == PROBLEM]:
        raise UsageError(f"{problems[0]}. With check=False the study starts in spite of it.")


def _run_spec(arm: Arm, seed: int) -> dict[str, Any]:
    arguments = {**arm.arguments, "seed": seed}
    return {"kind": "train", "arguments": arguments, "inputs": _hashes(arguments)}


def _teacher_job(out: Path, common: dict[str, Any]) -> Job | None:
    """The teacher's validation, on the same images and at the same size as the students'. None if Ultralytics cannot
    validate it: several teachers, a backbone, a foreign ONNX file, or a task for which the data has no labels.
    """
    teacher = str(common["teacher"])
    if not teacher.endswith((".pt", ".onnx")) or common.keys() & {"teacher.contract", "teacher.names"}:
        return None
    trust = bool(common.get("trust"))
    tasks = [open_student(common[key], key, trust).task for key in ("teacher", "model") if teacher.endswith(".pt")]
    if len(set(tasks)) > 1:
        return None
    of_validation = ("data", "imgsz", "batch", "device", "workers", "split", "single_cls", "classes", "iou", "max_det")
    arguments = {"model": common["teacher"], "imgsz": DEFAULT_CFG_DICT["imgsz"]}
    arguments |= {k: common[k] for k in of_validation if k in common}
    arguments |= {"trust": True} if trust else {}
    if is_file_name(given := arguments.get("classes")) or isinstance(given, dict):
        arguments["class_map"] = options.read_classes(arguments.pop("classes"))
    if not isinstance(arguments.get("batch", 16), int) or arguments.get("batch", 16) < 1:
        del arguments["batch"]  # -1 and fractions such as 0.8 let the training choose it
    if Path(str(arguments["data"])).is_file():
        arguments["data"] = str(Path(str(arguments["data"])).resolve())
    return Job(TEACHER, out / TEACHER, {"kind": "val", "arguments": arguments, "inputs": _hashes(arguments)})


def _hashes(arguments: dict[str, Any]) -> dict[str, Any]:
    """SHA-256 of the files that the arguments name: with a changed teacher or recipe it is another run."""
    hashes: dict[str, Any] = {}
    for key in FILES:
        given = arguments.get(key)
        files = [Path(str(g)) for g in (given if isinstance(given, list) else [given])]
        sums = [_sum(f, f.stat().st_mtime_ns) for f in files if f.is_file()]
        if sums:
            hashes[key] = sums[0] if len(sums) == 1 else sums
    return hashes


@functools.lru_cache(maxsize=64)
def _sum(file: Path, changed: int) -> str:
    """SHA-256 of a file that was last changed at that time: hundreds of runs may have the same teacher."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _refuse_other_settings(job: Job, out: str | Path) -> None:
    """Refuse a folder with a run of other settings: it must neither be mixed in nor be lost."""
    before = read_json(job.folder / SPEC)
    if before is None:
        return
    settings = json.loads(json.dumps(job.spec, default=str))
    for part in ("arguments", "inputs"):
        was, now = before.get(part, {}), settings[part]
        for key in (*now, *was):
            if was.get(key) != now.get(key):
                what = (
                    f"the file {key}= has changed"
                    if part == "inputs"
                    else f"{key}={was.get(key)} then, {now.get(key)} now"
                )
                raise UsageError(f"out={out} holds {job.label} with other settings ({what}): name another folder.")


# --- The runs -------------------------------------------------------------------------------------------------------
