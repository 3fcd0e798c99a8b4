"""Solves for the student's convolutions, one after the other, while images run through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.detectors.class_map import ClassMap
from yolokd.init.channel_choice import COPIED, ChannelChoice, evenly
from yolokd.init.channel_map import Channels, ChannelTracker, channels, index, mark
from yolokd.init.decoder_fitter import DecoderFitter
from yolokd.init.detr_pairs import TransformerPair
from yolokd.init.layer_pairs import LayerPair, bare, norm_of, residuals, sums
from yolokd.init.least_squares import fit_linear, fit_logistic, patches
from yolokd.init.teacher_statistics import TeacherStatistics, hooked, raw_outputs
from yolokd.init.transformer import fit_encoder


class LayerFitter:
    """Sets the weights of a student's convolutions, and of an RT-DETR's transformers.

    Args:
        model: the student.
        matched: what to set.
        statistics: the teacher's outputs at them.
        classes: the classes that both models have; None if their classes are the same.
        frozen: indices of layers whose batch norms keep their statistics.
        step: called for each of what is set.
        choice: which channels a narrower layer represents, and whether their weights are solved for or copied.
    """

    def __init__(
        self, model: Any, matched: Sequence[LayerPair | TransformerPair], statistics: TeacherStatistics,
        classes: ClassMap | None,
        frozen: frozenset[int] = frozenset(), step: Callable[[], None] = lambda: None,
        choice: ChannelChoice = ChannelChoice(),  # noqa: B008 - it cannot change
    ) -> None:  # fmt: skip
        self.step, self.choice = step, choice
        self.model, self.statistics, self.classes, self.frozen = model, statistics, classes, frozen
        self.matched = [p for p in matched if isinstance(p, LayerPair) and p.name in statistics.targets]
        self.transformers = [p for p in matched if isinstance(p, TransformerPair)]
        self.free: dict[str, Channels | None] = {}  # channels of convolutions whose choice no earlier layer determines
        self.given: dict[nn.Module, Channels | None] = {}  # channels that a convolution's output must represent
        self.chosen: dict[nn.Module, Channels] = {}  # channels that it does represent
        self.pending: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = {}  # batch norm -> rows, scale, bias

    @torch.no_grad()
    def fit(self, images: Tensor) -> int:
        """Run the images through the student, setting one convolution after the other; returns their number.

        A decoder is set at the end, from what has arrived at it.
        """
        hooks = [
            module.register_forward_pre_hook(lambda m, args, conv=conv: self.given.update({conv: channels(args[0])}))
            for module, conv in residuals(self.model)
        ]
        for p in self.matched:
            hooks.append(p.student.register_forward_pre_hook(lambda m, args, p=p: self._set(p, args[0])))
            hooks.append(p.student.register_forward_hook(lambda m, args, out: mark(out, self.chosen.get(m))))
        moving = [layer for i, layer in enumerate(self.model.model) if i not in self.frozen]
        norms = [m for layer in moving for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]
        hooks += [bn.register_forward_pre_hook(lambda bn, args: self._normalise(bn, args[0])) for bn in norms]
        follows = {conv for _, conv in residuals(self.model)}
        for p in self.matched:
            if not (p.last or p.depthwise or p.student in follows):
                self.free[p.name] = self._free_choice(p)
        names = {p.student: p.name for p in self.matched}
        for first, second in sums(self.model):
            if {first, second} <= names.keys():
                self.free[names[second]] = self.free[names[first]]
        arrived: dict[str, list[Tensor]] = {}
        for t in self.transformers:
            hooks += self._decoder_hooks(t, arrived) if t.last else self._encoder_hooks(t)
        with raw_outputs(self.model), hooked(hooks), ChannelTracker():
            self.model(images)
        for t in self.transformers:
            if t.last:
                self._fit_decoder(t, arrived[t.name])
        return len(self.chosen)

    def _fit_decoder(self, p: TransformerPair, maps: list[Tensor]) -> None:
        """Set a decoder, given the maps that arrive at it, on as many images as the statistics have for it."""
        theirs = self.statistics.inputs[p.name]
        with raw_outputs(self.model), raw_outputs(self.statistics.teacher.model):
            DecoderFitter(p.student, p.teacher, [x[: len(theirs[0])] for x in maps], theirs, self.classes).fit()
        self.chosen[p.student] = ()
        self.step()

    def _decoder_hooks(self, p: TransformerPair, arrived: dict[str, list[Tensor]]) -> list[Any]:
        """Store the maps that arrive at a decoder."""
        return [p.student.register_forward_pre_hook(lambda module, args: arrived.update({p.name: list(args[0])}))]

    def _encoder_hooks(self, p: TransformerPair) -> list[Any]:
        """Set an encoder's layer when its input arrives; its output has the same channels."""

        def arrive(module: Any, args: tuple[Tensor]) -> None:
            self.step()
            known, (theirs,) = channels(args[0]), self.statistics.inputs[p.name]
            place = index(known)
            if place is not None and bool((place >= 0).all()) and sum(w for _, w in known or ()) == theirs.shape[1]:
                fit_encoder(p.student, p.teacher, args[0], theirs, place.to(theirs.device))
                self.chosen[module] = known or ()

        hook = p.student.register_forward_hook(lambda module, args, out: mark(out, self.chosen.get(module)))
        return [p.student.register_forward_pre_hook(arrive), hook]

    def _set(self, p: LayerPair, x: Tensor) -> None:
        """Solve for the weights of the convolution at which x arrives."""
        self.step()
        if self.choice.how == COPIED:
            self._copy(p, x)
            return
        chosen, target = self._choose(p, x), self.statistics.targets[p.name]
        if p.kind == "class" and self.classes is not None:
            target, chosen = self._shared(target, p.student.out_channels)
        elif p.kind == "box" and p.student.out_channels != p.teacher.out_channels:
            sides = target if target.shape[1] == 4 else expected_sides(target)
            count = p.student.out_channels
            target, chosen = sides if count == 4 else distributions(sides, count // 4), identity(count)
        place, conv = index(chosen), bare(p.student)
        if place is None or len(place) != conv.out_channels or sum(w for _, w in chosen or ()) != target.shape[1]:
            return
        rows = (place >= 0).nonzero().flatten().to(x.device)
        if not len(rows):
            return
        self.chosen[p.student] = chosen or ()
        target = target[:, place.to(x.device)[rows]]
        weight, bias = self._solve(p, patches(x, conv, self.statistics.points[p.name]), target, rows)
        weight = weight.reshape(len(rows), *conv.weight.shape[1:])
        if p.last:
            conv.weight[rows], conv.bias[rows] = weight, bias  # type: ignore[index]
            return
        # batch norm allows any scale: take the teacher's, so that an optimizer's relative steps stay as large
        teacher_size = bare(p.teacher).weight.square().mean((1, 2, 3)).sqrt()[place.to(x.device)[rows]]
        student_size = weight.square().mean((1, 2, 3)).sqrt().clamp_min(1e-12)
        scale = torch.where(teacher_size > 0, teacher_size / student_size, 1.0)  # a pruned filter has no scale
        conv.weight[rows] = weight * scale[:, None, None, None]
        self.pending[norm_of(p.student)] = rows, scale, bias

    def _copy(self, p: LayerPair, x: Tensor) -> None:
        """Give the convolution at which x arrives the teacher's weights between the channels that it represents."""
        conv, teacher, chosen = bare(p.student), bare(p.teacher), self._choose(p, x)
        place = index(chosen)
        if p.kind == "class" and self.classes is not None:  # of several that mean one, the first
            place = torch.full((conv.out_channels,), -1)
            place[self.classes.student.cpu()] = self.classes.teacher[:, 0].cpu()
        if place is None or len(place) != conv.out_channels or int(place.max()) >= teacher.out_channels:
            return  # as boxes of another form, of which there is nothing to copy
        if p.kind == "box" and conv.out_channels != teacher.out_channels:
            return
        rows = (place >= 0).nonzero().flatten()
        source = place[rows]
        entry = torch.arange(conv.weight.shape[1]) if p.depthwise else self._entry(x, conv, teacher)
        columns = (entry >= 0).nonzero().flatten()
        weight = teacher.weight[source.to(teacher.weight.device)][:, entry[columns].to(teacher.weight.device)]
        conv.weight[rows[:, None], columns] = weight.to(conv.weight)
        norm, teacher_norm = norm_of(p.student), norm_of(p.teacher)
        parts = [(conv.bias, teacher.bias)]
        if norm is not None and teacher_norm is not None:
            parts += [(norm.weight, teacher_norm.weight), (norm.bias, teacher_norm.bias)]
        for mine, theirs in parts:
            if mine is not None and theirs is not None:
                mine[rows] = theirs[source.to(theirs.device)].to(mine)
        self.chosen[p.student] = chosen or ()

    def _entry(self, x: Tensor, conv: nn.Conv2d, teacher: nn.Conv2d) -> Tensor:
        """The teacher's channel that each channel of x, which arrives at a convolution, represents; -1 for none.

        Where that is not known, such as behind a layer without a partner, every k-th again.
        """
        known = channels(x)
        place = index(known)
        if (
            place is not None
            and len(place) == conv.in_channels
            and sum(w for _, w in known or ()) == teacher.in_channels
        ):
            return place.cpu()
        kept = min(conv.in_channels, teacher.in_channels)
        return torch.cat([evenly(teacher.in_channels, kept), torch.full((conv.in_channels - kept,), -1)])

    def _shared(self, logits: Tensor, count: int) -> tuple[Tensor, Channels]:
        """The shared classes' logits out of all of the teacher's, and which of the student's classes they belong to."""
        assert self.classes is not None
        place = torch.full((count,), -1)
        place[self.classes.student.cpu()] = torch.arange(self.classes.shared)
        return logits[:, self.classes.teacher.to(logits.device)].amax(-1), ((place, self.classes.shared),)

    def _solve(self, p: LayerPair, inputs: Tensor, target: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (rows, in x window) and biases (rows,) for inputs (points, in, window)."""
        if p.depthwise:
            grouped = inputs.reshape(len(inputs), bare(p.student).groups, -1)  # each group has one output
            weight, bias = fit_linear(grouped[:, rows].transpose(0, 1), target.T[..., None])
            return weight[:, 0], bias[:, 0]
        if p.kind == "class":
            return fit_logistic(inputs.flatten(1), target.sigmoid(), self.statistics.share[p.name])
        # boxes, masks and keypoints matter where objects are
        where = self.statistics.confidence[p.name] + 1e-2 if p.kind in {"box", "value"} else None
        return fit_linear(inputs.flatten(1), target, where)

    def _normalise(self, bn: Any, x: Tensor) -> None:
        """Set batch norm statistics from x, and where the convolution was set, an affine part that undoes them."""
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(var)
        parent = self.pending.get(bn)
        if parent is not None:
            rows, scale, bias = parent
            bn.weight[rows] = (var[rows] + bn.eps).sqrt() / scale
            bn.bias[rows] = bias + mean[rows] / scale

    def _choose(self, p: LayerPair, x: Tensor) -> Channels | None:
        """The channels that the output of the convolution at which x arrives must represent."""
        teacher_width = bare(p.teacher).out_channels
        if p.last:
            return identity(teacher_width)
        if p.student in self.given:
            place = index(self.given[p.student])
            return None if place is None else ((place, teacher_width),)
        if p.depthwise:
            place = index(channels(x))
            return None if place is None else ((self._filtered(p, place), teacher_width),)
        return self.free[p.name]

    def _filtered(self, p: LayerPair, place: Tensor) -> Tensor:
        """Channels that a depthwise convolution outputs; if each reads several, that of the most important of these."""
        conv, teacher = bare(p.student), bare(p.teacher)
        outputs = torch.where(place < 0, -1, place * teacher.groups // teacher.in_channels)
        groups = outputs.reshape(conv.groups, -1)
        power = (self.statistics.spread[p.name].diagonal() * self.statistics.metric[p.name].diagonal()).cpu()
        strength = torch.where(groups < 0, -1.0, power[groups.clamp_min(0)])
        return groups.gather(1, strength.argmax(1, keepdim=True)).flatten()

    def _free_choice(self, p: LayerPair) -> Channels | None:
        """As `_choose`, where no earlier layer determines the choice."""
        student_width, teacher_width = bare(p.student).out_channels, bare(p.teacher).out_channels
        spread, metric = self.statistics.spread[p.name], self.statistics.metric[p.name]
        if p.attention is not None:
            return self._heads(p.name, *p.attention, spread, metric)
        parts = 2 if p.kind == "split" else 1
        width = teacher_width // parts
        halves = [slice(i * width, (i + 1) * width) for i in range(parts)]
        count = student_width // parts
        return tuple(
            (self.choice.channels(f"{p.name} {h.start}", spread[h, h], metric[h, h], count), width) for h in halves
        )

    def _heads(self, name: str, student: Any, teacher: Any, spread: Tensor, metric: Tensor) -> Channels | None:
        """Channels of attention's queries, keys and values: whole heads; in each the strongest query-key channels."""
        heads, width = teacher.num_heads, teacher.head_dim
        student_key_dim, teacher_key_dim = (getattr(a, "key_dim", a.head_dim) for a in (student, teacher))
        if student.num_heads > heads or student_key_dim > teacher_key_dim or student.head_dim > width:
            return None
        whole = 2 * teacher_key_dim + width
        power = (spread.diagonal() * metric.diagonal()).reshape(heads, whole)
        rows, values = [], []
        for head in self.choice.strongest(name, power.sum(1), student.num_heads).tolist():
            first = head * whole
            strength = power[head, :teacher_key_dim] + power[head, teacher_key_dim : 2 * teacher_key_dim]
            key = self.choice.strongest(f"{name} keys {head}", strength, student_key_dim)
            part = slice(first + 2 * teacher_key_dim, first + whole)
            value = self.choice.channels(
                f"{name} values {head}", spread[part, part], metric[part, part], student.head_dim
            )
            rows += [first + key, first + teacher_key_dim + key, part.start + value]
            values.append(head * width + value)
        self.given[student.pe] = ((torch.cat(values), heads * width),)
        return ((torch.cat(rows), heads * whole),)


def identity(width: int) -> Channels:
    """Every channel represents itself."""
    return ((torch.arange(width), width),)


def expected_sides(logits: Tensor) -> Tensor:
    """Distances (points, 4), in cells, from the logits (points, 4 R) of their distributions."""
    bins = logits.reshape(len(logits), 4, -1)
    return bins.softmax(-1) @ torch.arange(bins.shape[-1], dtype=bins.dtype, device=bins.device)


def distributions(sides: Tensor, bins: int) -> Tensor:
    """Logits (points, 4 bins) of distributions with variance 1/4 around distances (points, 4) in cells."""
    places = torch.arange(bins, dtype=sides.dtype, device=sides.device)
    return (-2 * (places - sides.clamp(0, bins - 1)[..., None]).square()).flatten(1)
