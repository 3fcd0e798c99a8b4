"""Start the student from its teacher: every convolution that has a partner in the teacher is solved for, in one pass.

Training images run through the teacher, then once through the student. When a student's convolution is reached, its
weights are set to the least-squares solution that turns *what really arrives there* into what the teacher's partner
puts out before its activation, so that a layer also makes up for what the layers before it lost. Layers without a
partner keep their weights, and the next one that has a partner works with what they give. Batch norm's statistics are
those of the images. Last convolutions of the head are fitted to the teacher's predictions.

A narrower student cannot hold all of the teacher's channels. Which it holds is chosen by what the teacher's predictions
would lose, see `solve.pick`; the cost of an error is the mean outer product of the predictions' gradients at the map
(their Gauss-Newton metric). Channels that are added to others (residual connections) or filtered one by one (depthwise
convolutions) follow the choice made where they come from, see `channels`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.utils import LOGGER

from yolokd.channels import Channels, Follow, channels, index, mark
from yolokd.classes import ClassMap
from yolokd.detectors.blocks import Pair, bare, pairs, residuals, sums
from yolokd.detectors.reader import Reader
from yolokd.detectors.yolo import YoloReader
from yolokd.errors import UsageError
from yolokd.solve import least_squares, logistic, patches, pick

PIXELS_SEEN = 512 * 160 * 160  # of the training images that are looked at, such as 32 of 640 x 640
LEAST_UNSEEN = 16  # images on which "auto" chooses, which nothing was fitted to
PIXELS = 32 * 160 * 160  # of images in one forward pass of the teacher
LARGEST = 896  # side of what is seen of an image where gradients are taken, a multiple of every stride
POINTS = 2**14  # of a map that a convolution is fitted to, at most; more for the head's last ones
LAST_POINTS = 2**15


def start(how: str, student: Reader, teacher: Reader, batch: dict[str, Tensor], classes: ClassMap | None = None) -> str:
    """Start the student as `init=` says and return how it starts, "own" or "teacher".

    "auto" takes the teacher's if the student's own weights, given last convolutions and batch norm statistics that are
    fitted in the same way, have the higher detection loss on some of the images, which nothing was fitted to.
    Own weights are left exactly as they are.

    Args:
        how: "own", "teacher" or "auto"; "auto" keeps the own start where the two have no layers in common.
        student: reads the student, which is changed.
        teacher: reads the teacher, on the same device.
        batch: two or more training images, (B, C, H, W) in [0, 1], and their labels, as Ultralytics' trainer has them.
        classes: which the two share; None where they have the same.

    Raises:
        UsageError: "teacher" is asked for, and no layer has a partner or the device's memory is too small.
    """
    matched = partners(how, student, teacher)
    if how == "own" or not matched:
        return "own"
    own = copy.deepcopy(student.model.state_dict())
    try:
        return _better(how, student, teacher, matched, batch, classes, own)
    except torch.OutOfMemoryError as error:
        if how == "teacher":
            raise UsageError(
                f"init=teacher: too little memory to run {teacher.spec.name} on one image with gradients: "
                "leave init= out, or choose a smaller imgsz= or teacher."
            ) from error
    student.model.load_state_dict(own)
    torch.cuda.empty_cache()
    LOGGER.warning("init=auto: too little memory to solve for the teacher's start, the student keeps its own.")
    return "own"


def _better(
    how: str, student: Reader, teacher: Reader, matched: list[Pair], batch: dict[str, Tensor],
    classes: ClassMap | None, own: dict[str, Tensor],
) -> str:  # fmt: skip
    """`start` where layers correspond; own is what the student's weights are."""
    fitted = len(batch["img"]) - unseen_of(len(batch["img"]))
    images = batch["img"][:fitted]
    lesson = Lesson(teacher, matched, images)
    Pupil(student.model, matched, lesson, classes).learn(images)
    if how == "teacher":
        return how
    unseen = part(batch, fitted)
    inherited, cost = copy.deepcopy(student.model.state_dict()), detection_loss(student.model, unseen)
    student.model.load_state_dict(own)
    Pupil(student.model, [p for p in matched if p.last], lesson, classes).learn(images)
    if not math.isfinite(cost):
        LOGGER.warning("init=auto: what was solved from the teacher is not finite, so the student keeps its own start.")
    better = cost < detection_loss(student.model, unseen)
    student.model.load_state_dict(inherited if better else own)
    return "teacher" if better else "own"


def images_for(side: int) -> int:
    """How many images of side x side pixels `start` should be given."""
    seen = PIXELS_SEEN // side**2
    return seen + max(LEAST_UNSEEN - seen // 8, 0)


def unseen_of(images: int) -> int:
    """How many of so many images are kept from the fit: an eighth, or if that is few, up to a third."""
    return max(images // 8, min(LEAST_UNSEEN, images // 3), 1)


def partners(how: str, student: Reader, teacher: Reader) -> list[Pair]:
    """The pairs of convolutions; none if only last ones of the head correspond, which are not worth a start, or one of
    the heads is not a YOLO's for detection.

    Raises:
        UsageError: "teacher" is asked for and there are none.
    """
    plain = type(student) is YoloReader and type(teacher) is YoloReader  # fitted to classes and boxes, no other task's
    matched = pairs(student.model, teacher.model) if plain else []
    if any(not p.last for p in matched):
        return matched
    if how == "teacher":
        raise UsageError(
            f"init=teacher: no layer of {student.spec.name} has a partner in {teacher.spec.name} to start from: "
            "leave init= out, or choose a teacher of the student's family, both for detection."
        )
    return []


def part(batch: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    """The images of a batch from the given one on, and their labels."""
    here = batch["batch_idx"] >= first
    labels = {key: batch[key][here] for key in ("cls", "bboxes")}
    return {"img": batch["img"][first:], "batch_idx": batch["batch_idx"][here] - first, **labels}


@torch.no_grad()
def detection_loss(model: Any, batch: dict[str, Tensor]) -> float:
    """The student's own training loss, without touching batch norm statistics."""
    with raw_outputs(model):
        loss, _ = model.loss(batch)
    model.criterion = None  # it was made for this; Ultralytics makes one when there is none
    return float(loss.sum())


class Lesson:
    """What the teacher shows for some images at each pair's convolution, by the pair's name.

    Attributes:
        spread, metric: (C, C), covariance of its output, and what an error in it costs the predictions.
        points: (image, row, column) of the places where it is looked at.
        wanted: (points, C), its output there before the activation.
        confidence, share: (points,), the top class probability there, and how many places the point stands for.
    """

    def __init__(self, teacher: Reader, matched: list[Pair], images: Tensor) -> None:
        self.teacher, self.matched = teacher, matched
        teacher.model.requires_grad_(False)
        self.generator = torch.Generator().manual_seed(0)
        self.spread: dict[str, Tensor] = {}
        self.metric: dict[str, Tensor] = {}
        self.points: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.wanted: dict[str, Tensor] = {}
        self.confidence: dict[str, Tensor] = {}
        self.share: dict[str, Tensor] = {}
        size = max(PIXELS // images[0, 0].numel(), 1)
        with raw_outputs(teacher.model):
            self._measure(torch.split(images[: max(len(images) // 8, size)], size))
            self._record(images, size)

    def _measure(self, batches: Any) -> None:
        """Find spread and metric at every hidden convolution's output."""
        moments: dict[str, list[Any]] = {p.name: [0, 0, 0, 0] for p in self.matched if not p.last}

        def seen(name: str, out: Tensor) -> None:
            x, moment = out.detach().transpose(0, 1).flatten(1), moments[name]
            moment[0], moment[1], moment[2] = moment[0] + x @ x.T, moment[1] + x.sum(1), moment[2] + x.shape[1]
            if not out.requires_grad:  # a branch that is fed detached maps, as YOLO26's one2one in training
                out.requires_grad_()
            hook: Any = out.register_hook
            hook(lambda gradient: felt(moment, gradient.transpose(0, 1).flatten(1)))

        def felt(moment: list[Any], gradient: Tensor) -> None:
            moment[3] = moment[3] + gradient @ gradient.T

        hooks = [
            p.teacher.register_forward_hook(lambda m, args, out, name=p.name: seen(name, out))
            for p in self.matched
            if not p.last
        ]
        fields = frozenset({"logits", "boxes"})
        with hooked(hooks), torch.enable_grad():
            for images in batches:
                images = images[..., :LARGEST, :LARGEST]  # statistics of places: memory must not grow with the size
                with self.teacher.record(fields) as maps:
                    self.teacher.model(images.clone().requires_grad_())
                views = self.teacher.views(maps, fields, self.teacher.strides)
                torch.autograd.backward(torch.stack([self._probe(v) for v in views.values()]).sum())
        for name, (square, total, count, metric) in moments.items():
            mean = total / count
            self.spread[name] = square / count - mean[:, None] * mean
            # a branch that no prediction comes from feels nothing: its channels count alike
            self.metric[name] = (
                metric / metric.diagonal().mean() if isinstance(metric, Tensor) else torch.eye(len(mean)).to(mean)
            )

    def _probe(self, view: Any) -> Tensor:
        """Sum of the predictions with random signs, in units of what makes a difference: of the class's standard
        deviation as a coin with the predicted probability, and of the box's size where there is something."""
        p, boxes = view.logits.detach().sigmoid(), view.boxes.detach()
        size = (boxes[..., 2:] - boxes[..., :2]).clamp_min(1).repeat(1, 1, 2)
        scaled = view.logits * (p * (1 - p)).sqrt(), view.boxes / size * p.amax(-1, keepdim=True).sqrt()
        signs = (torch.randint(0, 2, x.shape, generator=self.generator).to(x) * 2 - 1 for x in scaled)
        return torch.stack([(x * sign).sum() for x, sign in zip(scaled, signs, strict=True)]).sum()

    @torch.no_grad()
    def _record(self, images: Tensor, size: int) -> None:
        """Find the points and what is wanted there."""
        maps: dict[str, Tensor] = {}
        hooks = [
            getattr(p.teacher, "bn", p.teacher).register_forward_hook(
                lambda m, args, out, name=p.name: maps.__setitem__(name, out.clone())  # activations work in place
            )
            for p in self.matched
        ]
        found: dict[str, list[tuple[Tensor, ...]]] = {p.name: [] for p in self.matched}
        with hooked(hooks):
            for start in range(0, len(images), size):
                with self.teacher.record(frozenset({"logits"})) as seen:
                    self.teacher.model(images[start : start + size])
                tops = self._confidence(seen)
                for p in self.matched:
                    found[p.name].append(self._look(p, maps[p.name], tops, start, len(images)))
        for name, parts in found.items():
            b, row, column, wanted, confidence, share = (torch.cat(x) for x in zip(*parts, strict=True))
            self.points[name], self.wanted[name] = (b, row, column), wanted
            self.confidence[name], self.share[name] = confidence, share

    def _confidence(self, seen: dict[Any, Any]) -> list[Tensor]:
        """(B, 1, H, W) for every level: the top class probability in each cell."""
        view = next(iter(self.teacher.views(seen, frozenset({"logits"}), self.teacher.strides).values()))
        sizes = [m.shape[-2:] for m in seen["neck"]]
        logits: Any = view.logits
        tops = logits.sigmoid().amax(-1).split([h * w for h, w in sizes], 1)
        return [top.reshape(-1, 1, *size) for top, size in zip(tops, sizes, strict=True)]

    def _look(self, p: Pair, z: Tensor, tops: list[Tensor], start: int, images: int) -> tuple[Tensor, ...]:
        """Points of a batch's map, half of them anywhere, half where the teacher sees something: image, row, column,
        the map there, confidence, share."""
        h, w = z.shape[-2:]
        unknowns = bare(p.student).weight[0].numel()
        count = min(max((LAST_POINTS if p.last else min(max(10 * unknowns, 2**12), POINTS)) // images, 1), h * w)
        level = min(tops, key=lambda top: abs(top.shape[-2] - h))
        top = F.interpolate(level, size=(h, w)).flatten(1)
        density = top / top.sum(1, keepdim=True).clamp_min(1e-9) + 1 / (h * w)
        place = torch.multinomial(density.cpu(), count, generator=self.generator).to(z.device)
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


class Pupil:
    """The student, while it is set.

    Args:
        model: the student.
        matched: the convolutions to set.
        lesson: what the teacher showed for them.
        classes: which the two share; None where they have the same.
    """

    def __init__(self, model: Any, matched: list[Pair], lesson: Lesson, classes: ClassMap | None) -> None:
        self.model, self.matched, self.lesson, self.classes = model, matched, lesson, classes
        self.free: dict[str, Channels | None] = {}  # what nothing before a convolution has a say in
        self.given: dict[nn.Module, Channels | None] = {}  # what a convolution's output must stand for
        self.chosen: dict[nn.Module, Channels] = {}  # what it does stand for
        self.pending: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = {}  # batch norm -> rows, scale, bias

    @torch.no_grad()
    def learn(self, images: Tensor) -> int:
        """Run the images through the student, setting one convolution after the other; returns how many."""
        hooks = [
            module.register_forward_pre_hook(lambda m, args, conv=conv: self.given.update({conv: channels(args[0])}))
            for module, conv in residuals(self.model)
        ]
        for p in self.matched:
            hooks.append(p.student.register_forward_pre_hook(lambda m, args, p=p: self._set(p, args[0])))
            hooks.append(p.student.register_forward_hook(lambda m, args, out: mark(out, self.chosen.get(m))))
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]
        hooks += [bn.register_forward_pre_hook(lambda bn, args: self._normalise(bn, args[0])) for bn in norms]
        follows = {conv for _, conv in residuals(self.model)}
        for p in self.matched:
            if not (p.last or p.depthwise or p.student in follows):
                self.free[p.name] = self._free_choice(p)
        names = {p.student: p.name for p in self.matched}
        for first, second in sums(self.model):
            if {first, second} <= names.keys():
                self.free[names[second]] = self.free[names[first]]
        with raw_outputs(self.model), hooked(hooks), Follow():
            self.model(images)
        return len(self.chosen)

    def _set(self, p: Pair, x: Tensor) -> None:
        """Solve for the weights of the convolution at which x arrives."""
        chosen, wanted = self._choose(p, x), self.lesson.wanted[p.name]
        if p.kind == "class" and self.classes is not None:
            wanted, chosen = self._shared(wanted, p.student.out_channels)
        elif p.kind == "box" and p.student.out_channels != p.teacher.out_channels:
            sides = wanted if wanted.shape[1] == 4 else expected_sides(wanted)
            count = p.student.out_channels
            wanted, chosen = sides if count == 4 else distributions(sides, count // 4), identity(count)
        place, conv = index(chosen), bare(p.student)
        if place is None or len(place) != conv.out_channels or sum(w for _, w in chosen or ()) != wanted.shape[1]:
            return
        rows = (place >= 0).nonzero().flatten().to(x.device)
        if not len(rows):
            return
        self.chosen[p.student] = chosen or ()
        wanted = wanted[:, place.to(x.device)[rows]]
        weight, bias = self._solve(p, patches(x, conv, self.lesson.points[p.name]), wanted, rows)
        weight = weight.reshape(len(rows), *conv.weight.shape[1:])
        if p.last:
            conv.weight[rows], conv.bias[rows] = weight, bias  # type: ignore[index]
            return
        # batch norm takes any scale: the teacher's, so that an optimizer's steps are as large beside the weights
        size = bare(p.teacher).weight.square().mean((1, 2, 3)).sqrt()[place.to(x.device)[rows]]
        mine = weight.square().mean((1, 2, 3)).sqrt().clamp_min(1e-12)
        scale = torch.where(size > 0, size / mine, 1.0)  # a pruned filter has no scale
        conv.weight[rows] = weight * scale[:, None, None, None]
        self.pending[p.student.bn] = rows, scale, bias

    def _shared(self, logits: Tensor, count: int) -> tuple[Tensor, Channels]:
        """The shared classes' logits from all the teacher's, and which of the student's classes they are."""
        assert self.classes is not None
        place = torch.full((count,), -1)
        place[self.classes.student.cpu()] = torch.arange(self.classes.shared)
        return logits[:, self.classes.teacher.to(logits.device)].amax(-1), ((place, self.classes.shared),)

    def _solve(self, p: Pair, seen: Tensor, wanted: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (rows, in x window) and biases (rows,) for what is seen (points, in, window)."""
        if p.depthwise:
            weight, bias = least_squares(seen[:, rows].transpose(0, 1), wanted.T[..., None])
            return weight[:, 0], bias[:, 0]
        if p.kind == "class":
            return logistic(seen.flatten(1), wanted.sigmoid(), self.lesson.share[p.name])
        where = self.lesson.confidence[p.name] + 1e-2 if p.kind == "box" else None  # boxes count where things are
        return least_squares(seen.flatten(1), wanted, where)

    def _normalise(self, bn: Any, x: Tensor) -> None:
        """Batch norm statistics of what arrives, and the affine part that undoes them where the convolution was set."""
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(var)
        parent = self.pending.get(bn)
        if parent is not None:
            rows, scale, bias = parent
            bn.weight[rows] = (var[rows] + bn.eps).sqrt() / scale
            bn.bias[rows] = bias + mean[rows] / scale

    def _choose(self, p: Pair, x: Tensor) -> Channels | None:
        """What the output of the convolution at which x arrives shall stand for."""
        theirs = bare(p.teacher).out_channels
        if p.last:
            return identity(theirs)
        if p.depthwise or p.student in self.given:
            place = index(self.given[p.student] if p.student in self.given else channels(x))
            return None if place is None else ((place, theirs),)
        return self.free[p.name]

    def _free_choice(self, p: Pair) -> Channels | None:
        """As above where nothing before the convolution has a say in it."""
        mine, theirs = bare(p.student).out_channels, bare(p.teacher).out_channels
        spread, metric = self.lesson.spread[p.name], self.lesson.metric[p.name]
        if p.attention is not None:
            return self._heads(*p.attention, spread, metric)
        parts = 2 if p.kind == "split" else 1
        width = theirs // parts
        halves = [slice(i * width, (i + 1) * width) for i in range(parts)]
        return tuple((pick(spread[h, h], metric[h, h], mine // parts), width) for h in halves)

    def _heads(self, student: Any, teacher: Any, spread: Tensor, metric: Tensor) -> Channels | None:
        """Of attention's queries, keys and values: whole heads; in each the strongest query-key channels."""
        heads, width = teacher.num_heads, teacher.head_dim
        mine, theirs = (getattr(a, "key_dim", a.head_dim) for a in (student, teacher))
        if student.num_heads > heads or mine > theirs or student.head_dim > width:
            return None
        whole = 2 * theirs + width
        power = (spread.diagonal() * metric.diagonal()).reshape(heads, whole)
        rows, values = [], []
        for head in power.sum(1).topk(student.num_heads).indices.sort().values.tolist():
            first = head * whole
            key = (power[head, :theirs] + power[head, theirs : 2 * theirs]).topk(mine).indices.sort().values.cpu()
            part = slice(first + 2 * theirs, first + whole)
            value = pick(spread[part, part], metric[part, part], student.head_dim)
            rows += [first + key, first + theirs + key, part.start + value]
            values.append(head * width + value)
        self.given[student.pe] = ((torch.cat(values), heads * width),)
        return ((torch.cat(rows), heads * whole),)


def identity(width: int) -> Channels:
    """Every channel for itself."""
    return ((torch.arange(width), width),)


def expected_sides(logits: Tensor) -> Tensor:
    """Distances (points, 4), in cells, from the logits (points, 4 R) of their distributions."""
    bins = logits.reshape(len(logits), 4, -1)
    return bins.softmax(-1) @ torch.arange(bins.shape[-1], dtype=bins.dtype, device=bins.device)


def distributions(sides: Tensor, bins: int) -> Tensor:
    """Logits (points, 4 bins) of distributions around distances (points, 4) in cells, of variance 1/4."""
    places = torch.arange(bins, dtype=sides.dtype, device=sides.device)
    return (-2 * (places - sides.clamp(0, bins - 1)[..., None]).square()).flatten(1)


@contextmanager
def hooked(hooks: list[Any]) -> Iterator[None]:
    """Remove the hooks afterwards."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def raw_outputs(model: Any) -> Iterator[None]:
    """Eval mode, but for the head's own flag, which makes it put out raw predictions."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    model.model[-1].training = True
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
