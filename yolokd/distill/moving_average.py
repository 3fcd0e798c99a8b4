"""The student's own moving average as a teacher, teacher=ema: it is a little ahead of the student, and costs no file.

A. Tarvainen, H. Valpola: "Mean teachers are better role models", 2017, arXiv:1703.01780. The weights are those that
Ultralytics keeps for validation and best.pt, w' <- d w' + (1 - d) w after every step with d from 0 towards 0.9999, so
the teacher is at every moment what would be saved. A resumed run has it from its checkpoint.

- The paper shows both networks differently augmented images; here both see the same, as every teacher does, and differ
  by weights and by batch norm, which is in eval mode in the teacher.
- The paper raises the term's weight over the first epochs, in which the average is no better than the student: that
  is the option `warmup` of every method. YOLOv6 (Li et al., 2022, arXiv:2209.02976) lets its self-distillation decay
  along a cosine, `schedule=cosine floor=0.01`; its teacher is a network like the student that was trained before.
- Adapters of maps begin as the identity.
- How the teacher's terms fade and how the student starts do not ask this teacher: it is always about as good as the
  student, which starts as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from ultralytics.engine.trainer import BaseTrainer

from yolokd.distill.teacher import Teacher


class MovingAverage(Teacher):
    """A teacher whose weights follow those of the student's moving average; its convolutions are not fused."""

    fuse = False

    @torch.no_grad()
    def follow(self, average: nn.Module) -> None:
        """Take the weights and batch norm statistics that the average has now; what was dropped here is left out."""
        theirs = average.state_dict()
        pairs = [(own, theirs[name]) for name, own in self.model.state_dict().items()]
        torch._foreach_copy_([own for own, _ in pairs], [new for _, new in pairs])


class FollowingMixin(BaseTrainer):
    """A trainer that keeps such a teacher up with its student."""

    distiller: Any
    ema: Any

    def _model_train(self) -> None:
        """As upstream, once per epoch; by now the student has its start or what a checkpoint says."""
        super()._model_train()
        self.follow(self.ema.ema)

    def optimizer_step(self) -> None:
        """As upstream, which moves the average."""
        super().optimizer_step()
        self.follow(self.ema.ema)

    def follow(self, average: nn.Module) -> None:
        """Give the teacher these weights, if there is such a teacher."""
        for pairing in self.distiller.pairings:
            if isinstance(pairing.teacher, MovingAverage):
                pairing.teacher.follow(average)


@torch.no_grad()
def begin_as_identity(methods: nn.ModuleDict) -> None:
    """Let adapters change nothing at first: the student's maps are its average's, and a random adapter would ask for
    others.
    """
    for method in methods.values():
        for adapter in getattr(method, "adapters", ()):
            plain = isinstance(adapter, nn.Conv2d) and adapter.kernel_size == (1, 1) and adapter.groups == 1
            if plain and adapter.in_channels == adapter.out_channels:
                nn.init.dirac_(adapter.weight)
                if adapter.bias is not None:
                    nn.init.zeros_(adapter.bias)


def weights_in_race(pairings: Any) -> list[float]:
    """What each teacher's terms weigh while starts are compared: an average of another start would only hold back."""
    return [0.0 if isinstance(pairing.teacher, MovingAverage) else 1.0 for pairing in pairings]
