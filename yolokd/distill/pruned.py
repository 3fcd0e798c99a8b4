"""Students that no YAML describes, as pruned ones: a trainer takes them as they are.

Ultralytics builds every student anew from its YAML and hands over the weights that fit. Of a pruned student none would.
"""

from __future__ import annotations

from typing import Any

from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.nn.modules.head import OBB, Pose, Segment

from yolokd.errors import UsageError

MARK = "pruned"  # attribute of a model, which its checkpoints keep
PLAIN = {Segment: SegmentationTrainer, Pose: PoseTrainer, OBB: OBBTrainer}


def is_pruned(model: Any) -> bool:
    """Whether a model has other channels than its YAML says."""
    return bool(getattr(model, MARK, False))


def refuse_other_classes(model: Any, classes: int) -> None:
    """Refuse a pruned student for data with another number of classes, for which it would have to be built anew."""
    if is_pruned(model) and int(model.model[-1].nc) != classes:
        raise UsageError(
            f"the pruned student has {model.model[-1].nc} classes and the data {classes}: prune a teacher that was "
            "trained on this data."
        )


class PrunedMixin(BaseTrainer):
    """A trainer that takes pruned students as they are."""

    data: Any

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """As upstream, but for a pruned student."""
        if not is_pruned(weights):
            return super().get_model(cfg, weights, verbose)
        refuse_other_classes(weights, int(self.data["nc"]))
        return weights.float().requires_grad_(True)


def plain_trainer(model: Any) -> type[BaseTrainer] | None:
    """The trainer for a student without a teacher; None for Ultralytics' own."""
    if not is_pruned(model):
        return None
    base = next((t for kind, t in PLAIN.items() if isinstance(model.model[-1], kind)), DetectionTrainer)
    return type(f"Pruned{base.__name__}", (PrunedMixin, base), {})
