"""The training-only wrapper: student, teacher and methods in, the student's own loss plus named terms out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.detectors.yolo import YoloReader
from yolokd.errors import UsageError
from yolokd.gains import GAIN, Gain
from yolokd.methods import METHODS
from yolokd.methods.base import Method
from yolokd.teacher import Teacher
from yolokd.views import View


class Distiller(nn.Module):
    """Wraps the student for training. The student is called ``module``, so that Ultralytics' ``unwrap_model()`` yields
    the bare student everywhere: EMA, checkpoints, validation and export never meet this class.

    Args:
        student: reads the student.
        teacher: reads the teacher's model, which is taken over and changed.
        terms: term name -> (method, its gain over the epochs): what `build_terms` returned.
        device: where the student is.
    """

    def __init__(
        self, student: YoloReader, teacher: YoloReader, terms: dict[str, tuple[Method, Gain]], device: torch.device
    ) -> None:
        super().__init__()
        self.module = student.model
        self.methods = nn.ModuleDict({name: method for name, (method, _) in terms.items()}).to(device)
        self.schedules = {name: gain for name, (_, gain) in terms.items()}
        self.gains = {name: schedule.gain for name, schedule in self.schedules.items()}  # this epoch's
        self.reader, self.strides = student, common_strides(student, teacher)
        self.fields = frozenset().union(*(needs(method) for method, _ in terms.values())) or frozenset({"neck"})
        branches = student.branches if any(is_head_term(m) for m, _ in terms.values()) else student.branches[:1]
        wanted = tuple(b for b in branches if b in teacher.branches) or teacher.branches[:1]
        object.__setattr__(self, "teacher", Teacher(teacher, self.fields, self.strides, wanted, device))

    def __getattr__(self, name: str) -> Any:
        """What is not the wrapper's is the student's: stride, names, yaml, args, criterion ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the gains of an epoch, counted from 0, of a training of so many."""
        self.gains = {name: schedule.at(epoch, epochs) for name, schedule in self.schedules.items()}

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The student's output for images; for a batch dict, (losses, loss items) with one entry more a term."""
        if not isinstance(x, dict):
            if self.training:  # AutoBatch measures memory this way: let it see the teacher's
                self.teacher(x)
            return self.module(x, *args, **kwargs)
        if not any(self.gains.values()):  # no term, or none in these epochs: no teacher either
            loss, items = self.module(x, *args, **kwargs)
            return loss, {**items, **{name: loss.new_zeros(()) for name in self.gains}}
        teacher = self.teacher(x["img"])
        with self.reader.record(self.fields) as seen:
            loss, items = self.module(x, *args, **kwargs)
        student = self.reader.views(seen, self.fields, self.strides)
        with torch.autocast(x["img"].device.type, enabled=False):
            terms = self.terms(student, teacher, x)
        # Ultralytics multiplies a Detect head's loss by the batch size, so the terms are too.
        added = [term.reshape(1) * x["img"].shape[0] for term in terms.values()]
        return torch.cat([loss.reshape(-1), *added]), {**items, **{n: t.detach() for n, t in terms.items()}}

    def terms(self, student: dict[str, View], teacher: dict[str, View], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted scalars by term name: a map term once, a head term for each branch of the student."""
        # YOLO26's criterion moves weight from one2many to one2one during the training; head terms follow it.
        criterion: Any = self.module.criterion
        schedule = {"one2many": getattr(criterion, "o2m", 1.0), "one2one": getattr(criterion, "o2o", 1.0)}
        fallback = next(iter(teacher.values()))
        terms = {}
        for name, method in self.methods.items():
            if not self.gains[name]:
                terms[name] = batch["img"].new_zeros(())
                continue
            if is_head_term(method) and len(student) > 1:
                value = sum(schedule[b] * method(v, teacher.get(b, fallback), batch) for b, v in student.items())
            else:
                value = method(next(iter(student.values())), fallback, batch)
            terms[name] = self.gains[name] * value
        return terms


def build_terms(
    student: YoloReader, teacher: YoloReader, methods: dict[str, dict[str, Any]], kd: float, classes: dict[int, str]
) -> dict[str, tuple[Method, Gain]]:
    """Term name -> (method, gain over the epochs) for every method whose gain is not 0.

    Args:
        methods: "name" or "name@tap" -> options, among them ``gain``.
        kd: overall gain.
        classes: index -> name of the data's classes, which the student learns.

    Raises:
        UsageError: an option is out of range or a method does not apply to the pair.
    """
    strides = common_strides(student, teacher)
    specs = replace(student.spec_at(strides), classes=len(classes)), teacher.spec_at(strides)
    terms: dict[str, tuple[Method, Gain]] = {}
    for key, options in methods.items():
        schedule = Gain(**{k: v for k, v in options.items() if k in GAIN})
        schedule = replace(schedule, gain=kd * schedule.gain)
        if schedule.gain == 0:
            continue  # a term of weight 0 still adds zero gradients, which round differently: leave it out
        name, _, tap = key.partition("@")
        cls = METHODS[name]
        tap = tap or next(iter(cls.taps), "")
        check_classes(key, cls, classes, teacher.model.names)
        try:
            settings = cls.Options(**{k: v for k, v in options.items() if k not in GAIN})
            method = cls(*specs, tap, settings)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"method {key} cannot be used for {specs[0].name} under {specs[1].name}: {error}"
            ) from error
        terms[term_name(cls, tap)] = (method, schedule)
    return terms


def term_name(cls: type[Method], tap: str) -> str:
    """Column of a term: at most 10 characters, the progress bar's width, and "loss" in it, so that it is drawn."""
    return f"{cls.term[:3]}_{tap[0]}_loss" if tap and tap != cls.taps[0] else f"{cls.term}_loss"


def needs(method: Method) -> frozenset[str]:
    """Fields of a view that a method reads."""
    return method.needs | ({method.tap} if method.taps else set())


def is_head_term(method: Any) -> bool:
    """Whether the term is about one head branch (predictions, towers) rather than maps that both branches share."""
    return not method.taps or method.tap == "towers"


def common_strides(student: YoloReader, teacher: YoloReader) -> tuple[int, ...]:
    """Strides at which both heads predict; levels and anchor points are paired there."""
    common = tuple(s for s in student.strides if s in teacher.strides)
    if not common:
        raise UsageError(
            f"{student.spec.name} predicts at strides {student.strides} and {teacher.spec.name} at {teacher.strides}: "
            "without a common stride no level has a partner, choose a teacher with one."
        )
    return common


def check_classes(key: str, method: type[Method], student: dict[int, str], teacher: dict[int, str]) -> None:
    """Refuse a method that compares class by class when the two class lists differ."""
    if student == teacher or not method.classwise:
        return
    here, there = set(student.values()), set(teacher.values())
    if here != there:
        difference = f"only the data has {_few(here - there)}, only the teacher has {_few(there - here)}"
    else:
        index = next(i for i in student if student[i] != teacher.get(i))
        difference = f"class {index} is {student[index]!r} in the data and {teacher.get(index)!r} in the teacher"
    raise UsageError(
        f"method {key} needs the same classes in teacher and data, and {difference}: train a teacher on this data, "
        "or distil features only with method=pkd."
    )


def _few(names: set[str]) -> str:
    listed = ", ".join(repr(n) for n in sorted(names)[:5])
    return (listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"
