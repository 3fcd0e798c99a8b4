"""What a teacher outputs for some images at every convolution that has a partner in the student."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolokd.detectors.reader import Reader
from yolokd.detectors.rtdetr import RTDETRReader
from yolokd.init.detr_pairs import TransformerPair, decoder_images
from yolokd.init.layer_pairs import LayerPair, bare, norm_of

PIXELS = 32 * 160 * 160  # pixels of the images in one forward pass of the teacher
MAX_GRADIENT_SIDE = 896  # images are cropped to this side where gradients are taken; a multiple of every stride
POINTS = 2**14  # highest number of points of a map that a convolution is fitted to
LAST_POINTS = 2**15  # the same for a head's last convolutions


class TeacherStatistics:
    """What the teacher outputs for some images at each pair's convolution that runs, by the pair's name.

    Attributes:
        spread, metric: (C, C), covariance of its output, and the cost in the predictions of an error in it.
        points: (image, row, column) of the points at which it is sampled.
        targets: (points, C), its output there before the activation.
        confidence, share: (points,), the top class probability there, and how many cells the point represents.
        inputs: what arrives at each pair of transformers: a map (B, C, H, W), or one of each level.

    Args:
        step: called after each of the `passes` through the teacher.
    """

    def __init__(
        self, teacher: Reader, matched: Sequence[LayerPair | TransformerPair], images: Tensor,
        step: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.teacher, self.step = teacher, step
        self.matched = [p for p in matched if isinstance(p, LayerPair)]
        self.transformers = [p for p in matched if isinstance(p, TransformerPair)]
        teacher.model.requires_grad_(False)
        self.generator = torch.Generator().manual_seed(0)
        self.spread: dict[str, Tensor] = {}
        self.metric: dict[str, Tensor] = {}
        self.points: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.targets: dict[str, Tensor] = {}
        self.confidence: dict[str, Tensor] = {}
        self.share: dict[str, Tensor] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        size = batch_size(images)
        with raw_outputs(teacher.model):
            self._measure(torch.split(measured_on(images), size))
            self._record(images, size)

    def _measure(self, batches: Any) -> None:
        """Compute spread and metric at every hidden convolution's output."""
        moments: dict[str, list[Any]] = {p.name: [0, 0, 0, 0] for p in self.matched if not p.last}

        def add_output(name: str, out: Tensor) -> None:
            x, moment = out.detach().transpose(0, 1).flatten(1), moments[name]
            moment[0], moment[1], moment[2] = moment[0] + x @ x.T, moment[1] + x.sum(1), moment[2] + x.shape[1]
            if not out.requires_grad:  # a branch whose input is detached, such as YOLO26's one2one in training
                out.requires_grad_()
            hook: Any = out.register_hook
            hook(lambda gradient: add_gradient(moment, gradient.transpose(0, 1).flatten(1)))

        def add_gradient(moment: list[Any], gradient: Tensor) -> None:
            moment[3] = moment[3] + gradient @ gradient.T

        hooks = [
            p.teacher.register_forward_hook(lambda m, args, out, name=p.name: add_output(name, out))
            for p in self.matched
            if not p.last
        ]
        fields = frozenset({"logits", "boxes", "rotated"}) & self.teacher.fields
        with hooked(hooks), torch.enable_grad():
            for images in batches:
                # the statistics are over positions, so a crop is enough: memory must not grow with the image size
                images = images[..., :MAX_GRADIENT_SIDE, :MAX_GRADIENT_SIDE]
                with self.teacher.record(fields) as maps:
                    self.teacher.model(images.clone().requires_grad_())
                views = [*self.teacher.views(maps, fields, self.teacher.strides).values()]
                if isinstance(self.teacher, RTDETRReader):
                    views.append(self.teacher.proposals(maps))
                torch.autograd.backward(torch.stack([self._probe(v) for v in views]).sum())
                self.step()
        for name, (square, total, count, metric) in moments.items():
            if not count:  # it runs in training only, as YOLO26's class maps beside its masks do
                continue
            mean = total / count
            self.spread[name] = square / count - mean[:, None] * mean
            # a branch without predictions gets no gradient: all its channels have equal weight
            self.metric[name] = (
                metric / metric.diagonal().mean() if isinstance(metric, Tensor) else torch.eye(len(mean)).to(mean)
            )

    def _probe(self, view: Any) -> Tensor:
        """Sum of the predictions with random signs, scaled to comparable units: classes by the standard deviation of a
        Bernoulli variable of the predicted probability, boxes by their size and the root of their confidence."""
        p, boxes = view.logits.detach().sigmoid(), view.rotated if view.boxes is None else view.boxes
        if view.boxes is None:  # centres, sides and an angle in radians
            size = boxes[..., 2:4].detach().clamp_min(1).repeat(1, 1, 2)
            size = torch.cat((size, torch.ones_like(size[..., :1])), -1)
        else:
            size = (boxes[..., 2:] - boxes[..., :2]).detach().clamp_min(1).repeat(1, 1, 2)
        scaled = view.logits * (p * (1 - p)).sqrt(), boxes / size * p.amax(-1, keepdim=True).sqrt()
        signs = (torch.randint(0, 2, x.shape, generator=self.generator).to(x) * 2 - 1 for x in scaled)
        return torch.stack([(x * sign).sum() for x, sign in zip(scaled, signs, strict=True)]).sum()

    @torch.no_grad()
    def _record(self, images: Tensor, size: int) -> None:
        """Choose the points and record the targets there."""
        maps: dict[str, Tensor] = {}
        hooks = [
            (norm_of(p.teacher) or p.teacher).register_forward_hook(
                lambda m, args, out, name=p.name: maps.__setitem__(name, out.clone())  # activations change it in place
            )
            for p in self.matched
        ]
        hooks += [p.teacher.register_forward_pre_hook(self._keeper(p, len(images))) for p in self.transformers]
        batches: dict[str, list[tuple[Tensor, ...]]] = {p.name: [] for p in self.matched}
        with hooked(hooks), self._scores() as scores:
            for start in range(0, len(images), size):
                scores.clear()
                with self.teacher.record(frozenset({"logits"})) as recorded:
                    self.teacher.model(images[start : start + size])
                tops = self._confidence(recorded, scores)
                for p in self.matched:
                    if p.name in maps:
                        batches[p.name].append(self._sample(p, maps[p.name], tops, start, len(images)))
                self.step()
        for name, parts in batches.items():
            if not parts:
                continue
            b, row, column, target, confidence, share = (torch.cat(x) for x in zip(*parts, strict=True))
            self.points[name], self.targets[name] = (b, row, column), target
            self.confidence[name], self.share[name] = confidence, share

    def _keeper(self, p: TransformerPair, images: int) -> Callable[..., None]:
        """A hook that stores what arrives at a transformer: at a decoder, of as many images as it is fitted to."""

        def keep(module: Any, args: tuple[Any, ...]) -> None:
            maps = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            kept = self.inputs.setdefault(p.name, [x[:0] for x in maps])
            wanted = decoder_images(module, maps) if p.last else images
            for i, x in enumerate(maps):
                kept[i] = torch.cat([kept[i], x.detach()[: max(wanted - len(kept[i]), 0)]])

        return keep

    @contextmanager
    def _scores(self) -> Iterator[list[Tensor]]:
        """Within the block, the scores that an RT-DETR gives to all cells of a batch."""
        found: list[Tensor] = []
        head = getattr(self.teacher.head, "enc_score_head", None)
        hooks = [] if head is None else [head.register_forward_hook(lambda m, args, out: found.append(out))]
        with hooked(hooks):
            yield found

    def _confidence(self, recorded: dict[Any, Any], scores: list[Tensor]) -> list[Tensor]:
        """(B, 1, H, W) for every level: the top class probability in each cell."""
        view = next(iter(self.teacher.views(recorded, frozenset({"logits"}), self.teacher.strides).values()))
        sizes = [m.shape[-2:] for m in recorded["neck"]]
        logits: Any = scores[0] if scores else view.logits
        tops = logits.sigmoid().amax(-1).split([h * w for h, w in sizes], 1)
        return [top.reshape(-1, 1, *size) for top, size in zip(tops, sizes, strict=True)]

    def _sample(self, p: LayerPair, z: Tensor, tops: list[Tensor], start: int, images: int) -> tuple[Tensor, ...]:
        """Points of a batch's map, half drawn uniformly, half by the teacher's confidence: image, row, column, the map
        there, confidence, share."""
        h, w = z.shape[-2:]
        unknowns = bare(p.student).weight[0].numel()
        count = min(max((LAST_POINTS if p.last else min(max(10 * unknowns, 2**12), POINTS)) // images, 1), h * w)
        level = min(tops, key=lambda top: abs(top.shape[-2] - h))
        top = F.interpolate(level, size=(h, w)).flatten(1)
        density = top / top.sum(1, keepdim=True).clamp_min(1e-9) + 1 / (h * w)
        # drawn by the pair's name, so that a start does not depend on which others are solved with it
        generator = torch.Generator().manual_seed(zlib.crc32(f"{p.name} {start}".encode()))
        place = torch.multinomial(density.cpu(), count, generator=generator).to(z.device)
        b = torch.arange(len(z), device=z.device)[:, None].expand_as(place).flatten()
        row, column = place.flatten() // w, place.flatten() % w
        share = 1 / density if count < h * w else torch.ones_like(density)
        return (
            b + start,
            row,
            column,
            z[b, :, row, column],
            top.gather(1, place).flatten(),
            share.gather(1, place).flatten(),
        )


def batch_size(images: Tensor) -> int:
    """How many of the images go through the teacher at once."""
    return max(PIXELS // images[0, 0].numel(), 1)


def measured_on(images: Tensor) -> Tensor:
    """Those of which the gradients are taken."""
    return images[: max(len(images) // 8, batch_size(images))]


def passes(images: Tensor) -> int:
    """How many times images go through the teacher."""
    return sum(-(-len(some) // batch_size(images)) for some in (measured_on(images), images))


@contextmanager
def hooked(hooks: list[Any]) -> Iterator[None]:
    """Remove the hooks after the block."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def raw_outputs(model: Any) -> Iterator[None]:
    """Eval mode, except for the head's own training flag, which makes it output raw predictions."""
    with evaluated(model):
        model.model[-1].training = True
        yield


@contextmanager
def evaluated(model: Any) -> Iterator[None]:
    """Eval mode; afterwards every module's mode is as it was."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
