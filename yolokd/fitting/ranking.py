"""What a student can reach, without training it: its start is solved from the teacher and judged on other images.

The better a network of this size can reproduce what the teacher computes, the lower that loss. It costs seconds a
candidate. Ahead of it lie the works on which parts of a network can be kept: channel pruning by least squares (He et
al. 2017, arXiv 1707.06168), ThiNet (1707.06342), NISP (1711.05908), weight selection (2311.18823) and subcloning
(2312.09299).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.data.random_streams import kept_streams
from yolokd.distill.preflight import Ready
from yolokd.errors import UsageError
from yolokd.init import transfer
from yolokd.init.race import detection_loss

HELD_OUT = 64  # images by which starts are judged
BATCH = 16
STEPS_TIMED = 2  # after one that is not counted


@dataclass(frozen=True)
class Rank:
    """What was found of a candidate."""

    loss: float  # of an image, the student's own training loss
    seconds: float  # that solving and judging took
    step: float  # seconds of a training step under the teacher, measured


class Sample:
    """Training images without augmentation: some to solve on, others to judge by.

    Args:
        data: Ultralytics' description of the data set.
        arguments: of the training.
        imgsz: side of the images, pixels.
        device: where they are used.
        task: what the labels are for.
        detr: whether images are stretched to a square, as an RT-DETR sees them.
    """

    def __init__(
        self, data: dict[str, Any], arguments: dict[str, Any], imgsz: int, device: torch.device, task: str = "detect",
        detr: bool = False,
    ) -> None:  # fmt: skip
        own = {k: v for k, v in arguments.items() if k in DEFAULT_CFG_DICT}
        plain = {"imgsz": imgsz, "cache": False, "rect": False, "task": task, "augment": False}
        self.settings = get_cfg(DEFAULT_CFG_DICT, {**own, **plain})
        with kept_streams():
            self.dataset = stretched(self.settings, data) if detr else plain_images(self.settings, data)
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(0)).tolist()
        cut = min(HELD_OUT, len(order) // 2)
        if not cut:
            raise UsageError(
                f"data={data.get('yaml_file')} has one training image: a ranking needs two or more, better hundreds."
            )
        self.device, self.held_out = device, order[:cut]
        self.seen = order[cut : cut + transfer.images_for(imgsz)]

    def images(self) -> Tensor:
        """(B, 3, H, W) in [0, 1], to solve on."""
        images: Tensor = self._batch(self.seen)["img"]
        return images

    def judges(self) -> list[dict[str, Any]]:
        """Labelled batches of the others."""
        return [self._batch(self.held_out[k : k + BATCH]) for k in range(0, len(self.held_out), BATCH)]

    def _batch(self, places: list[int]) -> dict[str, Any]:
        batch: dict[str, Any] = self.dataset.collate_fn([self.dataset[k] for k in places])
        batch = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        return {**batch, "img": batch["img"].float() / 255}


def plain_images(settings: Any, data: dict[str, Any]) -> Any:
    """The training images as a YOLO validates them."""
    return build_yolo_dataset(settings, data["train"], BATCH, data, mode="val", rect=False)


def stretched(settings: Any, data: dict[str, Any]) -> Any:
    """The training images as an RT-DETR validates them."""
    return RTDETRDataset(
        img_path=data["train"], imgsz=settings.imgsz, batch_size=BATCH, augment=False, hyp=settings, rect=False,
        cache=None, single_cls=settings.single_cls or False, classes=settings.classes, data=data,
        fraction=1.0,
    )  # fmt: skip


def rank(ready: Ready, sample: Sample) -> Rank:
    """Solve a student's start from its teacher and judge it.

    Args:
        ready: student and teacher, as a training would begin with them; the student's weights are changed.
        sample: images of the student's size.
    """
    begun = time.perf_counter()
    student, plan = ready.student, ready.plans[0]
    for model in (student.model, plan.teacher.model):
        model.to(sample.device)
    student.model.args, student.model.nc = sample.settings, student.model.model[-1].nc  # as a trainer sets them
    pairs = transfer.candidates("teacher", student, plan.teacher)
    try:
        solved = transfer.solve(pairs, student, plan.teacher, sample.images(), plan.classes)["teacher"]
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        solved = f"{type(error).__name__}"
    if isinstance(solved, str):
        return Rank(math.inf, time.perf_counter() - begun, step_seconds(ready, sample))
    student.model.load_state_dict(solved)
    parts = [detection_loss(student.model, batch) for batch in sample.judges()]
    loss = sum(parts) / len(parts)
    took = time.perf_counter() - begun
    return Rank(loss if math.isfinite(loss) else math.inf, took, step_seconds(ready, sample))


def step_seconds(ready: Ready, sample: Sample) -> float:
    """Seconds of a training step of one batch: the teacher's forward pass, the student's both ways."""
    student, teacher = ready.student.model, ready.plans[0].teacher.model
    batch, times = sample.judges()[0], []
    student.train().requires_grad_(True)
    for _ in range(1 + STEPS_TIMED):
        begun = time.perf_counter()
        with torch.no_grad():
            teacher(batch["img"])
        loss = student.loss(batch)[0].sum()
        loss.backward()
        float(loss.detach())  # on a GPU: wait for it
        times.append(time.perf_counter() - begun)
        student.zero_grad()
    student.criterion = None
    return sum(times[1:]) / STEPS_TIMED * BATCH / len(batch["img"])
