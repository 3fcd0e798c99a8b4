"""ICD: imitate the teacher where a decoder looks that was trained to tell and to locate each object.

Z. Kang, P. Zhang, X. Zhang, J. Sun, N. Zheng: "Instance-Conditional Knowledge Distillation for Object Detection", 2021,
arXiv:2110.12724; code: https://github.com/megvii-research/ICD (read at acf2726).

Instances y_i of an image are its objects (real) and drawn ones that are not there (fake), each described by its class,
a point p near its centre and its size in octaves. The teacher's maps of all levels, each through a 1x1 conv of its own,
are one sequence T of cells, the student's likewise S; e are the sines and cosines of a place, h over the heads:

    q_i  = F_q(MLP([class, e(p), size]))              K = F_k(T + F_p e(cells))        V(T) = F_v T
    m_ih = softmax over cells of q_ih K_h / sqrt(d)
    g_i  = y_i + F_o(sum over cells of m_ih V_h(T));  g_i + FFN(LN(g_i)) predicts whether i is real and its box
    aux  = mean_i BCE(real_i) + mean over real i of sum over left, top, right, bottom |predicted - true| / side
    kd   = mean over real i and h of sum over cells m_ih mean_c (n(V_h(S)) - n(V_h(T)))^2           n: layer norm
    loss = kd + auxiliary aux

kd trains the student and its convs only, aux everything else: the decoder learns from the teacher's maps alone.
The sides are the distances from p to the box's edges, by the object's width or height. In eval mode no instance is
drawn and p is the centre. The random numbers depend only on how often the method has been called.

Where we depart, and why:
- Their levels have one width (an FPN's 256). A YOLO's have not, so the teacher's maps have convs too, which aux trains.
- Their width is 256. With 128 the term takes less than half the time, and a small YOLO's maps are no wider.
- Fake instances have class and size of a random object of the batch, at a uniformly random place. Theirs are drawn from
  COCO's statistics, which say nothing about other data.
- They keep the two losses apart, with the weights 8 and 1, and let the student wait for 1,000 steps until the decoder
  has learned something: `warmup=` of the weight does that. The value in the log contains aux, so it does not go to 0.
- At most 100 objects of an image take part, and with drawn ones 300, as in their code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View

SEED = 2110  # of the drawn instances; any number would do
OBJECTS, INSTANCES = 100, 300  # of an image
JITTER = 0.3  # of an object's sides, by which its point may be off the centre
OCTAVES = 5  # sizes that are told apart: below 64 px, then by doubling
EPS = 1e-4  # of the layer norm, the authors'
LEAST_SIDE = 1e-4  # of the image, for a true side to divide by


@dataclass(frozen=True, slots=True)
class ICDOptions:
    """Options of instance-conditional distillation; all defaults except that of width are the authors'."""

    width: int = 128  # channels of queries, keys and values, a multiple of 4
    heads: int = 8  # heads of the decoder
    fakes: int = 5  # drawn instances for each object
    auxiliary: float = 0.125  # weight of the decoder's own task

    def __post_init__(self) -> None:
        ops.check_choice("icd.width", self.width, tuple(range(4, 1025, 4)))
        ops.check_choice("icd.heads", self.heads, tuple(n for n in range(1, 65) if self.width % n == 0))
        ops.check_choice("icd.fakes", self.fakes, tuple(range(101)))
        ops.check_number("icd.auxiliary", self.auxiliary)


@dataclass(frozen=True, slots=True)
class Instances:
    """Q instances of each image, padded."""

    label: Tensor  # (B, Q)
    box: Tensor  # (B, Q, 4), xyxy in fractions of the image
    point: Tensor  # (B, Q, 2), in fractions of the image
    real: Tensor  # (B, Q), 1 for objects
    there: Tensor  # (B, Q), 0 for padding


class ICD(Method):
    """Squared error of value maps under a decoder's attention to each object, and the decoder's own task."""

    taxonomy_level = "neck"
    term = "icd"
    paper = "Kang et al., Instance-Conditional Knowledge Distillation for Object Detection, 2021, arXiv:2110.12724"
    reported = "RetinaNet R101 -> R50 37.4 -> 40.7 COCO AP (paper)"
    unit = 6.0  # measured 0.047 at unit 1; paper: 8
    taps = ("neck", "backbone")
    truth = True
    Options: ClassVar[type] = ICDOptions
    options: ICDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: ICDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        pairs, width = ops.widths("icd", student, teacher, tap, self.taps), options.width
        self.classes, self.calls = student.classes, 0
        self.student_maps = ops.adapters([(s, width) for s, _ in pairs])
        self.teacher_maps = ops.adapters([(t, width) for _, t in pairs])
        self.describe = mlp(self.classes + width + 2 * OCTAVES, width, width)
        # what is added to all keys alike changes no attention, so these have no bias
        self.place, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.ffn, self.predict = nn.LayerNorm(width), mlp(width, width, width), mlp(width, width, 5)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        s, t = self.sequences(student, teacher)
        asked = self.instances(batch)
        shape = (-1, self.options.heads, self.options.width // self.options.heads)
        described = self.describe(self.description(asked, batch))
        places = torch.cat([cells(x) for x in ops.required(getattr(student, self.tap), self.tap)]).to(t)
        key = self.key(t + self.place(waves(places, self.options.width))).unflatten(-1, shape[1:])
        query, value = (x.unflatten(-1, shape[1:]) for x in (self.query(described), self.value(t)))
        attention = (torch.einsum("bqhd,bshd->bhqs", query, key) / math.sqrt(shape[2])).softmax(-1)
        seen = described + self.out(torch.einsum("bhqs,bshd->bqhd", attention, value).flatten(2))
        aux = auxiliary(self.predict(seen + self.ffn(self.norm(seen))), asked)
        learned = F.linear(s, self.value.weight.detach(), self.value.bias.detach()).unflatten(-1, shape[1:])
        apart = (normed(learned) - normed(value.detach())).square().mean(-1)
        weight = (attention.detach() * asked.real[:, None, :, None]).sum(2)
        kd = torch.einsum("bhs,bsh->", weight, apart) / (shape[1] * asked.real.sum().clamp(min=1))
        return kd + self.options.auxiliary * aux

    def sequences(self, student: View, teacher: View) -> tuple[Tensor, Tensor]:
        """S and T of the module's docstring, (B, cells, width) twice."""
        maps = ops.paired(student, teacher, self.tap, self.student_maps)
        s = [adapter(x).flatten(2).mT for adapter, x, _ in maps]
        t = [conv(x).flatten(2).mT for conv, (_, _, x) in zip(self.teacher_maps, maps, strict=True)]
        return ops.wide(torch.cat(s, 1)), ops.wide(torch.cat(t, 1))

    def instances(self, batch: dict[str, Tensor]) -> Instances:
        """The batch's objects and, in training, this call's drawn instances."""
        boxes, index = ops.ground_truth(batch)
        boxes = boxes / boxes.new_tensor([batch["img"].shape[-1], batch["img"].shape[-2]]).repeat(2)
        label = batch["cls"].to(index.device).reshape(-1).long()
        images = len(batch["img"])
        kept = ranks(index, images) < OBJECTS
        boxes, index, label, real = boxes[kept], index[kept], label[kept], torch.ones_like(boxes[kept][:, 0])
        shift = torch.zeros_like(boxes[:, :2])
        if self.training and len(index):
            numbers = torch.Generator().manual_seed(SEED + self.calls)
            self.calls += 1
            count = len(index) * self.options.fakes
            like = torch.randint(len(index), (count,), generator=numbers).to(index.device)
            centre = torch.rand(count, 2, generator=numbers).to(boxes)
            half = (boxes[like, 2:] - boxes[like, :2]) / 2
            shift = JITTER * (2 * torch.rand(len(index) + count, 2, generator=numbers).to(boxes) - 1)
            boxes = torch.cat((boxes, torch.cat((centre - half, centre + half), -1)))
            label, index = (
                torch.cat((label, label[like])),
                torch.cat((index, index.repeat_interleave(self.options.fakes))),
            )
            real = torch.cat((real, real.new_zeros(count)))
        point = (boxes[:, :2] + boxes[:, 2:]) / 2 + shift * (boxes[:, 2:] - boxes[:, :2])
        rank = ranks(index, images)
        kept = rank < INSTANCES
        slots = min(int(torch.bincount(index, minlength=images).max()), INSTANCES)
        place = (index[kept], rank[kept])

        def padded(x: Tensor) -> Tensor:
            return x.new_zeros(images, slots, *x.shape[1:]).index_put(place, x[kept])

        return Instances(*map(padded, (label, boxes, point, real, torch.ones_like(real))))

    def description(self, asked: Instances, batch: dict[str, Tensor]) -> Tensor:
        """What the queries are made of, (B, Q, classes + width + 2 octaves)."""
        like = next(self.describe.parameters())
        sides = (asked.box[..., 2:] - asked.box[..., :2]) * asked.box.new_tensor(batch["img"].shape[:-3:-1])
        octave = (sides.clamp(min=1).log2() - 5).long().clamp(0, OCTAVES - 1)
        return torch.cat(
            (
                F.one_hot(asked.label, self.classes).to(like),
                waves(asked.point, self.options.width).to(like),
                F.one_hot(octave, OCTAVES).flatten(-2).to(like),
            ),
            -1,
        )

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)


def mlp(first: int, inside: int, last: int) -> nn.Sequential:
    """Three layers."""
    return nn.Sequential(
        nn.Linear(first, inside), nn.ReLU(), nn.Linear(inside, inside), nn.ReLU(), nn.Linear(inside, last)
    )


def auxiliary(predicted: Tensor, asked: Instances) -> Tensor:
    """The decoder's own loss, from (B, Q, 5): the logit of being real, then left, top, right and bottom before the
    sigmoid.
    """
    real = F.binary_cross_entropy_with_logits(predicted[..., 0], asked.real.to(predicted), reduction="none")
    true = torch.cat((asked.point - asked.box[..., :2], asked.box[..., 2:] - asked.point), -1)
    side = (asked.box[..., 2:] - asked.box[..., :2]).clamp(min=LEAST_SIDE).repeat(1, 1, 2)
    edges = ((predicted[..., 1:].sigmoid() - true) / side).abs().sum(-1)
    return (real * asked.there).sum() / asked.there.sum().clamp(min=1) + (
        edges * asked.real
    ).sum() / asked.real.sum().clamp(min=1)


def ranks(index: Tensor, images: int) -> Tensor:
    """Each entry's number among those of its image, (M,) -> (M,)."""
    count = torch.bincount(index, minlength=images)
    order = index.argsort(stable=True)
    rank = torch.empty_like(index)
    rank[order] = torch.arange(len(index), device=index.device) - (count.cumsum(0) - count)[index[order]]
    return rank


def normed(x: Tensor) -> Tensor:
    """Layer norm over the channels of a head, without weights of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def cells(x: Tensor) -> Tensor:
    """Centres of a map's cells in fractions of the image, (., ., H, W) -> (H W, 2), x before y."""
    rows, columns = ((torch.arange(n, device=x.device) + 0.5) / n for n in x.shape[-2:])
    return torch.cartesian_prod(rows, columns).flip(-1)


def waves(places: Tensor, width: int) -> Tensor:
    """Sines and cosines of x, then of y, at width / 4 wavelengths each, (..., 2) -> (..., width)."""
    number = torch.arange(width // 2, device=places.device)
    length = 10000 ** (2 * (number // 2) / (width // 2))
    angle = 2 * math.pi * places[..., None] / length.to(places)
    return torch.where(number % 2 == 0, angle.sin(), angle.cos()).flatten(-2)
