"""Steps whose loss or gradient is no number: not made, named in the log, and the end of a run when they are many."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed
from ultralytics.utils import LOGGER, RANK

from yolokd.errors import UsageError

IN_A_ROW = 10  # a rare image may upset a term for a step or two; what lasts so long does not pass by itself
SHARE = 0.5  # of an epoch's steps: with more left out the student learns from a choice of its images


class Steps:
    """Decides whether a step of the optimizer is made. All processes of a training decide alike."""

    def __init__(self, titles: dict[str, str]) -> None:
        self.titles = titles  # of each part of the loss, in the order of the flags: the task's own, then the terms
        self.in_a_row = self.left_out = self.seen = 0

    def start_epoch(self) -> None:
        """Count the steps of an epoch."""
        self.left_out = self.seen = 0

    def allow(self, finite: Tensor, gradients: Iterable[Tensor], epoch: int) -> bool:
        """Whether all parts of the loss and all gradients are finite; else the log names what is not.

        Args:
            finite: whether each part of the loss is, in every batch since the last step.
            gradients: what the step would follow.
            epoch: counted from 0.

        Raises:
            UsageError: too many steps in a row were not.
        """
        given = list(gradients)
        whole = torch.nn.utils.get_total_norm(given) if given else torch.zeros((), device=finite.device)
        good = torch.cat((finite, whole.isfinite().reshape(1))).int()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(good, distributed.ReduceOp.MIN)
        self.seen += 1
        flags = good.tolist()
        if all(flags):
            self.in_a_row = 0
            return True
        self.in_a_row, self.left_out = self.in_a_row + 1, self.left_out + 1
        lost = [title for title, flag in zip(self.titles.values(), flags, strict=False) if not flag]
        what = " and ".join(lost) or "the gradient of the loss, though each of its parts is,"
        if RANK in {-1, 0}:
            LOGGER.warning(f"Epoch {epoch + 1}, step {self.seen}: {what} is not finite; the step is left out.")
        if self.in_a_row >= IN_A_ROW:
            raise UsageError(self._end(f"{what} was not finite in {IN_A_ROW} steps in a row", epoch))
        return False

    def end_epoch(self, epoch: int) -> None:
        """Refuse to go on, and so to save, where most of an epoch's steps were left out."""
        if self.left_out > SHARE * self.seen:
            few = f"{self.left_out} of {self.seen} steps were left out because the loss or its gradient was not finite"
            raise UsageError(self._end(few, epoch))

    def _end(self, why: str, epoch: int) -> str:
        kept = "the checkpoints of the epoch before are kept" if epoch else "no checkpoint was written"
        return f"training stopped in epoch {epoch + 1}: {why}; {kept}. Lower the gain or lr0=, or leave the method out."
