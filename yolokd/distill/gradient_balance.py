"""Automatic balance: every term's gradient measured beside the task loss's, and kept at a share of it.

At a step that is measured, with g(x) the gradient of x with respect to the maps that feed the head (the neck's, which
the task's loss and almost every term reach), |.| its norm over all of them and gain the term's own:

    task_i, own_i = moving averages of |g(task loss)| and |g(term i)|, the term taken without its gain
    factor_i      = share task_i / own_i                   term i then counts gain_i factor_i times its value
    ratio         = sum_i |g(what term i counts)| / |g(task loss)|        at this step; the column `kd_ratio`

So a gain of 1 is `share` of the task's gradient, whatever the term's unit, and schedules work as before. A term that
does not reach those maps (one on the backbone; the one2one branch of YOLO26, whose maps are detached; a student that is
frozen up to its head) is measured together with the task's loss at its own inputs: its maps, or the head's raw outputs.

A measured step costs the backward pass of every term and of the head once more; one in `EVERY` steps is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

COLUMN = "kd_ratio"  # at most 10 characters, the progress bar's width; without "loss", for it is none
EVERY = 20  # steps from one measurement to the next
RATE = 0.1  # of the moving averages, after their first 1 / RATE measurements, which they weigh alike
MAX_FACTOR = 1e4  # factor of a term with hardly any gradient
HALF_SCALE = 1024.0  # float16 carries no gradient below 6e-8


class Balance(nn.Module):
    """Factors of the terms and the ratio, and what they are computed from: two averages and a count per term.

    Args:
        names: the terms.
        share: what a gain of 1 is worth of the task's gradient; None measures and changes nothing.
    """

    task: Tensor
    own: Tensor
    seen: Tensor
    ratio: Tensor

    def __init__(self, names: list[str], share: float | None) -> None:
        super().__init__()
        self.names, self.share, self.steps = names, share, 0
        for buffer in ("task", "own", "seen"):
            self.register_buffer(buffer, torch.zeros(len(names)))
        self.register_buffer("ratio", torch.zeros(()))

    def forward(
        self,
        loss: Tensor,
        terms: dict[str, Tensor],
        gains: dict[str, float],
        shared: list[Tensor],
        inputs: dict[str, list[Tensor]],
    ) -> dict[str, Tensor]:
        """The terms times their factors.

        Args:
            loss: the task's, in the terms' unit.
            terms: weighted by their gains.
            gains: these gains; a term whose gain is 0 is left as it is.
            shared: the maps that feed the head.
            inputs: what else each term starts from.
        """
        if self.steps % EVERY == 0:
            norms = {
                name: gradient_norms(loss, terms[name], [shared, inputs[name]]) for name in self.names if gains[name]
            }
            self._note(norms, gains)
        self.steps += 1
        factors = self.factors()
        return {name: term * factors[i] if gains[name] else term for i, (name, term) in enumerate(terms.items())}

    def factors(self) -> Tensor:
        """(T,), 0 for a term whose gradient has not been measured yet."""
        if self.share is None:
            return torch.ones_like(self.own)
        factors = self.share * self.task / self.own.clamp(min=torch.finfo(torch.float32).tiny)
        return torch.where(self.seen > 0, factors.clamp(max=MAX_FACTOR), 0.0)

    def _note(self, norms: dict[str, tuple[Tensor, Tensor]], gains: dict[str, float]) -> None:
        new = torch.zeros(3, len(self.names), device=self.own.device)  # task, own, and whether both are above 0
        for i, name in enumerate(self.names):
            if name in norms:
                task, own = norms[name]
                good = (task > 0) & (own > 0) & task.isfinite() & own.isfinite()
                new[:, i] = torch.where(good, torch.stack((task, own / gains[name], torch.ones_like(task))), 0.0)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(new)  # every process then has the same factors
        good, (task, own) = new[2] > 0, new[:2] / new[2].clamp(min=1)
        self.seen += good
        rate = torch.where(good, (1 / self.seen.clamp(min=1)).clamp(min=RATE), 0.0)
        self.task += rate * (task - self.task)
        self.own += rate * (own - self.own)
        weight = self.factors() * torch.tensor([gains[name] for name in self.names], device=own.device)
        self.ratio.copy_((weight * own / torch.where(good, task, 1.0)).sum())

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)


def gradient_norms(loss: Tensor, term: Tensor, places: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Norms of the gradients of loss and term at the first place that the term reaches, 0 twice if there is none."""
    for place in places:
        at = [x for x in place if x.requires_grad]
        own = gradient_norm(term, at)
        if own is not None:
            task = gradient_norm(loss, at)
            return torch.zeros_like(own) if task is None else task, own
    return term.new_zeros(()), term.new_zeros(())


def gradient_norm(value: Tensor, at: list[Tensor]) -> Tensor | None:
    """Norm of a scalar's gradient over tensors that require one, None where it reaches none of them."""
    if not at or not value.requires_grad:
        return None
    scale = HALF_SCALE if any(x.dtype == torch.float16 for x in at) else 1.0
    gradients = torch.autograd.grad(value * scale, at, retain_graph=True, allow_unused=True)
    parts = [g.float().norm() for g in gradients if g is not None]
    return torch.stack(parts).norm() / scale if parts else None


def tensors(nest: Any) -> list[Tensor]:
    """The tensors in a nest of dicts, lists and tuples."""
    if isinstance(nest, (dict, list, tuple)):
        return [x for part in (nest.values() if isinstance(nest, dict) else nest) for x in tensors(part)]
    return [nest] if isinstance(nest, Tensor) else []
