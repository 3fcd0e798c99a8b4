"""Which methods apply to a student and its teachers, on which levels and classes; refusals name the remedy."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

from ultralytics.utils.checks import check_imgsz

from yolokd.config.options import DistillOptions
from yolokd.config.schedule import GAIN, Gain
from yolokd.detectors import read
from yolokd.detectors.class_map import ClassMap, coverage, match_classes
from yolokd.detectors.reader import Reader
from yolokd.detectors.teachers import EMA, fit_channels, load_teacher, title
from yolokd.distill import response_cache, teacher_selection
from yolokd.distill.teacher import round_up_to_stride
from yolokd.errors import UsageError
from yolokd.methods import METHODS
from yolokd.methods.base import Method
from yolokd.views import MAPS, TASK, Spec

Place = tuple[tuple[int, ...], tuple[int, ...]]  # strides of the levels compared, student's and teacher's


@dataclass(frozen=True, slots=True)
class Term:
    """One method of a pairing."""

    method: Method
    gain: Gain
    place: Place


@dataclass(frozen=True, slots=True)
class Plan:
    """What a student will be taught by one teacher."""

    teacher: Reader
    terms: dict[str, Term]  # by name, those whose gain is not 0
    methods: dict[str, dict[str, Any]]  # key -> options of every method used
    refused: list[str]  # a sentence for all of a recipe that the pair cannot have
    classes: ClassMap | None  # shared classes, None where teacher and data have the same
    scale: float  # sides of the teacher's images, as a multiple of the student's
    other_size: bool = False  # whether the teacher's images may be of another size than the student's even at scale 1
    follows: bool = False  # whether the teacher is the student's moving average
    coverage: str = ""  # how many classes of the data the teacher teaches, and which it does not


def plan(
    student: Reader,
    teacher: Reader,
    distillation: DistillOptions,
    names: dict[int, str],
    classes: ClassMap | None = None,
    scale: float = 1.0,
    other_size: bool = False,
) -> Plan:
    """Which methods a student will be taught by under a teacher.

    Args:
        names: index -> name of the data's classes, which the student learns.
        classes: shared classes, None where teacher and data have the same.
        scale: sides of the teacher's images as a multiple of the student's.
        other_size: whether some of the teacher's images may be of another size than the student's even so.

    Raises:
        UsageError: an option is out of range, a method does not apply to the pair, or none of a recipe does.
    """
    chosen, optional = distillation.methods_for(pair_of_heads(student.spec, teacher.spec))
    terms: dict[str, Term] = {}
    used: dict[str, dict[str, Any]] = {}
    refused = []
    other_task = []
    for key, options in chosen.items():
        gain = Gain(**{k: v for k, v in options.items() if k in GAIN})
        gain = replace(gain, gain=distillation.gain * gain.gain)
        if gain.gain == 0:
            used[key] = options
            continue  # a term of weight 0 still adds zero gradients, which round differently: leave it out
        if optional and (lost := METHODS[key.partition("@")[0]].needs & set(TASK) - student.spec.provides):
            other_task.append(f"method {key} needs {', '.join(sorted(lost))}, which {student.spec.name} does not show.")
            continue  # expected of this task, so not logged, unlike a field that the teacher alone lacks
        try:
            method, place = build_method(
                key, options, student, teacher, len(names), classes, other_size or scale != 1, distillation.levels
            )
            if distillation.cache is not None:
                check_stored(key, method, teacher.spec)
        except UsageError as error:
            if not optional:
                raise
            refused.append(str(error))
            continue
        used[key] = options
        terms[term_name(type(method), method.tap)] = Term(method, gain, place)
    if not used and (reasons := refused or other_task):  # a recipe's last resort comes last
        raise UsageError(f"nothing of the recipe applies: {reasons[-1]}")
    alone = [b for b in student.branches[1:] if b not in teacher.branches]
    if alone and any(is_head_term(term.method) for term in terms.values()):
        refused.append(
            f"what terms on predictions would teach the {alone[0]} branch of {student.spec.name}, which must answer "
            f"once for an object: {teacher.spec.name} has no such branch."
        )
    return Plan(teacher, terms, used, refused, classes, scale, other_size)


def replan(student: Reader, before: Plan, distillation: DistillOptions, names: dict[int, str]) -> Plan:
    """The plan for the same student and teacher with other methods."""
    after = plan(student, before.teacher, distillation, names, before.classes, before.scale, before.other_size)
    return replace(after, follows=before.follows, coverage=before.coverage)


def rounded_imgsz(imgsz: Any, model: Any) -> int:
    """The side of a student's images that Ultralytics will make of imgsz=: a multiple of its largest stride."""
    grid = max(int(model.stride.max()), 32)
    return int(check_imgsz(imgsz, stride=grid, floor=grid, max_dim=1))


def plans(
    student: Reader,
    distillation: DistillOptions,
    data: dict[str, Any],
    side: int,
    single_cls: bool,
    varied: bool = False,
    kept: Any = None,
) -> list[Plan]:
    """A plan for each teacher of the options; loads the teachers.

    Args:
        data: Ultralytics' description of the data set: its ``names`` and image ``channels``.
        side: of the student's images, in pixels.
        single_cls: every class of the data counts as one, and so every class of a teacher that stands for one of it.
        varied: whether images of other sizes come too (multi_scale, rect).
        kept: Ultralytics' classes=: indices of the classes whose labels are kept, None for all.
    """
    kept = kept_classes(kept, data["names"], single_cls)
    made = []
    for path in distillation.teacher:
        follows = path == EMA
        if follows:
            model = copied(student, data["names"])
        else:
            model = load_teacher(path, distillation.teacher_contract, distillation.teacher_names, distillation.trust)
        fit_channels(model, data.get("channels", 3))
        class_names = None if follows else distillation.classes
        if single_cls:
            class_names = {str(name): str(data["names"][0]) for name in class_names or model.names.values()}
        reader = read(model)
        if follows:  # a student that the trainer has not yet built for the data has other classes
            name = f"{student.spec.name}'s moving average"
            spec = replace(reader.spec, name=name, classes=len(data["names"]), keypoints=student.spec.keypoints)
            reader.spec = spec
        scale = round_up_to_stride(distillation.teacher_imgsz or side, max(reader.strides)) / side
        other_size = varied and max(reader.strides) > max(32, *student.strides)  # then it may see a larger image
        if distillation.best and (missing := teacher_selection.NEEDS - reader.spec.provides):
            raise UsageError(
                f"teachers=best compares detections, and {reader.spec.name} shows no {', no '.join(sorted(missing))}: "
                "use teachers=average."
            )
        shared = match_classes(data["names"], model.names, class_names, kept)
        one = plan(student, reader, distillation, data["names"], shared, scale, other_size)
        said = coverage(data["names"], shared, title(path), kept) if model.names else f"{title(path)} knows no classes"
        made.append(replace(one, coverage=said, follows=follows))
    check_truth(distillation, made)
    return made


def copied(student: Reader, names: dict[int, str]) -> Any:
    """A copy of the student's network, to become its moving average, for the data's classes."""
    model = copy.deepcopy(student.model)
    model.names = dict(names)
    return model


def check_truth(distillation: DistillOptions, made: list[Plan]) -> None:
    """Refuse images without labels where every term needs labels."""
    terms = [term for one in made for term in one.terms.values()]
    if distillation.unlabeled_ratio and terms and all(term.method.truth for term in terms):
        raise UsageError(
            f"unlabeled={distillation.unlabeled} has no ground truth, which every method asked for needs: "
            "add one that does without, such as method=pkd."
        )


def kept_classes(kept: Any, names: dict[int, str], single_cls: bool) -> frozenset[int] | None:
    """The classes whose labels Ultralytics' classes= keeps, None for all."""
    if kept is None:
        return None
    if single_cls:
        raise UsageError(f"classes={kept} and single_cls=True cannot be combined with distillation: give one of them.")
    indices = [kept] if isinstance(kept, int) else list(kept)
    if lost := [k for k in indices if k not in names]:
        raise UsageError(f"classes={kept} names class {lost[0]}, and the data's are numbered from 0 to {max(names)}.")
    return frozenset(indices)


def build_method(
    key: str,
    options: dict[str, Any],
    student: Reader,
    teacher: Reader,
    classes: int,
    shared: ClassMap | None,
    other_size: bool,
    levels: str,
) -> tuple[Method, Place]:
    """A method for the pair, and the strides at which it compares the two."""
    name, _, tap = key.partition("@")
    cls = METHODS[name]
    tap = tap or next(iter(cls.taps), "")
    check_heads(key, cls, student.spec, teacher.spec)
    check_tap(key, cls, tap, student.spec, teacher.spec)
    place = levels_for(key, cls, tap, student, teacher, levels == "resize")
    specs = replace(student.spec_at(place[0]), classes=classes), teacher.spec_at(place[1])
    if other_size:  # bins count the teacher's own cells
        specs = specs[0], replace(specs[1], bins=0, provides=specs[1].provides - {"bins", "rotated_bins", "finish"})
    if cls.classwise and shared is not None:
        specs = replace(specs[0], classes=shared.shared), replace(specs[1], classes=shared.shared)
    try:
        method = cls(*specs, tap, cls.Options(**{k: v for k, v in options.items() if k not in GAIN}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"method {key} cannot be used for {specs[0].name} under {specs[1].name}: {error}") from error
    check_provided(key, method, *specs)
    if method.classwise and shared is not None and shared.shared == 0:
        raise UsageError(
            f"method {key} compares scores class by class, and {specs[1].name} and the data share no class name: "
            "name pairs in classes=map.yaml, or distil features with method=pkd."
        )
    return method, place


def check_heads(key: str, method: type[Method], student: Spec, teacher: Spec) -> None:
    """Refuse a method for a pair of heads that it cannot compare."""
    if pair_of_heads(student, teacher) in method.heads:
        return
    what = {"dense": "anchor points", "set": "a set of boxes"}
    compared = " or ".join("{} under {}".format(*(what[k] for k in pair.split("/"))) for pair in method.heads)
    raise UsageError(
        f"method {key} compares {compared}, and {student.name} shows {what[kind(student)]}, "
        f"{teacher.name} {what[kind(teacher)]}: use method=match for their predictions."
    )


def check_tap(key: str, method: type[Method], tap: str, student: Spec, teacher: Spec) -> None:
    """Refuse a method on maps that one side does not show, before any level is paired."""
    for role, spec in (("student", student), ("teacher", teacher)):
        if tap and tap not in spec.provides:
            taps = [t for t in method.taps if t in student.provides and t in teacher.provides]
            remedy = f"method={key.partition('@')[0]}@{taps[0]}" if taps else "method=match, which compares detections"
            raise UsageError(
                f"method {key} needs maps of the {tap}, which the {role} {spec.name} does not show "
                f"(it shows {', '.join(sorted(spec.provides))}): use {remedy}."
            )


def check_provided(key: str, method: Method, student: Spec, teacher: Spec) -> None:
    """Refuse a method that needs what one side cannot show."""
    for role, spec, other in (("student", student, method.teacher_needs), ("teacher", teacher, method.student_needs)):
        if missing := sorted(needs(method) - other - spec.provides):
            raise UsageError(
                f"method {key} needs {', '.join(missing)}, which the {role} {spec.name} does not show: "
                f"it shows {', '.join(sorted(spec.provides))}."
            )


def check_stored(key: str, method: Method, teacher: Spec) -> None:
    """Refuse a method that reads of the teacher what cache=teacher does not store."""
    if not teacher.dense or not teacher.provides >= response_cache.NEEDS:
        raise UsageError(
            f"cache=teacher stores boxes at anchor points, and {teacher.name} has none: leave cache=teacher out."
        )
    read = method.needs | method.teacher_needs | ({method.tap} if method.taps else set())
    if lost := sorted(read - response_cache.NEEDS):
        raise UsageError(
            f"method {key} reads the teacher's {', '.join(lost)}, and cache=teacher stores its predictions only: "
            "leave one of the two out."
        )


def levels_for(
    key: str, method: type[Method], tap: str, student: Reader, teacher: Reader, resize: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides at which a method compares the two, the student's and the teacher's, one partner each."""
    if not tap and pair_of_heads(student.spec, teacher.spec) != "dense/dense":
        return student.strides, teacher.strides  # matched by their boxes, whatever level they come from
    if method.deepest and teacher.strides:
        return student.strides[-1:], (nearest_stride(student.strides[-1], teacher.strides),)
    if resize and tap in MAPS and not method.needs and teacher.strides:
        return student.strides, tuple(nearest_stride(stride, teacher.strides) for stride in student.strides)
    common = common_strides(student, teacher)
    return common, common


def nearest_stride(stride: int, strides: tuple[int, ...]) -> int:
    """The stride nearest by ratio, of two the finer."""
    return min(strides, key=lambda s: (abs(math.log2(s / stride)), s))


def common_strides(student: Reader, teacher: Reader) -> tuple[int, ...]:
    """Strides at which both heads predict; levels and anchor points are paired there."""
    common = tuple(s for s in student.strides if s in teacher.strides)
    if not common:
        raise UsageError(
            f"{student.spec.name} predicts at strides {student.strides} and {teacher.spec.name} at {teacher.strides}: "
            "without a common stride no level has a partner, choose a teacher with one, or levels=resize for maps."
        )
    return common


def kind(spec: Spec) -> str:
    """ "dense" for a head of anchor points, "set" for one whose predictions have no order."""
    return "dense" if spec.dense else "set"


def pair_of_heads(student: Spec, teacher: Spec) -> str:
    """The kinds of both heads, such as "dense/set"."""
    return f"{kind(student)}/{kind(teacher)}"


def term_name(cls: type[Method], tap: str) -> str:
    """Column of a term: at most 10 characters, the progress bar's width, and "loss" in it, so that it is drawn."""
    return f"{cls.term[:3]}_{tap[0]}_loss" if tap and tap != cls.taps[0] else f"{cls.term}_loss"


def needs(method: Method) -> frozenset[str]:
    """Fields of a view that a method reads, on one side at least."""
    return method.needs | method.student_needs | method.teacher_needs | ({method.tap} if method.taps else set())


def is_head_term(method: Any) -> bool:
    """Whether the term is about one head branch (predictions, towers) rather than maps that both branches share."""
    return not method.taps or method.tap == "towers"
