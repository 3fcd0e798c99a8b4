"""How a trainer starts its student: the starts are solved on training images, and `init=auto` lets them race."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK, IterableSimpleNamespace

from yolokd.config.options import DistillOptions
from yolokd.data.random_streams import kept_streams
from yolokd.detectors.reader import Reader
from yolokd.detectors.rtdetr import RTDETRReader
from yolokd.distill.applicability import Plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.moving_average import weights_in_race
from yolokd.distill.teacher import memory_layout, round_up_to_stride
from yolokd.init import transfer
from yolokd.init.channel_choice import ChannelChoice
from yolokd.init.race import BATCH, STEPS, UNSEEN, Weights, race
from yolokd.init.transfer import State

ADAMS = ("adam", "adamw", "adamax", "nadam", "radam")  # Ultralytics takes them in any case
FROM_TEACHER = ("neck", "teacher")  # starts in which the student's maps are its teacher's, as far as its width allows
WARMUP = 1.0  # epochs, for a student that started from its teacher
STARTS = {  # what the student starts with
    "own": "its own weights",
    "head": "its own weights, and the end of its head (an RT-DETR's decoder) solved from the teacher's",
    "neck": "its own backbone, and a neck and head solved from the teacher's",
    "teacher": "weights solved from the teacher's",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Training images as the training will augment them.

    Attributes:
        dataset: gives them.
        seen, unseen: indices of those to fit and to train on, and of those to judge by, which share no photograph.
    """

    dataset: Any
    seen: Any
    unseen: Any

    def items(self, group: Any, count: int) -> list[Any]:
        """Some images of a group, in its order; of a small group some several times, each time augmented anew."""
        # mosaic takes partners from the buffer: none of those that are trained on gets among the unseen
        self.dataset.buffer, self.dataset.max_buffer_length = group.tolist(), sys.maxsize
        items = [self.dataset[i] for i in np.resize(group, count).tolist()]
        self.dataset.ims = [None] * len(self.dataset)  # images stay loaded otherwise, and change the partners
        return items


def frozen_layers(freeze: Any) -> frozenset[int]:
    """The indices of the layers that freeze= holds, in whole or in part."""
    named = range(freeze) if isinstance(freeze, int) else freeze or ()
    return frozenset(int(str(layer).split(".")[0]) for layer in named if str(layer).split(".")[0].isdigit())


class StartMixin(BaseTrainer):
    """A trainer whose student may start from its teacher."""

    args: Any
    data: Any
    world_size: int
    distillation: DistillOptions
    distiller: Distiller
    start: str  # how the student started, one of STARTS: found out by the run, saved beside the options

    def _starts(self, student: Reader, plan: Plan) -> tuple[dict[str, State], torch.Tensor | None]:
        """The starts in question, by name, and the images that they were solved on.

        A resumed run has started, and other ranks get the first one's weights.
        """
        if self.resume:
            return {self.start: {}}, None
        how, frozen = self.distillation.init, frozen_layers(self.args.freeze)
        if RANK not in {-1, 0} or not transfer.candidates(how, student, plan.teacher, frozen):
            return {"own": {}}, None
        layout = memory_layout(self.device)  # on CPUs a seventh faster
        plan.teacher.model.to(self.device, memory_format=layout)
        side = round_up_to_stride(int(self.args.imgsz), max(plan.teacher.strides))
        images = self._some_images(side).contiguous(memory_format=layout)
        choice = ChannelChoice(self.distillation.init_channels, int(self.args.seed))
        return transfer.start(how, student, plan.teacher, images, plan.classes, frozen, choice), images

    def _shorten_warmup(self, student: Reader) -> None:
        """Let the learning rate rise over one epoch instead of three where the student started from its teacher, whose
        head is no new one; and for an RT-DETR that of biases begin at 0.

        Adam moves a bias by its rate in every step. Ultralytics' warm-up begins at a rate of 0.1 for biases, except
        where it chooses the optimizer itself, and a few steps at that rate undo a solved decoder. Other values than
        Ultralytics' defaults are the user's own and are kept.
        """
        args, said = self.args, []
        if self.start in FROM_TEACHER and args.warmup_epochs == DEFAULT_CFG.warmup_epochs:
            args.warmup_epochs = WARMUP
            said.append(f"warmup_epochs={WARMUP:g} instead of {DEFAULT_CFG.warmup_epochs:g}, since no layer is new")
        usual = args.warmup_bias_lr == DEFAULT_CFG.warmup_bias_lr and str(args.optimizer).lower() in ADAMS
        if self.start != "own" and usual and isinstance(student, RTDETRReader):
            args.warmup_bias_lr = 0.0
            said.append(
                f"warmup_bias_lr=0: the usual {DEFAULT_CFG.warmup_bias_lr:g} would undo a decoder's start under "
                f"{args.optimizer}"
            )
        if said and RANK in {-1, 0}:
            LOGGER.info(f"{'; '.join(said)}; give another value to set it yourself")

    def _agreed(self, start: str) -> str:
        """The start that the first rank has chosen."""
        said = [start]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(said, 0, device=self.device)
        return said[0]

    def _choose_start(self, starts: dict[str, State]) -> str:
        """The name of the best start, with whose weights the student begins."""
        best = next(iter(starts))
        if len(starts) == 1:
            return best
        try:
            losses, (student, adapters) = self._race(starts)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            LOGGER.warning("init=auto: too little memory to try the starts, so the student keeps its own.")
            return best
        if not any(math.isfinite(loss) for loss in losses.values()):
            LOGGER.warning("init=auto: no start has a finite loss, so the student keeps its own.")
            return best
        self.distiller.module.load_state_dict(student)
        self.distiller.methods.load_state_dict(adapters)
        return min(losses, key=lambda name: losses[name])

    def _race(self, starts: dict[str, State]) -> tuple[dict[str, float], Weights]:
        """The loss that each start comes to after a few steps, and the best one's weights then."""
        args, side = self.args, int(self.args.imgsz)
        given = str(args.optimizer).lower() in ("adam", "adamw")
        rate = args.lr0 if given else 0.002 * 5 / (4 + self.data["nc"])  # as upstream
        with self._sample(side, max(self.batch_size, BATCH)) as sample:
            steps = min(STEPS, max(len(sample.seen) // BATCH, 1))

            def batches(group: Any, count: int, seed: int) -> Iterator[dict[str, Any]]:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)  # RT-DETR's denoising queries
                group = np.random.permutation(group)
                for i in range(count):
                    items = sample.items(np.roll(group, -i * BATCH), BATCH)
                    yield self.preprocess_batch(sample.dataset.collate_fn(items))

            names = ", ".join(starts)
            LOGGER.info(f"init=auto: trying the starts {names} for {steps} steps each, {BATCH} images a step")
            runner = Distiller(self.distiller.reader, list(self.distiller.pairings), best=self.distiller.best)
            runner.weights = weights_in_race(self.distiller.pairings)
            losses, best = race(
                runner,
                starts,
                lambda: batches(sample.seen, steps, args.seed),
                lambda: batches(sample.unseen, UNSEEN // BATCH, args.seed),
                steps,
                rate,
                frozen_layers(args.freeze),
            )
        said = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        LOGGER.info(f"init=auto: loss on {UNSEEN} images that were not trained on: {said}")
        return losses, best

    def _some_images(self, side: int) -> torch.Tensor:
        """Images to solve a start on."""
        with self._sample(side, max(self.batch_size, 16)) as sample:
            count = max(min(transfer.images_for(side), len(sample.dataset)), 16)
            images: torch.Tensor = self.preprocess_batch(sample.dataset.collate_fn(sample.items(sample.seen, count)))[
                "img"
            ]
            return images

    @contextmanager
    def _sample(self, side: int, batch: int) -> Iterator[Sample]:
        """The training's images, augmented as in training; every random stream is left as it was."""
        args, distillation = self.args, self.distillation
        changes: dict[str, Any] = {"imgsz": side, "cache": False, "rect": False, "multi_scale": 0.0}
        changes |= {"mixup": 0.0, "cutmix": 0.0}  # whose partners come from the whole set, as with stored responses
        with kept_streams():
            self.args = IterableSimpleNamespace(**{**vars(args), **changes})
            self.distillation = replace(distillation, cache=None)
            random.seed(args.seed)
            np.random.seed(args.seed)
            try:
                dataset = self.build_dataset(self.data["train"], "train", batch)
                order = np.random.permutation(len(dataset))
                cut = min(max(len(order) // 8, 1), UNSEEN) if len(order) > 1 else 0
                yield Sample(dataset, order[cut:], order[:cut] if cut else order)
            finally:
                self.args, self.distillation = args, distillation
