"""A student and one teacher: the methods that compare the two, and what each of them makes of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolokd.detectors.reader import Reader
from yolokd.distill import teacher_selection
from yolokd.distill.applicability import Plan, is_head_term, needs
from yolokd.distill.moving_average import MovingAverage, begin_as_identity
from yolokd.distill.teacher import Teacher
from yolokd.views import View, ViewsAt


class Pairing(nn.Module):
    """One teacher and the methods that compare the student with it.

    Args:
        student: reads the student.
        plan: which methods apply, see `applicability.plan`; the teacher's model is taken over and changed.
        device: where the student is.
        needs_detections: whether the teacher's detections will be read beside the methods, to be compared or stored.
    """

    teacher: Teacher

    def __init__(self, student: Reader, plan: Plan, device: torch.device, needs_detections: bool = False) -> None:
        super().__init__()
        terms = plan.terms
        self.methods = nn.ModuleDict({name: term.method for name, term in terms.items()}).to(device)
        if plan.follows:
            begin_as_identity(self.methods)
        self.gains = {name: term.gain for name, term in terms.items()}
        self.places = {name: term.place for name, term in terms.items()}
        self.classes = None if plan.classes is None else plan.classes.to(device)
        self.fields = frozenset().union(*(needs(t.method) for t in terms.values())) or frozenset({"neck"})
        branches = student.branches if any(is_head_term(t.method) for t in terms.values()) else student.branches[:1]
        teacher_branches = tuple(b for b in branches if b in plan.teacher.branches) or plan.teacher.branches[:1]
        self.teacher_branches = teacher_branches
        teacher_fields = self.fields | teacher_selection.NEEDS if needs_detections else self.fields
        kind = MovingAverage if plan.follows else Teacher
        teacher = kind(plan.teacher, teacher_fields, teacher_branches, device, plan.scale)
        object.__setattr__(self, "teacher", teacher)  # no child module: never in parameters or checkpoints

    def loss(self, teacher: ViewsAt, batch: dict[str, Any]) -> Tensor:
        """Loss of the teacher's detections on each image against its ground truth, (B,)."""
        reader = self.teacher.reader
        view = next(iter(teacher(reader.strides).values()))
        return teacher_selection.losses(view, reader.spec.dense, self.classes, batch)

    def forward(
        self, student: ViewsAt, teacher: ViewsAt, batch: dict[str, Any], active: list[str], schedule: dict[str, float]
    ) -> dict[str, Tensor]:
        """Scalars by term name, each in its method's unit: a map term once, a head term for each branch of the student.

        Args:
            student: the student's views of the batch, by strides.
            teacher: the teacher's.
            batch: Ultralytics' training batch.
            active: names of the terms whose gain is not 0 in this epoch.
            schedule: weight of the student's branches in a head term.
        """
        pairs = {place: (student(place[0]), teacher(place[1])) for place in {self.places[n] for n in active}}
        values = {name: self.value(self.methods[name], *pairs[self.places[name]], batch, schedule) for name in active}
        methods: dict[str, Any] = dict(self.methods.items())
        return {name: methods[name].unit * value for name, value in values.items()}

    def value(
        self,
        method: Any,
        student: dict[str, View],
        teacher: dict[str, View],
        batch: dict[str, Any],
        schedule: dict[str, float],
    ) -> Tensor:
        """What a method makes of views by branch; a head term's branches are summed by the schedule's weights."""
        fallback = next(iter(teacher.values()))
        if method.classwise and self.classes is not None:
            batch = self.classes.of_batch(batch)

        def between(s: View, t: View) -> Tensor:
            if method.classwise and self.classes is not None:
                s, t = self.classes.of_student(s), self.classes.of_teacher(t)
            value: Tensor = method(s, t, batch)
            return value

        if is_head_term(method) and len(student) > 1:
            # A branch that must answer once for an object is left to its own loss where the teacher has none like it:
            # taught a one2many head's scores, it answered several times, and its mAP50 fell from 47 to 22.
            first = next(iter(student))
            taught = {b: view for b, view in student.items() if b == first or b in teacher}
            parts = [schedule.get(b, 1.0) * between(v, teacher.get(b, fallback)) for b, v in taught.items()]
            return torch.stack(parts).sum()
        return between(next(iter(student.values())), fallback)
