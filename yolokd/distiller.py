"""The training-only wrapper: student, teachers and methods in, the student's own loss plus named terms out."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.balance import COLUMN, Balance, tensors
from yolokd.detectors.reader import Reader, Seen
from yolokd.pairing import Pairing


class Distiller(nn.Module):
    """Wraps the student for training. The student is called ``module``, so that Ultralytics' ``unwrap_model()`` yields
    the bare student everywhere: EMA, checkpoints, validation and export never meet this class.

    Args:
        student: reads the student.
        pairings: one a teacher; a term that several have is their mean.
        balance: measures what the terms pull at the student and sets their factors; None leaves them as they are.
    """

    pairings: Any  # an nn.ModuleList of Pairing
    reader: Reader

    balance: Balance | None

    def __init__(self, student: Reader, pairings: list[Pairing], balance: Balance | None = None) -> None:
        super().__init__()
        self.module = student.model
        self.pairings = nn.ModuleList(pairings)
        self.schedules = {name: gain for pairing in pairings for name, gain in pairing.gains.items()}
        self.gains = {name: schedule.gain for name, schedule in self.schedules.items()}  # this epoch's
        self.reader, self.balance = student, balance
        self.fields = frozenset().union(*(pairing.fields for pairing in pairings))

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

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the gains of an epoch, counted from 0, of a training of so many."""
        self.gains = {name: schedule.at(epoch, epochs) for name, schedule in self.schedules.items()}

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The student's output for images; for a batch dict, (losses, loss items) with one entry more a term."""
        if not isinstance(x, dict):
            if self.training:  # AutoBatch measures memory this way: let it see the teachers'
                for pairing in self.pairings:
                    pairing.teacher(x)
            return self.module(x, *args, **kwargs)
        if not any(self.gains.values()):  # no term, or none in these epochs: no teacher either
            loss, items = self.module(x, *args, **kwargs)
            return loss, {**items, **{name: loss.new_zeros(()) for name in self.columns}}
        shown = [pairing.teacher(x["img"]) for pairing in self.pairings]
        with self.reader.record(self.fields) as seen:
            loss, items = self.module(x, *args, **kwargs)
        with torch.autocast(x["img"].device.type, enabled=False):
            terms = self.terms(seen, shown, x)
            factor = self.reader.loss_factor(len(x["img"]))
            if self.balance is not None:
                terms = self.balance(loss.sum() / factor, terms, self.gains, seen["neck"], self._inputs(seen))
                items = {**items, COLUMN: self.balance.ratio.clone()}
        added = [term.reshape(1) * factor for term in terms.values()]
        return torch.cat([loss.reshape(-1), *added]), {**items, **{n: t.detach() for n, t in terms.items()}}

    @property
    def columns(self) -> list[str]:
        """Names of the loss items that are not the student's own, in their order."""
        return [*([] if self.balance is None else [COLUMN]), *self.gains]

    def _inputs(self, seen: Seen) -> dict[str, list[Tensor]]:
        """What each term starts from: its maps, or the head's raw outputs."""
        found: dict[str, list[Tensor]] = {}
        for pairing in self.pairings:
            for name, method in pairing.methods.items():
                if method.taps:
                    views = self.reader.views(seen, frozenset({method.tap}), pairing.places[name][0])
                    found[name] = [x for view in views.values() for x in tensors(getattr(view, method.tap))]
                else:
                    found[name] = tensors(seen["out"])
        return found

    def terms(self, seen: Seen, shown: list[Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Weighted scalars by term name, the mean over the teachers that have it."""
        # YOLO26's criterion moves weight from one2many to one2one during the training; head terms follow it.
        criterion: Any = getattr(self.module, "criterion", None)
        schedule = {"one2many": getattr(criterion, "o2m", 1.0), "one2one": getattr(criterion, "o2o", 1.0)}
        values: dict[str, list[Tensor]] = {name: [] for name in self.gains}
        for pairing, teacher in zip(self.pairings, shown, strict=True):
            active = [name for name in pairing.gains if self.gains[name]]

            student = functools.partial(self.reader.views, seen, pairing.fields)
            for name, value in pairing(student, teacher, batch, active, schedule).items():
                values[name].append(value)
        zero = batch["img"].new_zeros((), dtype=torch.float32)
        return {n: self.gains[n] * torch.stack(v).mean() if v else zero for n, v in values.items()}
