"""Which start is the best: each is trained for a few steps, and the one with the lowest loss on other images wins.

The loss before any training says little: a start that is solved for is far better at once, but the student's own
weights may learn faster. So the race is the training in miniature, its terms included, with a learning rate that rises
and falls; every start sees the same images in the same order. The winner keeps what it has learnt.

The own weights and those with a solved head differ in the last convolutions only, or in an RT-DETR's decoder. There the
loss before does tell, and only the better of the two takes part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import RTDETRDecoder

from yolokd.init.teacher_statistics import evaluated, raw_outputs
from yolokd.init.transfer import State
from yolokd_edge.progress import Progress

STEPS, BATCH = 32, 16  # at most, for each start: three starts take 1.5 % of 100 epochs of 64 steps
UNSEEN = 64  # augmented images that starts are judged by
MAX_NORM = 10.0  # of a step's gradient, as in Ultralytics' trainers

Batch = dict[str, Any]
Weights = tuple[State, State]  # of the student and of the adapters


def race(
    learner: Any,
    starts: dict[str, State],
    batches: Callable[[], Iterable[Batch]],
    unseen: Callable[[], Iterable[Batch]],
    steps: int,
    rate: float,
    frozen: frozenset[int] = frozenset(),
) -> tuple[dict[str, float], Weights]:
    """The loss on unseen images that each start comes to, inf where it is not finite, and the winner's weights after
    the race. The student and the adapters are left as they were.

    Args:
        learner: the student in its `Distiller`, whose terms belong to the training.
        starts: weights of the student by name.
        batches: gives the same batches of labelled training images every time.
        unseen: gives batches of labelled images that are in none of those.
        steps: the number of training batches.
        rate: AdamW's highest learning rate.
        frozen: indices of the student's layers that do not learn.
    """
    student, adapters = learner.module, learner.methods
    before = copy.deepcopy((student.state_dict(), adapters.state_dict()))
    losses: dict[str, float] = {}
    best = before
    try:
        with untouched(learner, frozen):
            entrants = entered(student, starts, unseen)
            with Progress("trying the student's starts", steps * len(entrants)) as progress:
                for name, state in entrants.items():
                    student.load_state_dict(state)
                    adapters.load_state_dict(before[1])
                    run(learner, counted(batches(), progress), steps, rate, frozen)
                    parts = [detection_loss(student, batch) for batch in unseen()]
                    loss = sum(parts) / len(parts)
                    losses[name] = loss if math.isfinite(loss) else math.inf
                    if loss <= min(losses.values()):
                        best = copy.deepcopy((student.state_dict(), adapters.state_dict()))
    finally:  # too little memory, for instance
        student.criterion = None  # it was made for this; the training makes a new one
        student.load_state_dict(before[0])
        adapters.load_state_dict(before[1])
    return losses, best


def counted(batches: Iterable[Batch], progress: Progress) -> Iterator[Batch]:
    """The batches; progress counts each that was used."""
    for batch in batches:
        yield batch
        progress.step()


def entered(student: Any, starts: dict[str, State], unseen: Callable[[], Iterable[Batch]]) -> dict[str, State]:
    """The starts that take part."""
    if not {"own", "head"} <= starts.keys():
        return starts
    before = {}
    for name in ("own", "head"):
        student.load_state_dict(starts[name])
        before[name] = sum(detection_loss(student, batch) for batch in unseen())
    worse = "own" if before["head"] < before["own"] else "head"
    return {name: state for name, state in starts.items() if name != worse}


@contextmanager
def untouched(learner: Any, frozen: frozenset[int] = frozenset()) -> Iterator[None]:
    """Modules as they were afterwards, and no gradients left; meanwhile the parameters learn that Ultralytics will let
    learn, all but those of frozen layers and of the head's fixed convolution."""
    modes = [(module, module.training) for module in learner.modules()]
    fixed = (".dfl", *(f"model.{i}." for i in frozen))
    parameters = [(p, p.requires_grad) for p in learner.module.parameters()]
    for name, p in learner.module.named_parameters():
        p.requires_grad_(p.is_floating_point() and not any(part in name for part in fixed))
    momenta = [(module, module.momentum) for module in norms(learner.module)]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, momentum in momenta:
            module.momentum = momentum
        for p, learns in parameters:
            p.requires_grad_(learns)
        for p in learner.parameters():
            p.grad = None


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def run(learner: Any, batches: Iterable[Batch], steps: int, rate: float, frozen: frozenset[int] = frozenset()) -> None:
    """Train the student and the adapters: the rate rises to `rate` over a third of the steps, falls over the last."""
    parameters = [p for part in (learner.module, learner.methods) for p in part.parameters() if p.requires_grad]
    optimizer, third = torch.optim.AdamW(parameters, weight_decay=0.0), max(steps / 3, 1)
    learner.train()
    for i, layer in enumerate(learner.module.model):
        if i in frozen:
            layer.eval()  # its statistics stay
    for module in norms(learner.module):
        module.momentum = min(3 / steps, 1.0)  # so that the statistics are those of these images in the end
    for i, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((i + 1) / third, (steps - i) / third, 1.0)
        optimizer.zero_grad()
        learner(batch)[0].sum().backward()
        if math.isfinite(nn.utils.clip_grad_norm_(parameters, MAX_NORM)):
            optimizer.step()


@torch.no_grad()
def detection_loss(model: Any, batch: dict[str, Tensor]) -> float:
    """The student's own training loss of an image, without touching batch norm statistics.

    An RT-DETR's is that of its encoder and of its last layer, as Ultralytics validates it: the mean over objects,
    without the denoising queries, which are random.
    """
    if isinstance(model.model[-1], RTDETRDecoder):
        with evaluated(model):
            return float(model.loss(batch)[0])
    with raw_outputs(model):
        loss, _ = model.loss(batch)
    return float(loss.sum()) / len(batch["img"])
