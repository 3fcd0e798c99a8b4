"""Quantization-aware training: Ultralytics' own, of the student alone, after its start has been chosen.

The student's convolutions round their inputs and weights to eight bits from the first step on, so that it learns
weights that survive it; the teacher stays in full precision. Ranges are found once on training images and kept. The
rounding replaces the class of a layer and not the layer, so readers, adapters and the optimizer notice nothing of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import distributed
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.utils import LOGGER, RANK

from yolokd.detectors.quantized import quantized_layers
from yolokd.distill.starting import StartMixin
from yolokd.distill.together import one_at_a_time
from yolokd.errors import UsageError

BATCH, BATCHES = 16, 8  # images that the ranges are found on


def check_student(model: Any) -> None:
    """Refuse a student that cannot be trained for INT8."""
    if isinstance(model.model[-1], RTDETRDecoder):
        raise UsageError(
            "quantize=8 is for students with a YOLO's head: with its decoder rounded an RT-DETR had no finite loss."
        )


class QuantizationMixin(StartMixin):
    """A trainer whose student may learn to compute in eight bits."""

    world_size: int
    quantization: dict[str, Any] | None = None  # the state in the checkpoint of a resumed run

    def setup_model(self) -> Any:
        """As upstream; what a checkpoint says of its quantization is kept."""
        checkpoint = super().setup_model()
        self.quantization = (checkpoint or {}).get("modelopt")
        return checkpoint

    def quantize_student(self, student: Any) -> None:
        """Let the student compute in eight bits, with the ranges that it has on training images or had before."""
        from ultralytics.utils.torch_utils import prepare_qat, restore_qat

        check_student(student)
        if self.world_size > 1:  # the first process has chosen the start, and ranges are the widest of all processes
            for tensor in (*student.parameters(), *student.buffers()):
                distributed.broadcast(tensor.data, 0)
        if self.resume and self.quantization:
            restore_qat(student, self.quantization)
        else:
            # images, not batches: the student's loss, which upstream runs as well, would leave its criterion behind
            prepare_qat(
                student, self._calibration_batches(), lambda batch: self.preprocess_batch(batch)["img"], BATCHES
            )
        if RANK in {-1, 0}:
            done, layers = quantized_layers(student)
            LOGGER.info(f"The student trains in INT8: {done} of {layers} layers are rounded to eight bits")

    @one_at_a_time()  # the first process writes the labels' cache; all take the same images
    def _calibration_batches(self) -> list[dict[str, Any]]:
        """Augmented training images, as bytes."""
        with self._sample(int(self.args.imgsz), BATCH) as sample:
            groups = [np.roll(sample.seen, -i * BATCH) for i in range(BATCHES)]
            return [sample.dataset.collate_fn(sample.items(group, BATCH)) for group in groups]
