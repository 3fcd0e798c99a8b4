"""What method= names: methods with their options, or a recipe file that has them for each pair of heads."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Collection
from dataclasses import fields
from typing import Any

import yaml

from yolokd.config.parse import AS_TYPED, check_keys, did_you_mean, is_file_name, read_yaml, typed
from yolokd.config.schedule import GAIN, Gain
from yolokd.errors import UsageError, as_path
from yolokd.methods import METHODS
from yolokd.methods.base import ANY_HEADS

OF_STUDY = ("methods", "arms", "starts")  # keys of a file of arguments that only a study has


def asked_methods(method: Any, dotted: dict[str, Any]) -> dict[str, Any]:
    """What method= and the dotted options ask for: {"methods": ...}, or {"recipe": ..., "optional": ...} of a recipe.

    ``methods`` has method keys ("pkd", "pkd@backbone") with their options, among them "gain". ``recipe`` has such a
    mapping for each pair of heads that it treats apart ("dense/dense", "dense/set", "set/dense", "set/set"; "any" for
    the rest), and ``optional`` says whether a method that a pair cannot have may be left out.

    Args:
        method: a comma list of methods, a list of them, the path of a recipe, or the name of a shipped one.
        dotted: "cwd.tau" -> 2 and the like; the method must be among the chosen ones.
    """
    if not is_recipe(method):
        keys = split_keys(method)
        for key in keys:
            check_method(key)
        check_once(keys)
        return {"methods": with_options({key: {} for key in keys}, dotted)}
    by_pair, optional = read_recipe(str(method))
    known = method_keys({"recipe": by_pair})
    for name, value in dotted.items():
        check_dotted(name, value, known)
    recipe = {
        pair: with_options(part, {n: v for n, v in dotted.items() if n.rpartition(".")[0] in part})
        for pair, part in by_pair.items()
    }
    return {"recipe": recipe, "optional": optional}


def method_keys(asked_methods: dict[str, Any]) -> list[str]:
    """Every method key in the result of `asked_methods`, for whatever pair of heads."""
    parts = asked_methods["recipe"].values() if "recipe" in asked_methods else [asked_methods["methods"]]
    return list(dict.fromkeys(key for part in parts for key in part))


def with_options(methods: dict[str, dict[str, Any]], dotted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Method keys with their checked options, the dotted ones added."""
    for key in methods:
        check_method(key)
    check_once(list(methods))
    options = {key: dict(own) for key, own in methods.items()}
    for name, value in dotted.items():
        check_dotted(name, value, methods)
        key, _, option = name.rpartition(".")
        options[key][option] = value
        if option == "gain" and f"{key}.started" not in dotted:
            options[key].pop("started", None)  # the recipe's: what the user asks for holds for every start
    return {key: check_options(key, own) for key, own in options.items()}


def check_dotted(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse an option of a method that was not chosen."""
    key = name.rpartition(".")[0]
    check_method(key)
    if key not in known:
        raise UsageError(f"{name}={value} sets an option of {key}, which is not among method={','.join(known)}.")


def split_keys(method: Any) -> list[str]:
    keys = [str(k).strip() for k in (method if isinstance(method, (list, tuple)) else str(method).split(","))]
    if not all(keys):
        raise UsageError(f"method={','.join(keys)} has an empty name in its list: write method=pkd,logit or so.")
    return keys


def check_once(keys: list[str]) -> None:
    """Refuse a method named twice on one tap; its name alone means its first tap."""
    places = set()
    for key in keys:
        name, _, tap = key.partition("@")
        place = (name, tap or next(iter(METHODS[name].taps), ""))
        if place in places:
            raise UsageError(f"method={','.join(keys)} names {'@'.join(place).rstrip('@')} twice: keep one.")
        places.add(place)


def check_method(key: str) -> None:
    """Refuse an unknown method or a tap that it does not have."""
    name, at, tap = key.partition("@")
    if name in shipped_arguments():
        raise UsageError(f"method={name} is not a method: {name} is a file of arguments, give it as cfg={name}.")
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}{did_you_mean(name, [*METHODS, *shipped_recipes()])}.")
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

    They lie side by side, so that no name can mean one of each; a recipe is what has a mapping methods: or pairs:.
    """
    recipes: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for file in sorted(importlib.resources.files("yolokd_cfg").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            keys = yaml.safe_load(file.read_text(encoding="utf-8"))
            kind = recipes if "pairs" in keys or isinstance(keys.get("methods"), dict) else arguments
            kind[file.name.removesuffix(".yaml")] = file
    return recipes, arguments


def shipped_recipes() -> dict[str, Any]:
    """Name -> file of the recipes that come with the package, for method=."""
    return _shipped()[0]


def shipped_arguments() -> dict[str, Any]:
    """Name -> file of the argument files that come with the package, for cfg=."""
    return _shipped()[1]


def is_recipe(method: Any) -> bool:
    """Whether method= names a recipe (a YAML file or a shipped one) rather than methods."""
    return is_file_name(method) or (isinstance(method, str) and method in shipped_recipes())


def read_recipe(method: str) -> tuple[dict[str, dict[str, dict[str, Any]]], bool]:
    """Pair of heads -> method key -> options from a recipe file, and whether its methods are optional.

    The file has a mapping `methods:`, or `pairs:` with such a mapping for pairs of heads, or both; `optional: true`
    leaves out what a pair cannot have.
    """
    file = shipped_recipes().get(method) or as_path("method", method)
    if not file.is_file():
        raise UsageError(f"method={method} does not exist; shipped recipes are {', '.join(shipped_recipes())}.")
    recipe = read_yaml("method", method, file)
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
    return {str(k): typed(v) for k, v in (options or {}).items()}


def read_arguments(cfg: Any, of_study: bool = False) -> dict[str, Any]:
    """The arguments in a file given as cfg=, or the name of a shipped one: ours among them, the dotted ones too.

    Args:
        of_study: whether it may name the arms of a study.
    """
    if str(cfg) in shipped_recipes():
        raise UsageError(f"cfg={cfg} is not a file of arguments: {cfg} is a recipe, give it as method={cfg}.")
    file = shipped_arguments().get(str(cfg)) or as_path("cfg", cfg)
    if not file.is_file():
        names = " or ".join(shipped_arguments())
        raise UsageError(f"cfg={cfg} does not exist: give a YAML file of arguments such as `epochs: 100`, or {names}.")
    arguments = read_yaml("cfg", cfg, file)
    if not isinstance(arguments, dict):
        raise UsageError(f"cfg={cfg} is not a mapping of arguments: write lines such as `epochs: 100`.")
    if not of_study and (arms := [key for key in OF_STUDY if key in arguments]):
        raise UsageError(f"cfg={cfg} has {arms[0]}=, which is for `yolokd study`: name another file.")
    return {str(k): v if k in AS_TYPED else typed(v) for k, v in arguments.items()}
