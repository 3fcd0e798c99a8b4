"""key=value in, (our options, Ultralytics' arguments) out; a mistake in ours is one sentence with the nearest match.

Ours are those in OURS and the dotted options of a method, such as `cwd.tau=2`, `pkd@backbone.gain=0.5`. They are
folded into one plain dict, the trainer's `kd` argument, which Ultralytics carries through args.yaml, resume and its DDP
workers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.config.parse import check_keys, is_file_name, non_negative, one_of, pixels, read_yaml, true_or_false
from yolokd.config.recipes import asked_methods
from yolokd.data.unlabeled import list_folder
from yolokd.detectors.onnx import CONTRACTS
from yolokd.detectors.teachers import locate_all
from yolokd.errors import UsageError

OURS = (  # beside the dotted ones
    "teacher", "teachers", "method", "kd", "init", "balance", "width", "depth", "levels", "teacher_imgsz", "classes",
    "unlabeled", "unlabeled_ratio", "teacher.contract", "teacher.names", "cache_views", "cache_limit", "trust",
)  # fmt: skip
CACHE_VIEWS, CACHE_LIMIT = 5, 10.0  # of cache=teacher: augmented views of an image, and gigabytes
BALANCE_SHARE = 0.5  # of the task's gradient, for balance=auto
INIT = ("auto", "own", "teacher")
HIDDEN = (  # arguments that Ultralytics takes although its default.yaml has them not: two, and those it renamed
    "augmentations", "save_dir",
    "boxes", "hide_labels", "hide_conf", "line_thickness", "label_smoothing", "save_hybrid", "crop_fraction", "keras",
    "end2end", "half", "int8",
)  # fmt: skip


def fold(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with ours gathered under "kd"; already folded ones (a resumed run, a DDP worker) pass.

    Raises:
        UsageError: our part is wrong in any way that can be seen without building a model.
    """
    if isinstance(arguments.get("kd"), dict):
        return arguments
    ours = {k: v for k, v in arguments.items() if k in OURS or "." in k}
    if "classes" in ours and not (is_file_name(ours["classes"]) or isinstance(ours["classes"], dict)):
        del ours["classes"]  # Ultralytics' own, a list of classes to keep
    theirs = {k: v for k, v in arguments.items() if k not in ours}
    trust = true_or_false("trust", ours.get("trust", False))
    cached = "teacher" in str(theirs.get("cache")).split(",")
    check_keys(theirs, [*DEFAULT_CFG_DICT, *OURS, *HIDDEN])
    if theirs.get("distill_model"):
        raise UsageError(
            f"distill_model={theirs['distill_model']} is Ultralytics' own distillation and cannot run together with "
            "teacher=: give one of the two."
        )
    for key in ("compile", "quantize", "half", "int8"):
        if theirs.get(key):
            raise UsageError(f"{key}={theirs[key]} cannot be combined with distillation yet: leave {key}= out.")
    if theirs.get("resume"):
        if fixed := [k for k in ours if k not in ("teacher", "trust")]:
            raise UsageError(f"{fixed[0]}={ours[fixed[0]]} cannot change in a resumed run: leave it out.")
        if cached:
            raise UsageError(f"cache={theirs['cache']}: whether teachers are cached cannot change in a resumed run.")
        anew: dict[str, Any] = {"teacher": locate_all(ours["teacher"])} if ours.get("teacher") else {}
        anew |= {"trust": True} if trust else {}
        return {**theirs, **({"kd": anew} if anew else {})}
    if scaling := [k for k in ("width", "depth") if k in ours]:
        raise UsageError(f"{scaling[0]}={ours[scaling[0]]} builds a new model, which only `yolokd train` can do.")
    if not ours.get("teacher"):
        raise UsageError("no teacher: give the trained big model, teacher=big.pt.")
    dotted = {k: v for k, v in ours.items() if "." in k and k not in OURS}
    gain = non_negative("kd", ours.get("kd", 1.0))
    kd = {
        "teacher": locate_all(ours["teacher"]),
        "gain": gain,
        # a student alone starts as it is, unless told otherwise
        "init": one_of("init", ours.get("init", "auto" if gain else "own"), INIT),
        **asked_methods(ours.get("method") or "default", dotted),
    }
    if trust:
        kd["trust"] = True
    if "teachers" in ours:
        kd["teachers"] = one_of("teachers", ours["teachers"], ("average", "best"))
        if len(kd["teacher"]) == 1:
            raise UsageError(
                f"teachers={kd['teachers']} is for several and teacher={ours['teacher']} is one: "
                "give more, such as teacher=a.pt,b.pt, or leave teachers= out."
            )
    for key in ("teacher.contract", "teacher.names"):
        if key in ours and not any(t.endswith(".onnx") for t in kd["teacher"]):
            raise UsageError(f"{key}={ours[key]} is about an ONNX teacher: leave it out for {kd['teacher'][0]}.")
    if "teacher.contract" in ours:
        kd["teacher_contract"] = one_of("teacher.contract", ours["teacher.contract"], CONTRACTS)
    if "teacher.names" in ours:
        kd["teacher_names"] = read_names(ours["teacher.names"])
    if (given := ours.get("balance", "off")) != "off" and given is not False:  # which YAML makes of off
        kd["balance"] = balance_share(given)
    if "levels" in ours:
        kd["levels"] = one_of("levels", ours["levels"], ("common", "resize"))
    if "teacher_imgsz" in ours:
        kd["teacher_imgsz"] = pixels("teacher_imgsz", ours["teacher_imgsz"])
    if "classes" in ours:
        kd["classes"] = read_classes(ours["classes"])
    if "unlabeled_ratio" in ours and not ours.get("unlabeled"):
        raise UsageError(
            f"unlabeled_ratio={ours['unlabeled_ratio']} says how many unlabelled images a labelled one comes with: "
            "give their folder, unlabeled=images/."
        )
    if ours.get("unlabeled"):
        list_folder(ours["unlabeled"])
        kd["unlabeled"] = str(Path(str(ours["unlabeled"])).expanduser().resolve())
        kd["unlabeled_ratio"] = non_negative("unlabeled_ratio", ours.get("unlabeled_ratio", 1.0))
    for key in ("cache_views", "cache_limit"):
        if key in ours and not cached:
            raise UsageError(f"{key}={ours[key]} is about stored teacher responses: add cache=teacher.")
    if cached:
        theirs["cache"], options = cache_options(ours, theirs)
        if gain:  # a student alone sees its images as without a teacher
            kd["cache"] = options
    return {**theirs, "kd": kd}


def cache_options(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What is left of cache=teacher,... for Ultralytics, and the options of stored teacher responses."""
    rest = [word for word in theirs["cache"].split(",") if word != "teacher"]
    if rest and rest not in (["ram"], ["disk"]):
        raise UsageError(f"cache={theirs['cache']} is not teacher, teacher,ram or teacher,disk.")
    for key in ("multi_scale", "rect", "augmentations"):
        if theirs.get(key):
            raise UsageError(
                f"cache=teacher needs images that come back as they were, which {key}={theirs[key]} does not give: "
                "leave one of the two out."
            )
    if ours.get("unlabeled"):
        raise UsageError(
            f"cache=teacher stores nothing of unlabeled={ours['unlabeled']}, whose images never come back the same: "
            "leave one of the two out."
        )
    views = ours.get("cache_views", CACHE_VIEWS)
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise UsageError(f"cache_views={views} is not a number of views of an image: give a whole number of 1 or more.")
    options = {"views": views, "limit": non_negative("cache_limit", ours.get("cache_limit", CACHE_LIMIT))}
    return (rest or [False])[0], options


def balance_share(value: Any) -> float | None:
    """Share of the task's gradient that a gain of 1 is kept at, None to measure only."""
    if value in {"auto", "log"}:
        return BALANCE_SHARE if value == "auto" else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"balance={value} is not auto, log, off or a share of the task's gradient above 0.")
    return float(value)


def read_classes(given: Any) -> dict[str, str]:
    """Name in the teacher -> name in the data, from a YAML file or given as such; several may name one."""
    names = given
    if not isinstance(given, dict):
        path = Path(given).expanduser()
        if not path.is_file():
            raise UsageError(
                f"classes={given} does not exist: give a YAML file of lines `name in teacher: name in data`."
            )
        names = read_yaml("classes", given, path)
    if (
        not isinstance(names, dict)
        or not names
        or any(isinstance(v, (dict, list)) or v is None for v in names.values())
    ):
        raise UsageError(f"classes={given} is not a class map: write lines `name in teacher: name in data`.")
    return {str(k): str(v) for k, v in names.items()}


def read_names(file: Any) -> dict[int, str]:
    """Class index -> name from a YAML file: a list, a mapping, or a data set's with such an entry `names`."""
    path = Path(str(file)).expanduser()
    if not path.is_file():
        raise UsageError(f"teacher.names={file} does not exist: give a YAML file with a list of class names.")
    found = read_yaml("teacher.names", file, path)
    found = found.get("names", found) if isinstance(found, dict) else found
    names = dict(enumerate(found)) if isinstance(found, list) else found
    if not isinstance(names, dict) or not names or any(not isinstance(k, int) for k in names):
        raise UsageError(f"teacher.names={file} has no class names: write a list, or lines `index: name`.")
    return {k: str(v) for k, v in names.items()}
