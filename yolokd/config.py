"""key=value in, (our options, Ultralytics' arguments) out; a mistake in ours is one sentence with the nearest match.

Ours are `teacher`, `method`, `kd`, `width`, `depth` and the dotted options of a method, such as `cwd.tau=2`,
`pkd@backbone.gain=0.5`. They are folded into one plain dict, the trainer's `kd` argument, which Ultralytics carries
through args.yaml, resume and its DDP workers.
"""

from __future__ import annotations

import difflib
import importlib.resources
import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from ultralytics.cfg import smart_value
from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.errors import UsageError
from yolokd.methods import METHODS
from yolokd.teacher import locate

OURS = ("teacher", "method", "kd", "width", "depth")  # beside the dotted ones
HIDDEN = ("augmentations", "save_dir")  # arguments that Ultralytics takes although its default.yaml has them not


def pairs(arguments: Iterable[str]) -> dict[str, Any]:
    """{"imgsz": 640, ...} from ["imgsz=640", ...], values typed as `yolo` types them."""
    found: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals or not key or not value:
            raise UsageError(f"argument {argument!r} is not of the form key=value, such as epochs=100.")
        if key in found:
            raise UsageError(f"argument {key}= is given twice: {found[key]} and {value}; keep one.")
        found[key] = value if key in {"name", "project"} else smart_value(value)
    return found


def check_keys(given: Iterable[str], known: Iterable[str], what: str = "option") -> None:
    """Refuse the first unknown key, naming the nearest known one."""
    known = list(known)
    for key in given:
        if key not in known:
            raise UsageError(f"unknown {what} {key!r}{nearest(key, known)}.")


def nearest(word: str, known: Iterable[str]) -> str:
    """ ": did you mean 'epochs'?" or, with nothing near, the whole list."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f", did you mean {close[0]!r}"
    return f"; known are {', '.join(known)}" if len(known) < 20 else ""


def fold(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with ours gathered under "kd"; already folded ones (a resumed run, a DDP worker) pass.

    Raises:
        UsageError: our part is wrong in any way that can be seen without building a model.
    """
    if isinstance(arguments.get("kd"), dict):
        return arguments
    ours = {k: v for k, v in arguments.items() if k in OURS or "." in k}
    theirs = {k: v for k, v in arguments.items() if k not in ours}
    check_keys(theirs, [*DEFAULT_CFG_DICT, *OURS, *HIDDEN])
    if theirs.get("distill_model"):
        raise UsageError(
            f"distill_model={theirs['distill_model']} is Ultralytics' own distillation and cannot run together with "
            "teacher=: give one of the two."
        )
    for key in ("compile", "quantize"):
        if theirs.get(key):
            raise UsageError(f"{key}={theirs[key]} cannot be combined with distillation yet: leave {key}= out.")
    if theirs.get("resume"):
        if fixed := [k for k in ours if k != "teacher"]:
            raise UsageError(f"{fixed[0]}={ours[fixed[0]]} cannot change in a resumed run: leave it out.")
        return {**theirs, **({"kd": {"teacher": locate(ours["teacher"])}} if ours.get("teacher") else {})}
    if not ours.get("teacher"):
        raise UsageError("no teacher: give the trained big model, teacher=big.pt.")
    dotted = {k: v for k, v in ours.items() if "." in k}
    return {
        **theirs,
        "kd": {
            "teacher": locate(ours["teacher"]),
            "gain": non_negative("kd", ours.get("kd", 1.0)),
            "methods": methods(ours.get("method") or "default", dotted),
        },
    }


def non_negative(key: str, value: Any) -> float:
    """A finite number >= 0, or a UsageError that names the key."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise UsageError(f"{key}={value} is not a number of 0 or more.")
    return float(value)


def methods(method: Any, dotted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Method key ("pkd", "pkd@backbone") -> its options, among them "gain", from method= and the dotted options.

    Args:
        method: a comma list of methods, a list of them, the path of a recipe, or the name of a shipped one.
        dotted: "cwd.tau" -> 2 and the like; the method must be among the chosen ones.
    """
    chosen = read_recipe(str(method)) if is_recipe(method) else {key: {} for key in _keys(method)}
    for key in chosen:
        check_method(key)
    for name, value in dotted.items():
        key, _, option = name.rpartition(".")
        check_method(key)
        if key not in chosen:
            raise UsageError(f"{name}={value} sets an option of {key}, which is not among method={','.join(chosen)}.")
        chosen[key][option] = value
    return {key: check_options(key, options) for key, options in chosen.items()}


def _keys(method: Any) -> list[str]:
    keys = [str(k).strip() for k in (method if isinstance(method, (list, tuple)) else str(method).split(","))]
    if twice := [k for k in keys if keys.count(k) > 1]:
        raise UsageError(f"method={','.join(keys)} names {twice[0]} twice: keep one.")
    return keys


def check_method(key: str) -> None:
    """Refuse an unknown method or a tap that it has not."""
    name, at, tap = key.partition("@")
    check_keys([name], METHODS, "method")
    if at and tap not in METHODS[name].taps:
        taps = ", ".join(METHODS[name].taps) or "none, it compares predictions"
        raise UsageError(f"method {key} has no tap {tap!r}; taps of {name}: {taps}.")


def check_options(key: str, options: Any) -> dict[str, Any]:
    """The options of one method with its gain; refuses unknown names and values out of range."""
    cls = METHODS[key.partition("@")[0]]
    if not isinstance(options, dict):
        raise UsageError(f"options of {key} are {options!r}: write them as a mapping, such as {{gain: 0.5}}.")
    check_keys(options, ["gain", *(f.name for f in fields(cls.Options))], f"option of {key}:")
    gain = non_negative(f"{key}.gain", options.get("gain", 1.0))
    try:
        cls.Options(**{k: v for k, v in options.items() if k != "gain"})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{key}: {error}") from error
    return {**options, "gain": gain}


def shipped() -> dict[str, Any]:
    """Recipe name -> file of the recipes that come with the package."""
    files = importlib.resources.files("yolokd.cfg").iterdir()
    return {f.name.removesuffix(".yaml"): f for f in files if f.name.endswith(".yaml")}


def is_recipe(method: Any) -> bool:
    """Whether method= names a recipe (a YAML file or a shipped one) rather than methods."""
    return isinstance(method, (str, Path)) and (str(method).endswith((".yaml", ".yml")) or str(method) in shipped())


def read_recipe(method: str) -> dict[str, dict[str, Any]]:
    """Method key -> options from a recipe file: a mapping with the one key `methods`."""
    file = shipped().get(method, Path(method).expanduser())
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"method={method} does not exist{nearest(method, shipped())}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"method={method} is not a readable recipe: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("methods"), dict) or not recipe["methods"]:
        raise UsageError(f"method={method} is not a recipe: it needs a mapping `methods:` of method names to options.")
    check_keys(recipe, ["methods"], f"key in the recipe {method}:")
    return {str(key): {} if options is None else options for key, options in recipe["methods"].items()}
