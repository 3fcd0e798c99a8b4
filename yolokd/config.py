"""key=value in, (our options, Ultralytics' arguments) out; a mistake in ours is one sentence with the nearest match.

Ours are those in OURS and the dotted options of a method, such as `cwd.tau=2`, `pkd@backbone.gain=0.5`. They are
folded into one plain dict, the trainer's `kd` argument, which Ultralytics carries through args.yaml, resume and its DDP
workers.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import math
from collections.abc import Collection, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from ultralytics.cfg import get_cfg, smart_value
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import select_device

from yolokd.balance import SHARE
from yolokd.detectors.onnx import CONTRACTS
from yolokd.errors import UsageError
from yolokd.gains import GAIN, Gain
from yolokd.methods import METHODS
from yolokd.methods.base import ANY_HEADS
from yolokd.teacher import locate_all
from yolokd.unlabeled import list_folder
from yolokd_edge import common as edge

OURS = (  # beside the dotted ones
    "teacher", "teachers", "method", "kd", "init", "balance", "width", "depth", "levels", "teacher_imgsz", "classes",
    "unlabeled", "unlabeled_ratio", "teacher.contract", "teacher.names", "cache_views", "cache_limit",
)  # fmt: skip
VIEWS, LIMIT = 5, 10.0  # of cache=teacher: augmented views of an image, and gigabytes
INIT = ("auto", "own", "teacher")
AS_TYPED = ("name", "project")  # name=3 is a folder's name, not a number
HIDDEN = (  # arguments that Ultralytics takes although its default.yaml has them not: two, and those it renamed
    "augmentations", "save_dir",
    "boxes", "hide_labels", "hide_conf", "line_thickness", "label_smoothing", "save_hybrid", "crop_fraction", "keras",
    "end2end", "half", "int8",
)  # fmt: skip


def pairs(arguments: Iterable[str]) -> dict[str, Any]:
    """{"imgsz": 640, ...} from ["imgsz=640", ...], values typed as `yolo` types them."""
    found: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals or not key or not value:
            raise UsageError(f"argument {argument!r} is not of the form key=value, such as epochs=100.")
        if key in found:
            raise UsageError(f"argument {key}= is given twice: {found[key]} and {value}; keep one.")
        found[key] = value if key in AS_TYPED else smart_value(value)
    return found


def check_keys(given: Iterable[str], known: Iterable[str], what: str = "option") -> None:
    """Refuse the first unknown key, naming the nearest known one."""
    known = list(known)
    for key in given:
        if key not in known:
            raise UsageError(f"unknown {what} {key!r}{nearest(key, known)}.")


def nearest(word: Any, known: Iterable[str]) -> str:
    """ ", did you mean 'epochs'" or, with nothing near, the whole list."""
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f", did you mean {close[0]!r}"
    if len(known) < 20:
        return f"; known are {', '.join(known)}"
    return "; see `yolokd help`, `yolokd methods` and `yolo cfg`"


def check_values(arguments: dict[str, Any]) -> None:
    """Ultralytics' own checks of its arguments' values, made here before it creates a folder or loads anything."""
    device = "" if (given := arguments.get("device")) is None else str(given)  # 0 is a device
    try:
        get_cfg(DEFAULT_CFG_DICT, {k: v for k, v in arguments.items() if k in DEFAULT_CFG_DICT})
        check_imgsz(arguments.get("imgsz", 640), max_dim=2)
        check_range(arguments)
        if "," in device and arguments.get("batch", 16) < 1:
            raise ValueError(f"batch={arguments['batch']} is for one device, not device={device}: give a whole number")
        if device and "-1" not in device:  # -1 picks an idle GPU, which is left to the run itself
            select_device(device, verbose=False)
    except (TypeError, ValueError, SyntaxError) as error:
        raise UsageError(f"{one_line(error)}.") from error


def check_range(arguments: dict[str, Any]) -> None:
    """Refuse numbers that Ultralytics takes and then trains with others, or not at all."""
    imgsz, batch, workers = arguments.get("imgsz", 640), arguments.get("batch", 16), arguments.get("workers", 8)
    if min(imgsz if isinstance(imgsz, (list, tuple)) else [imgsz]) < 32:
        raise ValueError(f"imgsz={imgsz} is too small: give a number of pixels of 32 or more")
    if batch != -1 and (batch <= 0 or (batch > 1 and batch != int(batch))):
        raise ValueError(f"batch={batch} is no number of images: give a whole one, or -1 to fill the GPU")
    if workers < 0:
        raise ValueError(f"workers={workers} is no number of processes: give 0 or more")


def check_writable(place: Path, said: str) -> None:
    """Refuse a file or folder that cannot be made there, as the runtime does."""
    try:
        edge.check_writable(place, said)
    except edge.EdgeError as error:
        raise UsageError(str(error)) from error


def one_line(error: Exception) -> str:
    """The first paragraph of somebody else's exception as one line of at most 200 characters."""
    return " ".join(str(error).strip().split("\n\n")[0].split())[:200].rstrip(". ")


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
        if fixed := [k for k in ours if k != "teacher"]:
            raise UsageError(f"{fixed[0]}={ours[fixed[0]]} cannot change in a resumed run: leave it out.")
        if cached:
            raise UsageError(f"cache={theirs['cache']}: whether teachers are cached cannot change in a resumed run.")
        return {**theirs, **({"kd": {"teacher": locate_all(ours["teacher"])}} if ours.get("teacher") else {})}
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
        **chosen(ours.get("method") or "default", dotted),
    }
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
        kd["balance"] = balance(given)
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
        theirs["cache"], options = cache(ours, theirs)
        if gain:  # a student alone sees its images as without a teacher
            kd["cache"] = options
    return {**theirs, "kd": kd}


def cache(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
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
    views = ours.get("cache_views", VIEWS)
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise UsageError(f"cache_views={views} is not a number of views of an image: give a whole number of 1 or more.")
    options = {"views": views, "limit": non_negative("cache_limit", ours.get("cache_limit", LIMIT))}
    return (rest or [False])[0], options


def balance(value: Any) -> float | None:
    """Share of the task's gradient that a gain of 1 is kept at, None to measure only."""
    if value in {"auto", "log"}:
        return SHARE if value == "auto" else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"balance={value} is not auto, log, off or a share of the task's gradient above 0.")
    return float(value)


def one_of(key: str, value: Any, known: tuple[str, ...]) -> str:
    """The value, which must be one of the known."""
    if value not in known:
        raise UsageError(f"{key}={value} is not one of {', '.join(known)}.")
    return str(value)


def pixels(key: str, value: Any) -> int:
    """A number of pixels, 32 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 32:
        raise UsageError(f"{key}={value} is not a number of pixels: give a whole number of 32 or more.")
    return value


def is_file_name(value: Any) -> bool:
    """Whether a value names a YAML file."""
    return isinstance(value, (str, Path)) and str(value).endswith((".yaml", ".yml"))


def read_classes(given: Any) -> dict[str, str]:
    """Name in the teacher -> name in the data, from a YAML file or given as such; several may name one."""
    names = given
    if not isinstance(given, dict):
        path = Path(given).expanduser()
        if not path.is_file():
            raise UsageError(
                f"classes={given} does not exist: give a YAML file of lines `name in teacher: name in data`."
            )
        names = _read_yaml("classes", given, path)
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
    found = _read_yaml("teacher.names", file, path)
    found = found.get("names", found) if isinstance(found, dict) else found
    names = dict(enumerate(found)) if isinstance(found, list) else found
    if not isinstance(names, dict) or not names or any(not isinstance(k, int) for k in names):
        raise UsageError(f"teacher.names={file} has no class names: write a list, or lines `index: name`.")
    return {k: str(v) for k, v in names.items()}


def non_negative(key: str, value: Any) -> float:
    """A finite number >= 0, or a UsageError that names the key."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise UsageError(f"{key}={value} is not a number of 0 or more.")
    return float(value)


def chosen(method: Any, dotted: dict[str, Any]) -> dict[str, Any]:
    """What method= and the dotted options ask for: {"methods": ...}, or {"recipe": ..., "optional": ...} of a recipe.

    ``methods`` has method keys ("pkd", "pkd@backbone") with their options, among them "gain". ``recipe`` has such a
    mapping for each pair of heads that it treats apart ("dense/dense", "dense/set", "set/dense", "set/set"; "any" for
    the rest), and ``optional`` says whether a method that a pair cannot have may be left out.

    Args:
        method: a comma list of methods, a list of them, the path of a recipe, or the name of a shipped one.
        dotted: "cwd.tau" -> 2 and the like; the method must be among the chosen ones.
    """
    if not is_recipe(method):
        keys = _keys(method)
        for key in keys:
            check_method(key)
        _check_once(keys)
        return {"methods": methods({key: {} for key in keys}, dotted)}
    by_pair, optional = read_recipe(str(method))
    known = method_keys({"recipe": by_pair})
    for name, value in dotted.items():
        check_dotted(name, value, known)
    recipe = {
        pair: methods(part, {n: v for n, v in dotted.items() if n.rpartition(".")[0] in part})
        for pair, part in by_pair.items()
    }
    return {"recipe": recipe, "optional": optional}


def method_keys(chosen: dict[str, Any]) -> list[str]:
    """Every method key that `chosen` found, for whatever pair of heads."""
    parts = chosen["recipe"].values() if "recipe" in chosen else [chosen["methods"]]
    return list(dict.fromkeys(key for part in parts for key in part))


def methods(wanted: dict[str, dict[str, Any]], dotted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Method keys with their checked options, the dotted ones added."""
    for key in wanted:
        check_method(key)
    _check_once(list(wanted))
    options = {key: dict(own) for key, own in wanted.items()}
    for name, value in dotted.items():
        check_dotted(name, value, wanted)
        key, _, option = name.rpartition(".")
        options[key][option] = value
    return {key: check_options(key, own) for key, own in options.items()}


def check_dotted(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse an option of a method that was not chosen."""
    key = name.rpartition(".")[0]
    check_method(key)
    if key not in known:
        raise UsageError(f"{name}={value} sets an option of {key}, which is not among method={','.join(known)}.")


def _keys(method: Any) -> list[str]:
    keys = [str(k).strip() for k in (method if isinstance(method, (list, tuple)) else str(method).split(","))]
    if not all(keys):
        raise UsageError(f"method={','.join(keys)} has an empty name in its list: write method=pkd,logit or so.")
    return keys


def _check_once(keys: list[str]) -> None:
    """Refuse a method named twice on one tap; its name alone means its first tap."""
    seen = set()
    for key in keys:
        name, _, tap = key.partition("@")
        place = (name, tap or next(iter(METHODS[name].taps), ""))
        if place in seen:
            raise UsageError(f"method={','.join(keys)} names {'@'.join(place).rstrip('@')} twice: keep one.")
        seen.add(place)


def check_method(key: str) -> None:
    """Refuse an unknown method or a tap that it has not."""
    name, at, tap = key.partition("@")
    if name in shipped_arguments():
        raise UsageError(f"method={name} is no method: {name} is a file of arguments, give it as cfg={name}.")
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}{nearest(name, [*METHODS, *shipped()])}.")
    if at and tap not in METHODS[name].taps:
        taps = ", ".join(METHODS[name].taps) or "none, it compares predictions"
        raise UsageError(f"method {key} has no tap {tap!r}; taps of {name}: {taps}.")


def check_options(key: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of one method with its gain; refuses unknown names and values out of range."""
    cls = METHODS[key.partition("@")[0]]
    check_keys(options, [*GAIN, *(f.name for f in fields(cls.Options))], f"option of {key}:")
    try:
        Gain(**{k: v for k, v in options.items() if k in GAIN})
    except ValueError as error:
        raise UsageError(f"{key}.{error}") from error
    try:
        cls.Options(**{k: v for k, v in options.items() if k not in GAIN})
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return {**options, "gain": float(options.get("gain", 1.0))}


@functools.cache
def _shipped() -> tuple[dict[str, Any], dict[str, Any]]:
    """Name -> file of the recipes, and of the argument files, in the one folder that comes with the package.

    They lie side by side, so that no name can mean one of each; a recipe is what has methods: or pairs:.
    """
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for file in sorted(importlib.resources.files("yolokd_cfg").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            keys = yaml.safe_load(file.read_text(encoding="utf-8"))
            found[not keys.keys() & {"methods", "pairs"}][file.name.removesuffix(".yaml")] = file
    return found


def shipped() -> dict[str, Any]:
    """Name -> file of the recipes that come with the package, for method=."""
    return _shipped()[0]


def shipped_arguments() -> dict[str, Any]:
    """Name -> file of the argument files that come with the package, for cfg=."""
    return _shipped()[1]


def is_recipe(method: Any) -> bool:
    """Whether method= names a recipe (a YAML file or a shipped one) rather than methods."""
    return is_file_name(method) or (isinstance(method, str) and method in shipped())


def read_recipe(method: str) -> tuple[dict[str, dict[str, dict[str, Any]]], bool]:
    """Pair of heads -> method key -> options from a recipe file, and whether its methods are optional.

    The file has a mapping `methods:`, or `pairs:` with such a mapping for pairs of heads, or both; `optional: true`
    leaves out what a pair cannot have.
    """
    file = shipped().get(method, Path(method).expanduser())
    if not file.is_file():
        raise UsageError(f"method={method} does not exist; shipped recipes are {', '.join(shipped())}.")
    recipe = _read_yaml("method", method, file)
    parts = {}
    if isinstance(recipe, dict) and recipe.keys() & {"methods", "pairs"}:
        check_keys(recipe, ["methods", "pairs", "optional"], f"key in the recipe {method}:")
        pairs_of = recipe.get("pairs") or {}
        if isinstance(pairs_of, dict):
            check_keys(pairs_of, ANY_HEADS, f"pair of heads in the recipe {method}:")
            parts = {**pairs_of, **({"any": recipe["methods"]} if "methods" in recipe else {})}
    if not parts or any(not isinstance(part, dict) or not part for part in parts.values()):
        raise UsageError(f"method={method} is not a recipe: it needs a mapping `methods:` of method names to options.")
    if not isinstance(optional := recipe.get("optional", False), bool):
        raise UsageError(f"optional: {optional} in the recipe {method} is not true or false.")
    checked = {
        pair: {str(key): _read_options(key, options) for key, options in part.items()} for pair, part in parts.items()
    }
    return checked, optional


def _read_options(key: Any, options: Any) -> dict[str, Any]:
    if options is not None and not isinstance(options, dict):
        raise UsageError(f"options of {key} are {options!r}: write them as a mapping, such as {{gain: 0.5}}.")
    return {str(k): _typed(v) for k, v in (options or {}).items()}


def _typed(value: Any) -> Any:
    return smart_value(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a word


def read_arguments(cfg: Any) -> dict[str, Any]:
    """The arguments in a file given as cfg=, or the name of a shipped one: ours among them, the dotted ones too."""
    if str(cfg) in shipped():
        raise UsageError(f"cfg={cfg} is not a file of arguments: {cfg} is a recipe, give it as method={cfg}.")
    file = shipped_arguments().get(str(cfg), Path(str(cfg)).expanduser())
    if not file.is_file():
        names = " or ".join(shipped_arguments())
        raise UsageError(f"cfg={cfg} does not exist: give a YAML file of arguments such as `epochs: 100`, or {names}.")
    arguments = _read_yaml("cfg", cfg, file)
    if not isinstance(arguments, dict):
        raise UsageError(f"cfg={cfg} is not a mapping of arguments: write lines such as `epochs: 100`.")
    return {str(k): v if k in AS_TYPED else _typed(v) for k, v in arguments.items()}


def _read_yaml(key: str, value: Any, file: Any) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{key}={value} is not a readable YAML file: {one_line(error)}.") from error
