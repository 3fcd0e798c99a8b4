"""Options of a distillation: read from a user's arguments, checked, and carried through Ultralytics in plain values.

Ours among the arguments are those in OURS and the dotted options of a method, such as `cwd.tau=2` or
`pkd@backbone.gain=0.5`. They become one `DistillOptions`. Ultralytics knows no such thing, so it travels as a plain
dict, the trainer's argument `kd`: through args.yaml, checkpoints, resume and DDP workers. A mistake is one sentence
with the nearest match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.config.parse import (
    check_keys,
    is_file_name,
    is_number,
    non_negative,
    one_of,
    pixels,
    read_yaml,
    shortened,
    true_or_false,
)  # fmt: skip
from yolokd.config.recipes import asked_methods
from yolokd.data.unlabeled import list_folder
from yolokd.detectors.onnx import CONTRACTS
from yolokd.detectors.quantized import require
from yolokd.detectors.teachers import EMA, digest, locate_all, title
from yolokd.errors import UsageError, as_path

OURS = (  # beside the dotted ones
    "teacher", "teachers", "method", "kd", "init", "balance", "width", "depth", "levels", "teacher_imgsz", "classes",
    "unlabeled", "unlabeled_ratio", "teacher.contract", "teacher.names", "cache_views", "cache_limit", "trust", "fade",
    "quantize", "init.channels",
)  # fmt: skip
CACHE_VIEWS, CACHE_LIMIT = 5, 10.0  # of cache=teacher: augmented views of an image, and gigabytes
EIGHT_BITS, FULL = (8, "8", "int8", "w8a8"), (None, 32, "32", "fp32", "w32a32", "")  # as Ultralytics spells them
SELF = "self"  # among teacher=: the student as it is before it is quantized
BALANCE_SHARE = 0.5  # of the task's gradient, for balance=auto
INIT = ("auto", "own", "head", "neck", "teacher")
CHANNELS = ("solved", "copied", "random")  # of a start from the teacher
HIDDEN = (  # arguments that Ultralytics takes and its default.yaml does not have: two, and those it renamed
    "augmentations", "save_dir",
    "boxes", "hide_labels", "hide_conf", "line_thickness", "label_smoothing", "save_hybrid", "crop_fraction", "keras",
    "end2end", "half", "int8",
)  # fmt: skip

MethodOptions = dict[str, dict[str, Any]]  # method key, such as "pkd@backbone" -> its options and gain


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """How teacher responses are stored, for cache=teacher."""

    views: int = CACHE_VIEWS  # augmented views of an image
    limit: float = CACHE_LIMIT  # gigabytes that all responses stored for a data set may take


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """What a user asks of a distillation. The names of the fields are the keys under which they are written to disk."""

    teacher: tuple[str, ...]  # paths of the teachers' files; the last may be EMA, the student's moving average
    gain: float = 1.0  # kd=: every term's gain is multiplied by it; 0 is the student alone
    init: str = "own"  # how the student starts: one of INIT
    methods: MethodOptions | None = None  # each must apply; None with a recipe
    recipe: dict[str, MethodOptions] | None = None  # pair of heads, such as "dense/set", or "any" -> methods
    optional: bool = False  # whether a method of the recipe that a pair cannot have is left out
    teachers: str = "average"  # of several teachers: "average" of all, or the "best" for each image
    teacher_contract: str | None = None  # what an ONNX teacher outputs, one of CONTRACTS; None to find out
    teacher_names: dict[int, str] | None = None  # class index -> name of an ONNX teacher; None for those in its file
    balance: float | Literal["log"] | None = None  # share of the task's gradient that a gain of 1 is kept at; log only
    fade: bool = True  # whether terms lose weight as the student catches up with its teacher
    levels: str = "common"  # which levels maps are compared on: "common" strides, or the nearest, "resize"d
    teacher_imgsz: int | None = None  # side of the teacher's images in pixels; None for the student's
    classes: dict[str, str] | None = None  # name in the teacher -> name in the data; None for equal names
    unlabeled: str | None = None  # folder of images without labels
    unlabeled_ratio: float = 0.0  # unlabelled images per labelled one
    quantize: int | None = None  # 8: the student learns to compute in eight bits; None for full precision
    itself: int | None = None  # which of the teachers is the student as it was before it was quantized
    cache: CacheOptions | None = None  # how teacher responses are stored; None for not at all
    trust: bool = False  # whether the user answers for files that may run code when they are opened
    init_channels: str = "solved"  # how a start from the teacher is made: one of CHANNELS

    @property
    def of_student(self) -> tuple[int, ...]:
        """Which of the teachers are the student itself, so that what they score says nothing of what it may learn."""
        return tuple(i for i, file in enumerate(self.teacher) if file == EMA or i == self.itself)

    @property
    def best(self) -> bool:
        """Whether each image is taught by its best teacher alone."""
        return self.teachers == "best"

    def methods_for(self, heads: str) -> tuple[MethodOptions, bool]:
        """The methods for a pair of heads such as "dense/set", and whether one may be left out."""
        if self.methods is not None:
            return self.methods, False
        recipe = self.recipe or {}
        if heads not in recipe and "any" not in recipe:
            raise UsageError(f"the recipe has nothing for a pair {heads}: name the methods, such as method=pkd.")
        return recipe.get(heads, recipe.get("any", {})), self.optional

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name; most that are the default are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {"gain", "init", *(["optional"] if self.recipe is not None else [])}
        plain = {f.name: values[f.name] for f in fields(self) if f.name in kept or values[f.name] != f.default}
        plain["teacher"] = list(self.teacher)
        if self.balance == "log":
            plain["balance"] = None
        if self.cache is not None:
            plain["cache"] = asdict(self.cache)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DistillOptions:
        """The options that `to_dict` wrote, in this version or an earlier one. Unknown keys are left out."""
        values = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
        values["teacher"] = tuple(values["teacher"])
        if "balance" in values and values["balance"] is None:
            values["balance"] = "log"
        if values.get("cache") is not None:
            values["cache"] = CacheOptions(**values["cache"])
        return cls(**values)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> DistillOptions:
        """The options in folded arguments."""
        return cls.from_dict(arguments["kd"])


def fold(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with ours gathered under "kd", as a plain dict; folded ones (a DDP worker's) stay as they are.

    Raises:
        UsageError: our part is wrong in any way that can be seen without building a model.
    """
    if isinstance(folded := arguments.get("kd"), dict):
        if not arguments.get("resume") and not ("teacher" in folded and folded.keys() & {"methods", "recipe"}):
            raise UsageError(f"kd={folded} is not a number of 0 or more.")
        return arguments
    ours, theirs = split_arguments(arguments)
    refuse_combinations(theirs)
    if theirs.get("resume"):
        return fold_resumed(ours, theirs)
    if scaling := [k for k in ("width", "depth") if k in ours]:
        raise UsageError(f"{scaling[0]}={ours[scaling[0]]} builds a new model, which only `yolokd train` can do.")
    if not ours.get("teacher"):
        raise UsageError("no teacher: give the trained big model, teacher=big.pt.")
    distillation = read_options(ours, theirs)
    if caches_teacher(theirs):
        theirs["cache"] = cache_without_teacher(theirs["cache"])
    return {**theirs, "kd": distillation.to_dict()}


def split_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our arguments, and those for Ultralytics, which must all be known."""
    ours = {k: v for k, v in arguments.items() if k in OURS or "." in k}
    if "classes" in ours and is_filter(ours["classes"]):
        del ours["classes"]  # Ultralytics' own
    theirs = {k: v for k, v in arguments.items() if k not in ours}
    check_keys(theirs, [*DEFAULT_CFG_DICT, *OURS, *HIDDEN])
    return ours, theirs


def is_filter(classes: Any) -> bool:
    """Whether classes= is Ultralytics' own, the indices of the classes whose labels are kept, and not our class map."""
    if classes is None:
        return True
    if is_file_name(classes) or isinstance(classes, dict):
        return False
    indices = [classes] if isinstance(classes, int) else classes
    if isinstance(indices, (list, tuple)) and indices and all(type(k) is int for k in indices):
        return True
    raise UsageError(
        f"classes={classes} is neither a class map, a YAML file such as classes=map.yaml with lines "
        "`name in teacher: name in data`, nor the indices of the classes to train on, such as classes=[0,3]."
    )


def refuse_combinations(theirs: dict[str, Any]) -> None:
    """Refuse arguments of Ultralytics that cannot go together with a distillation."""
    if theirs.get("distill_model"):
        raise UsageError(
            f"distill_model={theirs['distill_model']} is Ultralytics' own distillation and cannot run together with "
            "teacher=: give one of the two."
        )
    for key in ("compile", "half", "int8"):
        if theirs.get(key):
            raise UsageError(f"{key}={theirs[key]} cannot be combined with distillation yet: leave {key}= out.")


def fold_resumed(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a resumed run, of which only the teachers' place and the user's trust may change."""
    if fixed := [k for k in ours if k not in ("teacher", "trust")]:
        raise UsageError(f"{fixed[0]}={ours[fixed[0]]} cannot change in a resumed run: leave it out.")
    if caches_teacher(theirs):
        raise UsageError(f"cache={theirs['cache']}: whether teachers are cached cannot change in a resumed run.")
    anew: dict[str, Any] = {"teacher": locate_with_ema(ours["teacher"])} if ours.get("teacher") else {}
    anew |= {"trust": True} if true_or_false("trust", ours.get("trust", False)) else {}
    return {**theirs, **({"kd": anew} if anew else {})}


def resumed(stored: Any, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The plain options of an interrupted run with those given anew; None if the run was not distilled."""
    if not isinstance(stored, dict) or not stored.keys() & {"methods", "recipe"}:
        return None
    plain = {**{k: v for k, v in stored.items() if k != "trust"}, **(given or {})}  # a file cannot vouch for itself
    found, before = locate_with_ema(plain["teacher"]), list(stored["teacher"])
    if len(found) != len(before) or (EMA in found) != (EMA in before):
        raise UsageError(
            f"teacher={','.join(found)} cannot change in a resumed run, which began with {len(before)} of them: give "
            f"{','.join(map(title, before))}."
        )
    for file, was, known in zip(found, before, stored.get("sha256") or [None] * len(found), strict=True):
        if known and (now := digest(file)) and now != known:
            raise UsageError(
                f"teacher={file} is another file than the {title(was)} that the run began with (SHA-256 {now[:12]}, "
                f"then {known[:12]}): give that one."
            )
    return {**plain, "teacher": found}


def read_options(ours: dict[str, Any], theirs: dict[str, Any]) -> DistillOptions:
    """The options that our arguments stand for, checked."""
    gain = non_negative("kd", ours.get("kd", 1.0))
    quantize = read_quantize(ours.get("quantize"))
    teachers, itself = read_teachers(ours["teacher"], theirs.get("model"), quantize)
    alone = itself == 0 or teachers[0] == EMA  # the student is its only teacher, and starts as it is
    dotted = {k: v for k, v in ours.items() if "." in k and k not in OURS}
    values: dict[str, Any] = {
        # a student alone starts as it is, unless told otherwise
        "init": one_of("init", ours.get("init", "auto" if gain and not alone else "own"), INIT),
        "quantize": quantize,
        "itself": itself,
        **asked_methods(ours.get("method") or "default", dotted),
        **read_teacher_options(ours, teachers),
    }
    if teachers[0] == EMA:
        values["init"] = own_start(values["init"])
    if "init.channels" in ours:
        values["init_channels"] = read_channels(ours["init.channels"], values["init"])
    if (balance := ours.get("balance", "off")) != "off" and balance is not False:  # which YAML makes of off
        values["balance"] = read_balance(balance)
    values["fade"] = true_or_false("fade", ours.get("fade", True))
    if "levels" in ours:
        values["levels"] = one_of("levels", ours["levels"], ("common", "resize"))
    if "teacher_imgsz" in ours:
        values["teacher_imgsz"] = pixels("teacher_imgsz", ours["teacher_imgsz"])
    if "classes" in ours:
        values["classes"] = read_classes(ours["classes"])
    unlabeled = read_unlabeled(ours)
    values["trust"] = true_or_false("trust", ours.get("trust", False))
    cache = read_cache(ours, theirs)
    if cache and EMA in teachers:
        raise UsageError(
            f"cache=teacher stores what a teacher answers, and the answers of teacher={EMA} change with every step: "
            "leave one of the two out."
        )
    if gain:  # a student alone sees its images as without a teacher
        values |= {"cache": cache, **unlabeled}
    return DistillOptions(teachers, gain, **values)


def own_start(init: str) -> str:
    """The start of a student that has no teacher but its own moving average, which starts as the student does."""
    if init not in ("auto", "own"):
        raise UsageError(
            f"init={init} starts the student from a teacher, and teacher={EMA} is the student itself: leave init= out, "
            f"or give a teacher before it, teacher=big.pt,{EMA}."
        )
    return "own"


def read_channels(value: Any, init: str) -> str:
    """How a start from the teacher is made."""
    if one_of("init.channels", value, CHANNELS) != CHANNELS[0] and init == "own":
        raise UsageError(
            f"init.channels={value} is about a start from the teacher, and with init=own there is none: give "
            "init=teacher, or leave it out."
        )
    return str(value)


def read_quantize(value: Any) -> int | None:
    """8 where the student is to be trained for INT8, None for full precision."""
    word = value.lower() if isinstance(value, str) else value
    if isinstance(value, bool) or word not in EIGHT_BITS + FULL:
        raise UsageError(
            f"quantize={value} is not for a training: quantize=8 trains a student for INT8, and without it the student "
            "is trained in full precision."
        )
    if word in FULL:
        return None
    require(f"quantize={value}")
    return 8


def read_teachers(given: Any, student: Any, quantize: int | None) -> tuple[tuple[str, ...], int | None]:
    """The teachers' locations, and which of them, the last, is the student itself before it is quantized."""
    words = given if isinstance(given, (list, tuple)) else str(given).split(",")
    if EMA in [str(word).strip() for word in words] and quantize is not None:
        raise UsageError(
            f"teacher={EMA} is rounded to eight bits as the student is with quantize=8, and would teach it its errors: "
            f"give teacher=big.pt,{SELF} instead."
        )
    others = [word for word in words if str(word).strip() != SELF]
    if len(others) == len(words):
        return tuple(locate_with_ema(given)), None
    if quantize is None:
        raise UsageError(f"teacher={SELF} is the student before it is quantized: add quantize=8, or leave it out.")
    if not isinstance(student, (str, Path)) or not str(student).strip().endswith(".pt"):
        raise UsageError(
            f"teacher={SELF} is the student before it is quantized, and model={student} is not trained: give its .pt."
        )
    return tuple(locate_all([*others, *[str(student).strip()] * (len(words) - len(others))])), len(others)


def locate_with_ema(given: Any) -> list[str]:
    """As `locate_all`; the student's moving average, which has no file, comes last."""
    words = given if isinstance(given, (list, tuple)) else str(given).split(",")
    others = [word for word in words if str(word).strip() != EMA]
    if len(words) - len(others) > 1:
        raise UsageError(f"teacher={EMA} is given twice: keep one.")
    return [*(locate_all(others) if others else []), *[EMA] * (len(words) - len(others))]


def read_teacher_options(ours: dict[str, Any], teachers: tuple[str, ...]) -> dict[str, Any]:
    """What is said about the teachers beside their files: how several teach, and what an ONNX one outputs."""
    values: dict[str, Any] = {}
    if "teachers" in ours:
        values["teachers"] = one_of("teachers", ours["teachers"], ("average", "best"))
        if len(teachers) == 1:
            raise UsageError(
                f"teachers={ours['teachers']} is for several and teacher={ours['teacher']} is one: "
                "give more, such as teacher=a.pt,b.pt, or leave teachers= out."
            )
    for key in ("teacher.contract", "teacher.names"):
        if key in ours and not any(t.endswith(".onnx") for t in teachers):
            raise UsageError(f"{key}={ours[key]} is about an ONNX teacher: leave it out for {teachers[0]}.")
    if "teacher.contract" in ours:
        values["teacher_contract"] = one_of("teacher.contract", ours["teacher.contract"], CONTRACTS)
    if "teacher.names" in ours:
        values["teacher_names"] = read_names(ours["teacher.names"])
    return values


def read_unlabeled(ours: dict[str, Any]) -> dict[str, Any]:
    """The folder of unlabelled images and their number per labelled one."""
    if not ours.get("unlabeled"):
        if "unlabeled_ratio" in ours:
            raise UsageError(
                f"unlabeled_ratio={ours['unlabeled_ratio']} is the number of unlabelled images per labelled one: "
                "give their folder, unlabeled=images/."
            )
        return {}
    list_folder(ours["unlabeled"])
    return {
        "unlabeled": str(as_path("unlabeled", ours["unlabeled"]).resolve()),
        "unlabeled_ratio": non_negative("unlabeled_ratio", ours.get("unlabeled_ratio", 1.0)),
    }


def caches_teacher(theirs: dict[str, Any]) -> bool:
    """Whether cache= asks for stored teacher responses."""
    return "teacher" in str(theirs.get("cache")).split(",")


def cache_without_teacher(cache: str) -> str | bool:
    """What is left of cache=teacher,ram and the like for Ultralytics."""
    rest = [word for word in cache.split(",") if word != "teacher"]
    if rest and rest not in (["ram"], ["disk"]):
        raise UsageError(f"cache={cache} is not teacher, teacher,ram or teacher,disk.")
    return rest[0] if rest else False


def read_cache(ours: dict[str, Any], theirs: dict[str, Any]) -> CacheOptions | None:
    """How teacher responses are stored, None without cache=teacher."""
    if not caches_teacher(theirs):
        for key in ("cache_views", "cache_limit"):
            if key in ours:
                raise UsageError(f"{key}={ours[key]} is about stored teacher responses: add cache=teacher.")
        return None
    cache_without_teacher(theirs["cache"])
    for key in ("multi_scale", "rect", "augmentations"):
        if theirs.get(key):
            raise UsageError(
                f"cache=teacher needs images that come back as they were, which {key}={theirs[key]} does not give: "
                "leave one of the two out."
            )
    if ours.get("unlabeled"):
        raise UsageError(
            f"cache=teacher cannot store responses to unlabeled={ours['unlabeled']}, whose images never come back the "
            "same: leave one of the two out."
        )
    views = ours.get("cache_views", CACHE_VIEWS)
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise UsageError(f"cache_views={views} is not a number of views of an image: give a whole number of 1 or more.")
    return CacheOptions(views, non_negative("cache_limit", ours.get("cache_limit", CACHE_LIMIT)))


def read_balance(value: Any) -> float | Literal["log"]:
    """Share of the task's gradient that a gain of 1 is kept at, "log" to measure only."""
    if value in ("auto", "log"):
        return BALANCE_SHARE if value == "auto" else "log"
    if not is_number(value) or value <= 0:
        raise UsageError(f"balance={shortened(value)} is not auto, log, off or a share of the task's gradient above 0.")
    return float(value)


def read_classes(classes: Any) -> dict[str, str]:
    """Name in the teacher -> name in the data, from a YAML file or a mapping; several may name one."""
    names = classes
    if not isinstance(classes, dict):
        path = as_path("classes", classes)
        if not path.is_file():
            raise UsageError(
                f"classes={classes} does not exist: give a YAML file of lines `name in teacher: name in data`."
            )
        names = read_yaml("classes", classes, path)
    if (
        not isinstance(names, dict)
        or not names
        or any(isinstance(v, (dict, list)) or v is None for v in names.values())
    ):
        raise UsageError(f"classes={classes} is not a class map: write lines `name in teacher: name in data`.")
    return {str(k): str(v) for k, v in names.items()}


def read_names(file: Any) -> dict[int, str]:
    """Class index -> name from a YAML file: a list, a mapping, or a data set's with such an entry `names`."""
    path = as_path("teacher.names", file)
    if not path.is_file():
        raise UsageError(f"teacher.names={file} does not exist: give a YAML file with a list of class names.")
    content = read_yaml("teacher.names", file, path)
    content = content.get("names", content) if isinstance(content, dict) else content
    names = dict(enumerate(content)) if isinstance(content, list) else content
    if not isinstance(names, dict) or not names or any(not isinstance(k, int) for k in names):
        raise UsageError(f"teacher.names={file} has no class names: write a list, or lines `index: name`.")
    return {k: str(v) for k, v in names.items()}
