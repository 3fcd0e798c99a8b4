"""`yolokd study`: which way of distilling helps on one's own data, measured against the noise between seeds.

A study is arms x seeds. Every run is a new process with its own folder, `OUT/ARM/seedN`, whose run.json holds the
settings and whose result.json appears when it is done. There is no other state, so the same command continues after any
interruption. Arms are interleaved by seed: a study that is stopped early has complete pairs.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.config import options
from yolokd.config.checks import check_arguments, check_values, check_writable
from yolokd.config.parse import check_keys, is_file_name, read_yaml, true_or_false, typed
from yolokd.config.recipes import asked_methods, method_keys, read_arguments
from yolokd.data.findings import PROBLEM
from yolokd.data.splits import read_data
from yolokd.detectors.opening import open_model, open_student, scaled_yaml
from yolokd.detectors.teachers import fetched, locate_all
from yolokd.distill import outlook
from yolokd.distill.preflight import preflight
from yolokd.errors import UsageError, as_path
from yolokd.methods import METHODS
from yolokd.methods.base import TAXONOMY_LEVELS
from yolokd.studies.worker import RESULT, SPEC, read_json

SCHEMA = "yolokd.study/1"
ALONE, BUILTIN, TEACHER = "alone", "builtin", "teacher"  # arms that are not methods of ours; the teacher's own folder
OF_THE_STUDY = {
    "method": "list the arms in methods=",
    "distill_model": "name the arm builtin in methods=",
    "seed": "give seeds=",
    "resume": "the same command continues where it stopped",
    **dict.fromkeys(("project", "name", "save_dir", "exist_ok"), "the study's folder is out="),
    "save": "a run needs its checkpoint",
    "mode": "a study trains",
}
FOR_ANY_ARM = ("width", "depth", "trust", "quantize")  # options of ours that concern the student or files
FILES = ("model", "teacher", "distill_model", "data", "method", "pretrained", "classes", "teacher.names")
ARM_NAME = re.compile(r"[A-Za-z0-9_][\w.@+-]*")  # it becomes a folder's name


@dataclass(frozen=True)
class Arm:
    """One way of training the student."""

    name: str
    arguments: dict[str, Any]  # of the training, without the seed and the output folder
    level: str = ""  # of the review's taxonomy, joined by " + "; empty for the student alone and the built-in arm


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
    failed: dict[str, str] = field(default_factory=dict)  # label -> the last line of the log

    def everything(self) -> list[Job]:
        """The runs, the teacher's own validation first."""
        return [*filter(None, [self.teacher]), *self.jobs.values()]


def plan_study(methods: Any, arms: Any, seeds: Any, out: str | Path, arguments: dict[str, Any]) -> Study:
    """Check everything that can be checked without training, including what the folder already holds."""
    if arguments.get("cfg"):
        arguments = {**read_arguments(arguments.pop("cfg")), **arguments}
    _refuse_owned(arguments, "")
    true_or_false("trust", arguments.get("trust", False))
    for key, example in (("model", "model=yolo11n.pt"), ("teacher", "teacher=big.pt"), ("data", "data=my.yaml")):
        if not arguments.get(key):
            raise UsageError(f"no {key}: a study trains a student under a teacher, give {example}.")
    numbers = read_seeds(seeds)
    teachers = [fetched(t) for t in locate_all(arguments["teacher"])]
    arguments = {**arguments, "teacher": teachers[0] if len(teachers) == 1 else teachers}
    chosen = build_arms(read_arms(methods, arms), arguments)
    folder = as_path("out", out).resolve()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "study.json").is_file())):
        raise UsageError(f"out={out} exists and is not the folder of a study: name a new one.")
    check_writable(folder, f"out={out}")
    checked = [preflight_arm(arm) for arm in chosen]
    jobs = {
        (arm.name, seed): Job(f"{arm.name} seed {seed}", folder / arm.name / f"seed{seed}", _run_spec(arm, seed))
        for k, seed in enumerate(numbers)
        for arm in checked[k % len(checked) :] + checked[: k % len(checked)]  # so that no arm is always the first
    }
    plan = Study(folder, checked, numbers, _teacher_job(folder, arguments), jobs, arguments)
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


def read_arms(methods: Any, file: Any) -> dict[str, dict[str, Any]]:
    """Arm name -> its own arguments, the student alone first, from the short list and the file."""
    listed: dict[str, dict[str, Any]] = {}
    words = methods if isinstance(methods, (list, tuple)) else str(methods or "").split(",") if methods else []
    for word in (str(w).strip() for w in words):
        name = Path(word).stem if word.endswith((".yaml", ".yml")) else word
        if not word or name in listed:
            raise UsageError(
                f"methods={methods} has an arm twice or an empty name: write methods=builtin,default,pkd+logit."
            )
        listed[name] = {"method": word.replace("+", ",")}
    given = _read_arms_file(file) if file else {}
    if both := [name for name in given if name in listed]:
        raise UsageError(f"arm {both[0]!r} is in methods= and in arms={file}: keep one.")
    arms = {ALONE: {"method": ALONE}, **listed, **given}
    if len(arms) < 2:
        raise UsageError("no arms to compare with the student alone: give methods=builtin,default or arms=arms.yaml.")
    folders = [name.lower() for name in (*arms, TEACHER)]
    for name in arms:
        if not ARM_NAME.fullmatch(name) or folders.count(name.lower()) > 1:
            raise UsageError(
                f"arm {name!r} cannot name a folder of its own: use other letters, digits and _ . @ + - only."
            )
    return arms


def _read_arms_file(file: Any) -> dict[str, dict[str, Any]]:
    path = as_path("arms", file)
    if not path.is_file():
        raise UsageError(f"arms={file} does not exist: give a YAML file of arms, such as `strong: {{logit.gain: 6}}`.")
    content = read_yaml("arms", file, path)
    if not isinstance(content, dict) or not content:
        raise UsageError(f"arms={file} is not a mapping of arm names to their arguments.")
    for name, own in content.items():
        if own is not None and not isinstance(own, dict):
            raise UsageError(f"arms={file}: arm {name} is {own!r}; write a mapping, such as {{method: pkd}}.")
    arms = {str(n): {str(k): typed(v) for k, v in (o or {}).items()} for n, o in content.items()}
    return {name: {"method": name.replace("+", ","), **own} for name, own in arms.items()}


def build_arms(given: dict[str, dict[str, Any]], common: dict[str, Any]) -> list[Arm]:
    """Each arm's complete training arguments: the common ones, then its own."""
    about_teachers = {key for key in options.OURS if key not in FOR_ANY_ARM}
    if options.is_filter(common.get("classes")):
        about_teachers.discard("classes")  # Ultralytics' own: an arm with all labels would learn something else
    distilling = {k: v for k, v in common.items() if k in about_teachers}
    shared = {k: v for k, v in common.items() if "." not in k and k not in distilling}
    dotted = {k: v for k, v in common.items() if "." in k and k not in options.OURS}
    used: set[str] = set()
    arms = []
    for name, own in given.items():
        method, own = own["method"], {k: v for k, v in own.items() if k != "method"}
        _refuse_owned(own, f"arm {name}: ")
        if "val" in own:  # a best epoch must not be compared with a last one
            raise UsageError(f"arm {name}: val={own['val']} is for all arms alike: give it beside arms=.")
        if method in (ALONE, BUILTIN):
            if odd := [k for k in own if "." in k or (k in options.OURS and k not in FOR_ANY_ARM)]:
                raise UsageError(
                    f"arm {name}: {odd[0]}= is an option of our distillation, which {method} does not have."
                )
            distilled = {"distill_model": common["teacher"]} if method == BUILTIN else {}
            if distilled and not str(common["teacher"]).endswith(".pt"):
                raise UsageError(
                    f"arm {name}: Ultralytics' own distillation takes one teacher, a .pt file: leave it out."
                )
            arms.append(Arm(name, {**shared, **distilled, **own}))
            continue
        keys = method_keys(asked_methods(method, {}))
        for_it = {k: v for k, v in dotted.items() if k.rpartition(".")[0] in keys}
        used |= for_it.keys()
        ours = {"kd": 1.0, **distilling, "method": method}
        levels = {METHODS[key.partition("@")[0]].taxonomy_level for key in keys}
        arms.append(
            Arm(name, {**shared, **ours, **for_it, **own}, " + ".join(k for k in TAXONOMY_LEVELS if k in levels))
        )
    if unused := [k for k in dotted if k not in used]:
        raise UsageError(f"{unused[0]}={dotted[unused[0]]} sets an option of a method that no arm uses.")
    return arms


def _refuse_owned(arguments: dict[str, Any], where: str) -> None:
    for key, instead in OF_THE_STUDY.items():
        if key in arguments:
            raise UsageError(f"{where}{key}={arguments[key]} is not for a study: {instead}.")


def preflight_arm(arm: Arm) -> Arm:
    """The arm with absolute paths, after the checks of `yolokd train`: they take a second, a failed run far longer."""
    arguments = {k: v for k, v in arm.arguments.items() if k not in ("width", "depth")}
    scaling = {k: arm.arguments[k] for k in ("width", "depth") if arm.arguments.get(k) is not None}
    trust = bool(arguments.get("trust"))
    try:
        if "," in str(arguments.get("device", "")):
            raise UsageError(
                f"device={arguments['device']}: a study trains each run on one device, give devices= for several."
            )
        if "teacher" in arguments:
            folded = options.fold(arguments)
        else:
            check_keys(arguments, [*DEFAULT_CFG_DICT, *options.OURS, *options.HIDDEN])
            folded = arguments
        check_arguments(folded, trust)
        if scaling:
            arguments["model"] = scaled_yaml(str(arguments["model"]), **scaling, trust=trust)
        student = open_student(arguments["model"], trust=trust)
        if "teacher" in arguments:
            preflight(student, folded, trust)
        else:
            read_data(arguments, trust)
        if arguments.get("distill_model"):
            open_model(arguments["distill_model"], "distill_model", trust)
    except UsageError as error:
        raise UsageError(f"arm {arm.name}: {error}") from error
    for key in ("model", "data", "teacher", "distill_model"):
        if key in arguments and Path(str(arguments[key])).is_file():
            arguments[key] = str(Path(str(arguments[key])).resolve())
    return Arm(arm.name, arguments, arm.level)


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
        sums = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()]
        if sums:
            hashes[key] = sums[0] if len(sums) == 1 else sums
    return hashes


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
