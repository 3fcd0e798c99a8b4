"""Which class of a teacher is which class of the student: by name, or as a user's file says. Never by index alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.errors import UsageError, printable
from yolokd.views import CLASSWISE, FUNCTIONS, View, each, with_results

LISTED = 20  # classes named in a sentence


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
    student: Mapping[int, str],
    teacher: Mapping[int, str],
    given: Mapping[str, str] | None,
    kept: Collection[int] | None = None,
) -> ClassMap | None:
    """The classes that both know; None when the two lists are equal, so that nothing need be mapped.

    Args:
        student: index -> name of the data's classes.
        teacher: index -> name of the teacher's.
        given: name in the teacher -> name in the data, from a user's file; several may name one. Without it equal
            names match, whatever their order; upper and lower case and blanks around count only where a name has no
            equal and only one fits.
        kept: indices of the data's classes that have labels, None for all. The others are background in training, and
            nothing may be taught about them.

    Raises:
        UsageError: a name fits several classes, or the file names a class that its side does not have.
    """
    here, there = by_name(student), by_name(teacher)
    if doubled := next((name for name, indices in here.items() if len(indices) > 1), None):
        raise UsageError(f"the data has two classes named {doubled!r}, which nothing tells apart: rename one.")
    if given is None:
        pairs = _equal_names(here, there)
    else:
        pairs = {}
        for a, b in given.items():
            named, means = _fitting(a, there, "the teacher"), _fitting(b, here, "the data")
            if pairs.setdefault(named, means) != means:
                raise UsageError(f"classes= names {named!r} of the teacher twice, for {pairs[named]!r} and {means!r}.")
    groups: dict[int, list[int]] = {}
    for a, b in pairs.items():
        if kept is None or here[b][0] in kept:
            groups.setdefault(here[b][0], []).extend(there[a])
    order = sorted(groups)
    if list(student) == order and [groups[k] for k in order] == [[k] for k in teacher]:
        return None
    return ClassMap(order, [groups[k] for k in order])


def by_name(names: Mapping[int, str]) -> dict[str, list[int]]:
    """The indices of every name; a teacher may have one name twice, and then either means it."""
    found: dict[str, list[int]] = {}
    for index, name in names.items():
        found.setdefault(str(name), []).append(index)
    return found


def coverage(
    names: Mapping[int, str], classes: ClassMap | None, teacher: str, kept: Collection[int] | None = None
) -> str:
    """How many classes of the data a teacher teaches, and which it does not.

    Args:
        names: index -> name of the data's classes.
        classes: shared with the teacher, None for all.
        teacher: what to call it.
        kept: indices of the classes that have labels, None for all.
    """
    asked = [k for k in names if kept is None or k in kept]
    taught = set(names) if classes is None else set(classes.student.tolist())
    lost = [str(names[k]) for k in asked if k not in taught]
    whose = "classes of the data" if kept is None else "classes that classes= keeps"
    if not lost:
        return (
            f"all {len(asked)} {whose} are taught by {teacher}"
            if asked[1:]
            else f"the one class is taught by {teacher}"
        )
    more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    listed = printable(", ".join(lost[:LISTED]))
    return f"{len(asked) - len(lost)} of {len(asked)} {whose} are taught by {teacher}; not: {listed}{more}"


def _equal_names(here: Mapping[str, list[int]], there: Mapping[str, list[int]]) -> dict[str, str]:
    """Name in the teacher -> name in the data: equal ones, then of the rest those that alone are equal but for case."""
    pairs = {name: name for name in there if name in here}
    ours, theirs = (_folded(n for n in names if n not in pairs) for names in (here, there))
    for plain, wanted in ours.items():
        fitting = theirs.get(plain, [])
        if fitting and (len(wanted) > 1 or len(fitting) > 1):
            raise UsageError(
                f"the teacher's {_listed(fitting)} and the data's {_listed(wanted)} differ in case or blanks only, so "
                "which one means which is not clear: say it in classes=map.yaml."
            )
        pairs |= dict(zip(fitting, wanted, strict=False))
    return pairs


def _fitting(name: str, known: Mapping[str, list[int]], whose: str) -> str:
    """The known name that a class map's entry stands for."""
    if name in known:
        return name
    fitting = _folded(known).get(_plain(name), [])
    if not fitting:
        raise UsageError(f"classes= names {name!r}, which {whose} does not have; it has {_few(known)}.")
    if len(fitting) > 1:
        raise UsageError(f"classes= names {name!r}, and {whose} has {_listed(fitting)}: write one of these.")
    return fitting[0]


def _folded(names: Iterable[str]) -> dict[str, list[str]]:
    """The names that are equal but for case and blanks around, by what they have in common."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_plain(name), []).append(name)
    return found


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


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(repr, names))


def _few(names: Collection[str]) -> str:
    listed = ", ".join(repr(n) for n in sorted(names)[:5])
    return (listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"
