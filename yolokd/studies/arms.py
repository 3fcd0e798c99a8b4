"""The arms of a study: which ways of training the student, read from methods=, arms= and starts=.

`methods=all` stands for the default recipe, every method on its first tap and the papers' whole recipes. What of it the
pair cannot have is left out with its reason, where a method that was named is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolokd.config import options
from yolokd.config.parse import read_yaml, typed
from yolokd.config.recipes import asked_methods, method_keys, shipped_recipes
from yolokd.errors import UsageError, as_path
from yolokd.methods import METHODS
from yolokd.methods.base import TAXONOMY_LEVELS

ALONE, BUILTIN, TEACHER = "alone", "builtin", "teacher"  # arms that are not methods of ours; the teacher's own folder
ALL = "all"  # among methods=
OWN, STARTS = "own", tuple(start for start in options.INIT if start != "auto")
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
ARM_NAME = re.compile(r"[A-Za-z0-9_][\w.@+-]*")  # it becomes a folder's name

Given = dict[str, dict[str, Any]]  # arm's name -> its own arguments, "method" among them


@dataclass(frozen=True)
class Arm:
    """One way of training the student."""

    name: str
    arguments: dict[str, Any]  # of the training, without the seed and the output folder
    level: str = ""  # of the review's taxonomy, joined by " + "; empty where nothing of ours is distilled
    start: str = ""  # which of starts= it has; empty if it has one of its own
    swept: bool = False  # comes from methods=all, so that it is left out where the pair cannot have it

    @property
    def title(self) -> str:
        """Its name without the start."""
        return self.name.removesuffix(f"-{self.start}") if self.start else self.name


def everything() -> list[str]:
    """What methods=all stands for."""
    return ["default", *METHODS, *(recipe for recipe in shipped_recipes() if recipe != "default")]


def swept(methods: Any) -> frozenset[str]:
    """The arms of methods= that only `all` names."""
    words = read_words(methods)
    return frozenset(everything()) - set(words) if ALL in words else frozenset()


def read_words(methods: Any) -> list[str]:
    """The words of methods=."""
    words = methods if isinstance(methods, (list, tuple)) else str(methods or "").split(",") if methods else []
    return [str(word).strip() for word in words]


def read_arms(methods: Any, file: Any) -> Given:
    """Arm name -> its own arguments, the student alone first, from the short list and the file."""
    listed: Given = {}
    words, every = read_words(methods), swept(methods)
    for word in words:
        name = Path(word).stem if word.endswith((".yaml", ".yml")) else word
        if not word or name in listed or words.count(ALL) > 1:
            raise UsageError(
                f"methods={methods} has an arm twice or an empty name: write methods=builtin,default,pkd+logit."
            )
        if word == ALL:
            listed |= {one: {"method": one} for one in everything() if one in every}
        else:
            listed[name] = {"method": word.replace("+", ",")}
    given = _read_arms_file(file) if file else {}
    if both := [name for name in given if name in listed]:
        raise UsageError(f"arm {both[0]!r} is in methods= and in arms={file}: keep one.")
    arms = {ALONE: {"method": ALONE}, **listed, **given}
    if len(arms) < 2:
        raise UsageError("no arms to compare with the student alone: give methods=builtin,default or arms=arms.yaml.")
    check_names(arms)
    return arms


def check_names(arms: Collection[str]) -> None:
    """Refuse names that cannot be folders beside each other."""
    folders = [name.lower() for name in (*arms, TEACHER)]
    for name in arms:
        if not ARM_NAME.fullmatch(name) or folders.count(name.lower()) > 1:
            raise UsageError(
                f"arm {name!r} cannot name a folder of its own: use other letters, digits and _ . @ + - only."
            )


def _read_arms_file(file: Any) -> Given:
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


def read_starts(starts: Any, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The starts that starts=own,teacher names; none without it."""
    if starts is None:
        return ()
    words = read_words(starts)
    if not words or len(set(words)) < len(words) or not set(words) <= set(STARTS):
        said = ": which start init=auto chooses may differ from arm to arm" if "auto" in words else ""
        raise UsageError(f"starts={starts} is not a list of different ones of {', '.join(STARTS)}{said}.")
    if "init" in arguments:
        raise UsageError(f"init={arguments['init']} and starts= both say where students start: keep one of the two.")
    return tuple(words)


def with_starts(given: Given, starts: Sequence[str]) -> dict[str, tuple[dict[str, Any], str]]:
    """Every arm once for each start, `NAME-START`, and the student alone from each; arm -> arguments and start.

    Ultralytics' own distillation and an arm that has an init= of its own are as they are.
    """
    if not starts:
        return {name: (own, "") for name, own in given.items()}
    arms = {ALONE: (given[ALONE], OWN)}
    arms |= {f"{ALONE}-{s}": ({"method": "default", "kd": 0, "init": s}, s) for s in starts if s != OWN}
    names = list(arms)
    for name, own in given.items():
        if name == ALONE:
            continue
        fixed = own["method"] == BUILTIN or "init" in own
        new = {name: (own, "")} if fixed else {f"{name}-{s}": ({**own, "init": s}, s) for s in starts}
        names += new
        arms |= new
    check_names(names)
    return arms


def build_arms(
    given: Given, common: dict[str, Any], starts: Sequence[str] = (), optional: Collection[str] = ()
) -> list[Arm]:
    """Each arm's complete training arguments: the common ones, then its own.

    Args:
        starts: those that every arm has, if starts= was given.
        optional: arms that may be left out.
    """
    about_teachers = {key for key in options.OURS if key not in FOR_ANY_ARM}
    if options.is_filter(common.get("classes")):
        about_teachers.discard("classes")  # Ultralytics' own: an arm with all labels would learn something else
    distilling = {k: v for k, v in common.items() if k in about_teachers}
    shared = {k: v for k, v in common.items() if "." not in k and k not in distilling}
    dotted = {k: v for k, v in common.items() if "." in k and k not in options.OURS}
    used: set[str] = set()
    arms = []
    for name, (own, start) in with_starts(given, starts).items():
        method, own = own["method"], {k: v for k, v in own.items() if k != "method"}
        _check_own(name, own, method)
        if method in (ALONE, BUILTIN):
            arms.append(Arm(name, {**shared, **_builtin(name, method, common["teacher"]), **own}, start=start))
            continue
        keys = method_keys(asked_methods(method, {}))
        without = start and name == f"{ALONE}-{start}"
        for_it = {} if without else {k: v for k, v in dotted.items() if k.rpartition(".")[0] in keys}
        used |= for_it.keys()
        ours = {"kd": 1.0, **distilling, "method": method}
        levels = set() if without else {METHODS[key.partition("@")[0]].taxonomy_level for key in keys}
        level = " + ".join(k for k in TAXONOMY_LEVELS if k in levels)
        may_go = bool(optional) if without else name.removesuffix(f"-{start}") in optional
        arms.append(Arm(name, {**shared, **ours, **for_it, **own}, level, start, may_go))
    if unused := [k for k in dotted if k not in used]:
        raise UsageError(f"{unused[0]}={dotted[unused[0]]} sets an option of a method that no arm uses.")
    return arms


def _check_own(name: str, own: dict[str, Any], method: str) -> None:
    """Refuse an arm's own arguments that belong to the study, or that its training does not have."""
    refuse_owned(own, f"arm {name}: ")
    if "val" in own:  # a best epoch must not be compared with a last one
        raise UsageError(f"arm {name}: val={own['val']} is for all arms alike: give it beside arms=.")
    if method in (ALONE, BUILTIN) and (
        odd := [k for k in own if "." in k or (k in options.OURS and k not in FOR_ANY_ARM)]
    ):
        raise UsageError(f"arm {name}: {odd[0]}= is an option of our distillation, which {method} does not have.")


def _builtin(name: str, method: str, teacher: Any) -> dict[str, Any]:
    """What makes the built-in arm distil; nothing for the student alone."""
    if method != BUILTIN:
        return {}
    if not str(teacher).endswith(".pt"):
        raise UsageError(f"arm {name}: Ultralytics' own distillation takes one teacher, a .pt file: leave it out.")
    return {"distill_model": teacher}


def refuse_owned(arguments: dict[str, Any], where: str) -> None:
    """Refuse what a study decides itself."""
    for key, instead in OF_THE_STUDY.items():
        if key in arguments:
            raise UsageError(f"{where}{key}={arguments[key]} is not for a study: {instead}.")
