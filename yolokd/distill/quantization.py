"""Quantization-aware training: Ultralytics' own, of the student alone, after its start has been chosen.

The student's convolutions round their inputs and weights to eight bits from the first step on, so that it learns
weights that survive it; the teacher stays in full precision. Ranges are found once on training images and kept. The
rounding replaces the class of a layer and not the layer, so readers, adapters and the optimizer notice nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from ultralytics.utils import LOGGER, RANK

from yolokd.detectors.quantized import quantized_layers
from yolokd.distill.starting import StartMixin

BATCH, BATCHES = 16, 8  # images that the ranges are found on


class QuantizationMixin(StartMixin):
    """A trainer whose student may learn to compute in eight bits."""

    quantization: dict[str, Any] | None = None  # the state in the checkpoint of a resumed run

    def setup_model(self) -> Any:
        """As upstream; what a checkpoint says of its quantization is kept."""
        checkpoint = super().setup_model()
        self.quantization = (checkpoint or {}).get("modelopt")
        return checkpoint

    def quantize_student(self, student: nn.Module) -> None:
        """Let the student compute in eight bits, with the ranges that it has on training images or had before."""
        from ultralytics.utils.torch_utils import prepare_qat, restore_qat

        if self.resume and self.quantization:
            restore_qat(student, self.quantization)
        else:
            with self._sample(int(self.args.imgsz), BATCH) as sample:

                def batches() -> Iterator[torch.Tensor]:
                    for i in range(BATCHES):
                        items = sample.items(torch.tensor(sample.seen).roll(-i * BATCH).numpy(), BATCH)
                        yield self.preprocess_batch(sample.dataset.collate_fn(items))["img"]

                # images, not batches: the student's loss, which upstream runs as well, would leave its criterion behind
                prepare_qat(student, batches(), lambda images: images, BATCHES)
        if RANK in {-1, 0}:
            done, layers = quantized_layers(student)
            LOGGER.info(f"The student trains in INT8: {done} of {layers} layers are rounded to eight bits")
