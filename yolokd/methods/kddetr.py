"""KD-DETR: both decoders answer the same queries, so that their predictions correspond without matching.

Y. Wang, X. Li, S. Weng, G. Zhang, H. Yue, H. Feng, J. Han, E. Ding: "KD-DETR: Knowledge Distillation for Detection
Transformer with Consistent Distillation Points Sampling", 2022, arXiv:2211.08071; code:
https://github.com/wennyuhey/KD-DETR, of which we have read only the copy
Myleswork/KD-DETR at eecf170.

With m over the queries, d over the student's decoder layers, t the teacher's last layer and c_m = max_k
sigmoid(z_tm):

    part = mean_d sum_m c_m [cls tau^2 KL(sigmoid(z_tm / tau) || sigmoid(z_dm / tau)) + l1 |b_dm - b_tm|_1
                             + giou (1 - GIoU(b_dm, b_tm))] / max(1, sum_m c_m)
    loss = part(specific) + general part(general)

KL is the sum over classes of the binary divergences, |.|_1 is over centre, width and height in fractions of the image.
Specific queries are the teacher's own; a trained linear layer turns their contents into the student's. General ones are
drawn anew in every step: boxes with centre and sides uniform over the image, contents normal, with every channel's mean
and standard deviation over the teacher's own. In eval mode none are drawn. The random numbers depend only on how often
the method has been called, so the student's random numbers are unchanged and a resumed training draws what an
uninterrupted one would.

We follow the authors' code in this: every layer of the student learns from the teacher's last.

Where we depart, and why:
- It takes a softmax over classes at temperature 10. A DETR's classes are sigmoids: see `logit`.
- It divides the boxes' parts by sum_m c_m and does not divide the classes' part, so their balance depends on the batch.
  We divide both.
- Its L1 is a mean over the four numbers; ours is the sum, as in the task's loss, for which the gains were made.
- It draws 300 general queries (the authors' script), as boxes whose four numbers are sigmoids of normal ones, once for
  all images of a batch. We draw 100, which cost a third, uniformly over the image, so that its border is asked about
  as often as its middle, and anew for each image.
- Its queries are learned boxes that share one content. An RT-DETR's contents come from the image, so random ones are
  drawn from their distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.ops import box_convert

from yolokd.methods import ops, sets
from yolokd.methods.base import SET_HEADS, Method
from yolokd.views import Spec, View

SEED = 2211  # of the random queries; any number would do


@dataclass(frozen=True, slots=True)
class KDDETROptions:
    """Options of KD-DETR; the gains are the authors'."""

    general: float = 1.0  # gain of random queries in addition to the teacher's own; 0 draws none
    queries: int = 100  # random queries per image
    tau: float = 1.0  # temperature of the class scores
    cls: float = 1.0  # gain of class scores
    l1: float = 5.0  # gain of the boxes' L1 distance
    giou: float = 2.0  # gain of the boxes' 1 - GIoU

    def __post_init__(self) -> None:
        ops.check_number("kd_detr.tau", self.tau)
        ops.check_choice("kd_detr.queries", self.queries, tuple(range(1, 1001)))
        for name in ("general", "cls", "l1", "giou"):
            ops.check_number(f"kd_detr.{name}", getattr(self, name), inclusive=True)


class KDDETR(Method):
    """Divergence between the two decoders' predictions from the teacher's queries and from random ones."""

    taxonomy_level = "query"
    term = "kdetr"
    paper = "Wang et al., KD-DETR: Knowledge Distillation for Detection Transformer, 2022, arXiv:2211.08071"
    reported = "DAB-DETR R18 to 41.4 COCO AP (+5.2) (paper)"
    unit = 6.0  # measured 0.052 at unit 1; paper: 1
    student_needs = frozenset({"decode"})
    teacher_needs = frozenset({"content", "references", "logits", "boxes"})
    heads = SET_HEADS
    classwise = True
    Options: ClassVar[type] = KDDETROptions
    options: KDDETROptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: KDDETROptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("kd_detr", student, teacher)
        self.adapter = sets.query_adapter(student, teacher)
        if options.general:
            self.teacher_needs = self.teacher_needs | {"decode"}
        self.calls = 0  # a plain number, so reading it does not wait for a device

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_t, b_t, content, references = (
            ops.required(getattr(teacher, name), name).detach() for name in ("logits", "boxes", "content", "references")
        )
        size = (batch["img"].shape[-2], batch["img"].shape[-1])
        loss = self.part(student, content, references, z_t, b_t, size)
        if not self.training or not self.options.general:
            return loss
        content, references = self.drawn(content, references, size)
        with torch.no_grad():
            answers = sets.decoded(teacher, content, references)
        general = self.part(student, content, references, answers["layer_logits"][-1], answers["layer_boxes"][-1], size)
        return loss + self.options.general * general

    def part(
        self,
        student: View,
        content: Tensor,
        references: Tensor,
        z_t: Tensor,
        b_t: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """The loss on the given queries, from the teacher's predictions for them."""
        chosen: KDDETROptions = self.options
        answers = sets.decoded(student, self.adapter(ops.wide(content)), references)
        s = sets.stacked(answers["layer_logits"], answers["layer_boxes"])
        z_t, b_t = ops.wide(z_t), ops.wide(b_t)
        score = ops.confidence(z_t)
        z_t = (z_t / chosen.tau).expand_as(s.logits)  # the same target for all layers
        cls = chosen.cls * chosen.tau**2 * ops.divergence(s.logits / chosen.tau, z_t).sum(-1)
        box = sets.box_losses(s.boxes, b_t, size, sets.PairGains(0.0, chosen.l1, chosen.giou))
        return (score * (cls + box)).sum() / (score.sum().clamp(min=1) * len(s.logits))

    def drawn(self, content: Tensor, references: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """This call's random queries, distributed like the teacher's: contents (B, n, W) and boxes (B, n, 4)."""
        numbers, shape = torch.Generator().manual_seed(SEED + self.calls), (len(content), self.options.queries)
        self.calls += 1
        noise = torch.randn(*shape, content.shape[-1], generator=numbers).to(content.device)
        boxes = torch.rand(*shape, 4, generator=numbers).to(references.device)
        known = ops.wide(content)
        mean, deviation = known.mean((0, 1)), known.std((0, 1), correction=0)
        corners: Tensor = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([size[1], size[0]]).repeat(2)
        return (mean + deviation * noise).to(content.dtype), corners.to(references.dtype)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)
