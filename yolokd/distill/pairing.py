"""A student and one teacher: which methods apply to the two, on which levels and classes, and what they add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.checks import check_imgsz

from yolokd.config.schedule import GAIN, Gain
from yolokd.detectors import read
from yolokd.detectors.class_map import ClassMap, match_classes
from yolokd.detectors.reader import Reader
from yolokd.detectors.teachers import fit_channels, load_teacher
from yolokd.distill import response_cache, teacher_selection
from yolokd.distill.teacher import Teacher, round_up_to_stride
from yolokd.errors import UsageError
from yolokd.methods import METHODS
from yolokd.methods.base import Method
from yolokd.views import MAPS, TASK, Spec, View, ViewsAt

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
    refused: list[str]  # a sentence for each method that an optional recipe has and the pair cannot have
    classes: ClassMap | None  # shared classes, None where teacher and data have the same
    scale: float  # sides of the teacher's images, as a multiple of the student's


class Pairing(nn.Module):
    """One teacher and the methods that compare the student with it.

    Args:
        student: reads the student.
        plan: what `plan` made of the teacher, whose model is taken over and changed.
        device: where the student is.
        needs_detections: whether the teacher's detections will be read beside the methods, to be compared or stored.
    """

    teacher: Teacher

    def __init__(self, student: Reader, plan: Plan, device: torch.device, needs_detections: bool = False) -> None:
        super().__init__()
        terms = plan.terms
        self.methods = nn.ModuleDict({name: term.method for name, term in terms.items()}).to(device)
        self.gains = {name: term.gain for name, term in terms.items()}
        self.places = {name: term.place for name, term in terms.items()}
        self.classes = None if plan.classes is None else plan.classes.to(device)
        self.fields = frozenset().union(*(needs(t.method) for t in terms.values())) or frozenset({"neck"})
        branches = student.branches if any(is_head_term(t.method) for t in terms.values()) else student.branches[:1]
        wanted = tuple(b for b in branches if b in plan.teacher.branches) or plan.teacher.branches[:1]
        self.provides = wanted  # branches of the teacher
        shown = self.fields | teacher_selection.NEEDS if needs_detections else self.fields
        object.__setattr__(self, "teacher", Teacher(plan.teacher, shown, wanted, device, plan.scale))

    def loss(self, teacher: ViewsAt, batch: dict[str, Any]) -> Tensor:
        """Loss of what the teacher showed of each image against its ground truth, (B,)."""
        reader = self.teacher.reader
        view = next(iter(teacher(reader.strides).values()))
        return teacher_selection.losses(view, reader.spec.dense, self.classes, batch)

    def forward(
        self, student: ViewsAt, teacher: ViewsAt, batch: dict[str, Any], active: list[str], schedule: dict[str, float]
    ) -> dict[str, Tensor]:
        """Scalars by term name, each in its method's unit: a map term once, a head term for each branch of the student.

        Args:
            student: what the student showed of the batch, by strides.
            teacher: what the teacher showed.
            batch: Ultralytics' training batch.
            active: names of the terms that have a weight now.
            schedule: weight of the student's branches in a head term.
        """
        pairs = {place: (student(place[0]), teacher(place[1])) for place in {self.places[n] for n in active}}
        found = {name: self._term(self.methods[name], *pairs[self.places[name]], batch, schedule) for name in active}
        units: dict[str, Any] = dict(self.methods.items())
        return {name: units[name].unit * value for name, value in found.items()}

    def _term(
        self,
        method: Any,
        student: dict[str, View],
        teacher: dict[str, View],
        batch: dict[str, Any],
        schedule: dict[str, float],
    ) -> Tensor:
        fallback = next(iter(teacher.values()))
        if method.classwise and self.classes is not None:
            batch = self.classes.of_batch(batch)

        def between(s: View, t: View) -> Tensor:
            if method.classwise and self.classes is not None:
                s, t = self.classes.of_student(s), self.classes.of_teacher(t)
            value: Tensor = method(s, t, batch)
            return value

        if is_head_term(method) and len(student) > 1:
            parts = [schedule.get(b, 1.0) * between(view, teacher.get(b, fallback)) for b, view in student.items()]
            return torch.stack(parts).sum()
        return between(next(iter(student.values())), fallback)


def plan(
    student: Reader,
    teacher: Reader,
    kd: dict[str, Any],
    names: dict[int, str],
    classes: ClassMap | None = None,
    scale: float = 1.0,
    other: bool = False,
) -> Plan:
    """Which methods a student will be taught by under a teacher.

    Args:
        kd: the folded options: ``gain``, and ``methods`` (each must apply) or ``recipe`` (methods by pair of heads).
        names: index -> name of the data's classes, which the student learns.
        classes: shared classes, None where teacher and data have the same.
        scale: sides of the teacher's images as a multiple of the student's.
        other: whether some of the teacher's images may be of another size than the student's even so.

    Raises:
        UsageError: an option is out of range, a method does not apply to the pair, or none of a recipe does.
    """
    chosen, optional = methods_for(kd, f"{kind(student.spec)}/{kind(teacher.spec)}")
    terms: dict[str, Term] = {}
    used: dict[str, dict[str, Any]] = {}
    refused = []
    other_task = []
    for key, options in chosen.items():
        gain = Gain(**{k: v for k, v in options.items() if k in GAIN})
        gain = replace(gain, gain=kd["gain"] * gain.gain)
        if gain.gain == 0:
            used[key] = options
            continue  # a term of weight 0 still adds zero gradients, which round differently: leave it out
        if optional and (lost := METHODS[key.partition("@")[0]].needs & set(TASK) - student.spec.provides):
            other_task.append(f"method {key} needs {', '.join(sorted(lost))}, which {student.spec.name} does not show.")
            continue  # no news, as it would be if the teacher alone lacked them
        try:
            method, place = _build(
                key, options, student, teacher, len(names), classes, other or scale != 1, kd.get("levels")
            )
            if "cache" in kd:
                check_stored(key, method, teacher.spec)
        except UsageError as error:
            if not optional:
                raise
            refused.append(str(error))
            continue
        used[key] = options
        terms[term_name(type(method), method.tap)] = Term(method, gain, place)
    if not used and (left := refused or other_task):  # a recipe's last resort comes last
        raise UsageError(f"nothing of the recipe applies: {left[-1]}")
    return Plan(teacher, terms, used, refused, classes, scale)


def rounded_imgsz(imgsz: Any, model: Any) -> int:
    """The side of a student's images that Ultralytics will make of imgsz=: a multiple of its largest stride."""
    grid = max(int(model.stride.max()), 32)
    return int(check_imgsz(imgsz, stride=grid, floor=grid, max_dim=1))


def plans(
    student: Reader, kd: dict[str, Any], data: dict[str, Any], side: int, single_cls: bool, varied: bool = False
) -> list[Plan]:
    """A plan for each teacher of the folded options; loads them.

    Args:
        data: Ultralytics' description of the data set: its ``names`` and image ``channels``.
        side: of the student's images, in pixels.
        single_cls: every class of the data counts as one, and so every class of a teacher that stands for one of it.
        varied: whether images of other sizes come too (multi_scale, rect).
    """
    made = []
    for path in kd["teacher"]:
        model = load_teacher(path, kd.get("teacher_contract"), kd.get("teacher_names"), trust=bool(kd.get("trust")))
        fit_channels(model, data.get("channels", 3))
        given = kd.get("classes")
        if single_cls:
            given = {str(name): str(data["names"][0]) for name in given or model.names.values()}
        reader = read(model)
        scale = round_up_to_stride(kd.get("teacher_imgsz") or side, max(reader.strides)) / side
        other = varied and max(reader.strides) > max(32, *student.strides)  # then it may see a larger image
        if kd.get("teachers") == "best" and (missing := teacher_selection.NEEDS - reader.spec.provides):
            raise UsageError(
                f"teachers=best compares detections, and {reader.spec.name} shows no {', no '.join(sorted(missing))}: "
                "use teachers=average."
            )
        shared = match_classes(data["names"], model.names, given)
        made.append(plan(student, reader, kd, data["names"], shared, scale, other))
    terms = [term for one in made for term in one.terms.values()]
    if kd.get("unlabeled_ratio") and all(term.method.truth for term in terms):
        raise UsageError(
            f"unlabeled={kd['unlabeled']} has no ground truth, which every method asked for needs: "
            "add one that does without, such as method=pkd."
        )
    return made


def methods_for(kd: dict[str, Any], pair: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """Method key -> options for a pair of heads such as "dense/set", and whether one may be left out."""
    if "methods" in kd:
        return kd["methods"], False
    recipe = kd["recipe"]
    if pair not in recipe and "any" not in recipe:
        raise UsageError(f"the recipe has nothing for a pair {pair}: name the methods, such as method=pkd.")
    return recipe.get(pair, recipe.get("any")), bool(kd.get("optional"))


def _build(
    key: str,
    options: dict[str, Any],
    student: Reader,
    teacher: Reader,
    classes: int,
    shared: ClassMap | None,
    other: bool,
    levels: str | None,
) -> tuple[Method, Place]:
    name, _, tap = key.partition("@")
    cls = METHODS[name]
    tap = tap or next(iter(cls.taps), "")
    check_heads(key, cls, student.spec, teacher.spec)
    check_tap(key, cls, tap, student.spec, teacher.spec)
    place = levels_for(key, cls, tap, student, teacher, levels == "resize")
    specs = replace(student.spec_at(place[0]), classes=classes), teacher.spec_at(place[1])
    if other:  # bins count the teacher's own cells
        specs = specs[0], replace(specs[1], bins=0, provides=specs[1].provides - {"bins", "finish"})
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
    if f"{kind(student)}/{kind(teacher)}" in method.heads:
        return
    what = {"dense": "anchor points", "set": "a set of boxes"}
    wanted = " or ".join("{} under {}".format(*(what[k] for k in pair.split("/"))) for pair in method.heads)
    raise UsageError(
        f"method {key} compares {wanted}, and {student.name} shows {what[kind(student)]}, "
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
    if not tap and f"{kind(student.spec)}/{kind(teacher.spec)}" != "dense/dense":
        return student.strides, teacher.strides  # matched by their boxes, wherever they come from
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


def term_name(cls: type[Method], tap: str) -> str:
    """Column of a term: at most 10 characters, the progress bar's width, and "loss" in it, so that it is drawn."""
    return f"{cls.term[:3]}_{tap[0]}_loss" if tap and tap != cls.taps[0] else f"{cls.term}_loss"


def needs(method: Method) -> frozenset[str]:
    """Fields of a view that a method reads, on one side at least."""
    return method.needs | method.student_needs | method.teacher_needs | ({method.tap} if method.taps else set())


def is_head_term(method: Any) -> bool:
    """Whether the term is about one head branch (predictions, towers) rather than maps that both branches share."""
    return not method.taps or method.tap == "towers"
