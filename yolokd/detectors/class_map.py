"""Which class of a teacher is which class of the student: by name, or as a user's file says. Never by index alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.errors import UsageError
from yolokd.views import CLASSWISE, FUNCTIONS, View, each, with_results


class ClassMap(nn.Module):
    """The S classes that student and teacher share, in the student's order.

    Args:
        student: S indices among the student's classes.
        teacher: S groups of indices among the teacher's, each the classes that mean that one.
    """

    student: Tensor
    teacher: Tensor
    lookup: Tensor

    def __init__(self, student: list[int], teacher: list[list[int]]) -> None:
        super().__init__()
        most = max(map(len, teacher), default=1)
        padded = [group + group[:1] * (most - len(group)) for group in teacher]  # a maximum may see one twice
        places = {k: i for i, k in enumerate(student)}
        self.shared = len(student)
        self.register_buffer("student", torch.tensor(student, dtype=torch.long), persistent=False)
        self.register_buffer("teacher", torch.tensor(padded, dtype=torch.long).reshape(-1, most), persistent=False)
        # the student's class -> its place among the shared ones, -1 for none
        lookup = [places.get(k, -1) for k in range(max(student, default=-1) + 1)]
        self.register_buffer("lookup", torch.tensor(lookup, dtype=torch.long), persistent=False)

    def of_student(self, view: View) -> View:
        """The view with only the shared classes' logits, (..., K) -> (..., S)."""
        return with_class_scores(view, lambda z: z[..., self.student])

    def of_teacher(self, view: View) -> View:
        """The view with the shared classes' logits, of several that mean one the highest, (..., K) -> (..., S)."""
        return with_class_scores(view, lambda z: z[..., self.teacher].amax(-1))

    def places(self, cls: Tensor) -> Tensor:
        """Place of each class of the data among the shared ones, -1 for none, (M,) -> (M,)."""
        if not len(self.lookup):
            return torch.full_like(cls, -1)
        known = self.lookup.to(cls.device)[cls.clamp(max=len(self.lookup) - 1)]
        return torch.where(cls < len(self.lookup), known, -1)

    def of_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with only the objects of shared classes, numbered among these."""
        place = self.places(batch["cls"].long().reshape(-1))
        keep = place >= 0
        objects = {key: batch[key][keep] for key in ("bboxes", "batch_idx")}
        return {**batch, **objects, "cls": place[keep].to(batch["cls"].dtype).reshape(-1, *batch["cls"].shape[1:])}


def match_classes(
    student: Mapping[int, str], teacher: Mapping[int, str], given: Mapping[str, str] | None
) -> ClassMap | None:
    """The classes that both know; None when the two lists are equal, so that nothing need be mapped.

    Args:
        student: index -> name of the data's classes.
        teacher: index -> name of the teacher's.
        given: name in the teacher -> name in the data, from a user's file; several may name one. Without it equal
            names match, whatever their order, upper and lower case or blanks around.

    Raises:
        UsageError: the file names a class that its side does not have.
    """
    if given is None and dict(student) == dict(teacher):
        return None
    here = {_plain(name): index for index, name in student.items()}
    there = {_plain(name): index for index, name in teacher.items()}
    if given is None:
        pairs = {name: name for name in there if name in here}
    else:
        pairs = {_plain(a): _plain(b) for a, b in given.items()}
        for known, names, whose in ((there, pairs, "the teacher"), (here, pairs.values(), "the data")):
            if lost := [n for n in names if n not in known]:
                raise UsageError(f"classes= names {lost[0]!r}, which {whose} does not have; it has {_few(known)}.")
    groups: dict[int, list[int]] = {}
    for a, b in pairs.items():
        groups.setdefault(here[b], []).append(there[a])
    order = sorted(groups)
    if list(student) == order and [groups[k] for k in order] == [[k] for k in teacher]:
        return None
    return ClassMap(order, [groups[k] for k in order])


def with_class_scores(view: View, change: Callable[[Tensor], Tensor]) -> View:
    """The view with every class score changed, also those that its functions will return."""

    def changed(name: str, value: Any) -> Any:
        return each(name, value, change) if name in CLASSWISE else value

    new = {name: changed(name, value) for name in CLASSWISE if (value := getattr(view, name)) is not None}
    for name in FUNCTIONS:
        if (function := getattr(view, name)) is not None:
            new[name] = with_results(function, changed)
    return replace(view, **new)


def _plain(name: Any) -> str:
    return str(name).strip().casefold()


def _few(names: Mapping[str, int]) -> str:
    listed = ", ".join(repr(n) for n in sorted(names)[:5])
    return (listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"
