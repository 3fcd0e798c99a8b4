"""The training-only wrapper: student, teachers and methods in, the student's own loss plus named terms out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.data.unlabeled import without_objects
from yolokd.detectors.reader import Reader, Recorded
from yolokd.distill import teacher_selection
from yolokd.distill.gradient_balance import COLUMN, Balance, tensors
from yolokd.distill.pairing import Pairing
from yolokd.distill.response_cache import Cache
from yolokd.methods import METHODS
from yolokd.views import ViewsAt

Values = dict[str, list[tuple[float, Tensor]]]  # of a term: images, mean over them


class Distiller(nn.Module):
    """Wraps the student for training. The student is called ``module``, so that Ultralytics' ``unwrap_model()`` yields
    the bare student everywhere: EMA, checkpoints, validation and export never meet this class.

    Args:
        student: reads the student.
        pairings: one per teacher; a term that several have is their mean.
        balance: measures the terms' gradients and sets their factors; None leaves them as they are.
        best: whether each image is taught only by the teacher whose detections fit its ground truth best. A term is
            then the mean over the images of the teachers that have it.
    """

    pairings: Any  # an nn.ModuleList of Pairing
    reader: Reader

    balance: Balance | None

    def __init__(
        self, student: Reader, pairings: list[Pairing], balance: Balance | None = None, best: bool = False
    ) -> None:
        super().__init__()
        self.module = student.model
        self.pairings = nn.ModuleList(pairings)
        self.schedules = {name: gain for pairing in pairings for name, gain in pairing.gains.items()}
        self.gains = {name: schedule.gain for name, schedule in self.schedules.items()}  # this epoch's
        self.reader, self.balance, self.best = student, balance, best
        self.images = {"labelled": 0, "unlabelled": 0}  # of this epoch
        self.taught = [0] * len(pairings)  # labelled images of this epoch, by teacher
        self.weights = [1.0] * len(pairings)  # of each teacher's terms, beside their gains
        self.fields = frozenset().union(*(pairing.fields for pairing in pairings))
        self.caches: list[Cache] = []  # one per teacher, or none
        self.finite: Tensor | None = None  # whether the task's loss and each term were, since it was last taken

    def __getattr__(self, name: str) -> Any:
        """What is not the wrapper's is the student's: stride, names, yaml, args, criterion ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    @property
    def methods(self) -> nn.ModuleList:
        """The methods of every pairing, whose adapters learn with the student."""
        return nn.ModuleList([pairing.methods for pairing in self.pairings])

    def begin_from_teacher(self) -> None:
        """Take the gains that are for a student which starts from its teacher."""
        self.schedules = {name: gain.of_started() for name, gain in self.schedules.items()}
        self.gains = {name: schedule.gain for name, schedule in self.schedules.items()}

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the gains of an epoch, counted from 0, of a training of `epochs`; counts begin anew."""
        self.images, self.taught = dict.fromkeys(self.images, 0), [0] * len(self.pairings)
        for cache in self.caches:
            cache.start_epoch()
        self.gains = {name: schedule.at(epoch, epochs) for name, schedule in self.schedules.items()}

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The student's output for images; for a batch dict, (losses, loss items) with one entry more per term.

        Images under the batch's key "unlabeled" go through the student separately, so that its own loss does not see
        them; a term is the mean over all images, and weighs as it does without them.
        """
        if not isinstance(x, dict):
            if self.training and self.gains:  # AutoBatch measures memory this way: let it see the teachers'
                for pairing in self.pairings:
                    pairing.teacher(x)
            return self.module(x, *args, **kwargs)
        x = dict(x)
        unlabeled = x.pop("unlabeled", None)
        self.images["labelled"] += len(x["img"])
        whole = max(self.weights)
        if not whole or not any(self.gains.values()):  # no term, or none in these epochs: no teacher either
            loss, items = self.module(x, *args, **kwargs)
            return loss, {**items, **{name: loss.new_zeros(()) for name in self.columns}}
        teachers = self.teacher_views(x["img"], x.get("view"))
        with self.reader.record(self.fields) as recorded:
            loss, items = self.module(x, *args, **kwargs)
        factor = self.reader.loss_factor(len(x["img"]))
        with torch.autocast(x["img"].device.type, enabled=False):
            values = self.values(recorded, teachers, x)
            terms = self.weighted(values)
            if self.balance is not None:
                terms = self.balance(loss.sum() / factor, terms, self.gains, recorded["neck"], self._inputs(recorded))
                items = {**items, COLUMN: self.balance.ratio * whole}
        if unlabeled is not None:
            more = self.of_unlabeled(without_objects(unlabeled, x))
            terms = self.weighted({name: parts + more[name] for name, parts in values.items()})
            if self.balance is not None:  # measured on labelled images, which alone the task's loss sees
                terms = dict(zip(terms, torch.stack([*terms.values()]) * self.balance.factors(), strict=True))
        terms = {name: whole * term for name, term in terms.items()}
        added = torch.stack([*terms.values()]) * factor if terms else loss.new_zeros(0)
        finite = added.isfinite()
        self._note(torch.cat((loss.isfinite().all().reshape(1), finite)))
        # without what is not finite: the step is left out anyway, but Ultralytics would go back to the last epoch
        added = torch.where(finite, added, 0.0)
        return torch.cat([loss.reshape(-1), added]), {**items, **{n: t.detach() for n, t in terms.items()}}

    def _note(self, finite: Tensor) -> None:
        self.finite = finite if self.finite is None else self.finite & finite

    def take_finite(self) -> Tensor | None:
        """Whether the task's loss and each term were finite since this was last asked; None if no term was computed."""
        finite, self.finite = self.finite, None
        return finite

    @property
    def titles(self) -> dict[str, str]:
        """What to call the task's loss and each term in a sentence, in the order of `take_finite`."""
        named = {name: method for pairing in self.pairings for name, method in pairing.methods.items()}
        keys = {cls: key for key, cls in METHODS.items()}
        found = {"": "the student's own loss"}
        for name in self.gains:
            tap = named[name].tap
            found[name] = f"the term {name} (method {keys.get(type(named[name]), name)}{f'@{tap}' if tap else ''})"
        return found

    @property
    def columns(self) -> list[str]:
        """Names of the loss items that are not the student's own, in their order."""
        return [*([] if self.balance is None else [COLUMN]), *self.gains]

    def _inputs(self, recorded: Recorded) -> dict[str, list[Tensor]]:
        """What each term is computed from: its maps, or the head's raw outputs."""
        inputs: dict[str, list[Tensor]] = {}
        for pairing in self.pairings:
            for name, method in pairing.methods.items():
                if method.taps:
                    views = self.reader.views(recorded, frozenset({method.tap}), pairing.places[name][0])
                    inputs[name] = [x for view in views.values() for x in tensors(getattr(view, method.tap))]
                else:
                    inputs[name] = tensors(recorded["out"])
        return inputs

    def of_unlabeled(self, batch: dict[str, Any]) -> Values:
        """As `values`, of images without ground truth: all teachers teach each."""
        images = batch["img"]
        self.images["unlabelled"] += len(images)
        teachers = self.teacher_views(images)
        with self.reader.record(self.fields) as recorded:
            self.module(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.values(recorded, teachers, batch, labelled=False)

    def teacher_views(self, images: Tensor, numbers: Sequence[int] | None = None) -> list[ViewsAt]:
        """Every teacher's views of the images, by the numbers under which their responses are stored, if they are."""
        if self.caches and numbers is not None:
            return [cache(images, numbers) for cache in self.caches]
        return [
            pairing.teacher(images) if weight or self.best else (lambda strides: {})  # not used
            for pairing, weight in zip(self.pairings, self.weights, strict=True)
        ]

    def values(
        self, recorded: Recorded, teachers: list[ViewsAt], batch: dict[str, Any], labelled: bool = True
    ) -> Values:
        """Unweighted values by term name, each with the number of images that it stands for."""
        # YOLO26's criterion moves weight from one2many to one2one during the training; head terms follow it.
        criterion: Any = getattr(self.module, "criterion", None)
        schedule = {"one2many": getattr(criterion, "o2m", 1.0), "one2one": getattr(criterion, "o2o", 1.0)}
        count = len(batch["img"])
        own = self.images_by_teacher(teachers, batch) if self.best and labelled else None
        values: Values = {name: [] for name in self.gains}
        for i, (pairing, teacher) in enumerate(zip(self.pairings, teachers, strict=True)):
            active = [n for n, method in pairing.methods.items() if self.gains[n] and (labelled or not method.truth)]
            student: ViewsAt = functools.partial(self.reader.views, recorded, pairing.fields)
            part, share = batch, count / len(teachers)
            if own is not None:
                student, teacher = (
                    teacher_selection.views_of_images(views, own[i], count) for views in (student, teacher)
                )
                part, share = teacher_selection.batch_of_images(batch, own[i]), len(own[i])
            share *= self.weights[i]
            if share:
                for name, value in pairing(student, teacher, part, active, schedule).items():
                    values[name].append((share, value))
        return values

    def images_by_teacher(self, teachers: list[ViewsAt], batch: dict[str, Any]) -> list[Tensor]:
        """The images that each teacher is the best for; counts them."""
        losses = [pairing.loss(teacher, batch) for pairing, teacher in zip(self.pairings, teachers, strict=True)]
        own = teacher_selection.images_of_best(losses)
        self.taught = [n + len(images) for n, images in zip(self.taught, own, strict=True)]
        return own

    def weighted(self, values: Values) -> dict[str, Tensor]:
        """The mean over images of each term, times its gain."""
        terms = {}
        for name, values_of_teachers in values.items():
            total = sum(share for share, _ in values_of_teachers)
            parts = [share / total * value for share, value in values_of_teachers]
            zero = next(self.module.parameters()).new_zeros((), dtype=torch.float32)
            terms[name] = self.gains[name] * torch.stack(parts).sum() if parts else zero
        return terms
