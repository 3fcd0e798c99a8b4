"""Solves for a student's RT-DETR decoder, layer after layer, on the queries that the teacher selects.

A decoder's queries belong to no fixed place of an image, so student and teacher are compared on the same ones: the
student reads its own maps, but at the cells that the teacher selects. From there on everything is its own, so that a
layer also compensates for errors of those before it, and for layers of the teacher's that the student does not have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.modules.utils import inverse_sigmoid

from yolokd.detectors.class_map import ClassMap
from yolokd.init.detr_pairs import POINTS, teacher_layers
from yolokd.init.least_squares import select_channels
from yolokd.init.transformer import fit, fit_attention, fit_layers, fit_norm, solved, split, value_space


class Decoder:
    """What a decoder computes for some maps, part by part.

    Attributes:
        head: an RTDETRDecoder that has run on maps of this size.
        shapes: height and width of every map.
        memory: (B, N, C), the cells of all maps.
        cells: (B, N, C), the same without those that no query may be at.
        anchors: (1, N, 4), logits of the cells' boxes.
    """

    def __init__(self, head: Any, maps: list[Tensor]) -> None:
        self.head, self.shapes = head, [list(x.shape[-2:]) for x in maps]
        projected = [project(x) for project, x in zip(head.input_proj, maps, strict=True)]
        self.memory = torch.cat([x.flatten(2).mT for x in projected], 1)
        self.anchors = head.anchors.to(self.memory)
        self.cells = self.memory * head.valid_mask

    def layer(self, i: int, queries: Tensor, boxes: Tensor) -> Tensor:
        """The queries after one layer, all (B, Q, C), at boxes (B, Q, 4) as fractions of the image."""
        out: Tensor = self.head.decoder.layers[i](
            queries, boxes, self.memory, self.shapes, query_pos=self.head.query_pos_head(boxes)
        )
        return out

    def refined(self, i: int, queries: Tensor, boxes: Tensor) -> Tensor:
        """The boxes after a layer that gave these queries."""
        out: Tensor = (self.head.dec_bbox_head[i](queries) + inverse_sigmoid(boxes)).sigmoid()
        return out


class DecoderFitter:
    """Sets the weights of a student's decoder.

    Args:
        student, teacher: two RTDETRDecoders, of which `detr_pairs.decoders_alike` holds.
        maps, teacher_maps: what arrives at them, (B, C, H, W) of each level.
        classes: the classes that both models have; None if their classes are the same.
    """

    def __init__(
        self, student: Any, teacher: Any, maps: list[Tensor], teacher_maps: list[Tensor], classes: ClassMap | None
    ) -> None:
        self.classes = classes
        self.mine, self.theirs = Decoder(student, maps), Decoder(teacher, teacher_maps)
        self.equal = student.hidden_dim == teacher.hidden_dim
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def fit(self) -> None:
        """Set everything, from the cells' scores to the last layer's boxes."""
        head, teacher = self.mine.head, self.theirs.head
        entries = teacher.enc_output(self.theirs.cells)
        scores = teacher.enc_score_head(entries)
        place = scores.amax(-1).topk(min(teacher.num_queries, scores.shape[1]), 1).indices
        chosen, anchors = at(entries, place), at(self.theirs.anchors.expand(len(place), -1, -1), place)
        moves = teacher.enc_bbox_head(chosen)
        states = self._states(chosen, (moves + anchors).sigmoid())
        self.kept = self._choose(states)
        queries = self._fit_entry(place, chosen, moves, scores)
        boxes = (head.enc_bbox_head(queries) + anchors).sigmoid()
        self._fit_places(states)
        for j, i in enumerate(teacher_layers(head, teacher)):
            before, (after, refined) = states[i], states[i + 1]
            queries = self._fit_layer(head.decoder.layers[j], i, (queries, boxes), before, after)
            logits = teacher.dec_score_head[i](after)
            sure = self._fit_scores(head.dec_score_head[j], teacher.dec_score_head[i], queries, logits)
            target = inverse_sigmoid(refined) - inverse_sigmoid(boxes)
            self._fit_boxes(head.dec_bbox_head[j], teacher.dec_bbox_head[i], queries, after, target, sure)
            boxes = self.mine.refined(j, queries, boxes)

    def _states(self, queries: Tensor, boxes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The teacher's queries and boxes before its first layer and after each."""
        states = [(queries, boxes)]
        for i in range(self.theirs.head.decoder.eval_idx + 1):
            queries = self.theirs.layer(i, queries, boxes)
            boxes = self.theirs.refined(i, queries, boxes)
            states.append((queries, boxes))
        return states

    def _choose(self, states: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The teacher's channels of the queries that the student's represent: those that its predictions would miss
        most, by their gradients at the queries that enter the decoder."""
        width = self.mine.head.hidden_dim
        if self.equal:
            return torch.arange(width, device=states[0][0].device)
        with torch.enable_grad():
            queries = states[0][0].clone().requires_grad_()
            *_, (after, boxes) = self._states(queries, states[0][1])
            logits = self.theirs.head.dec_score_head[self.theirs.head.decoder.eval_idx](after)
            torch.autograd.backward(probe(logits, boxes, self.generator))
        gradient = queries.grad
        assert gradient is not None
        tokens, slopes = torch.cat([q for q, _ in states], 1).flatten(0, 1), gradient.flatten(0, 1)
        return select_channels(torch.cov(tokens.T, correction=0), slopes.T @ slopes, width).to(tokens.device)

    def _fit_entry(self, place: Tensor, chosen: Tensor, moves: Tensor, scores: Tensor) -> Tensor:
        """Set what turns cells into queries, scores and boxes; returns the queries at the teacher's cells."""
        head, teacher, like = self.mine.head, self.theirs.head, self._like
        # the same number of cells drawn at random: the score must tell the selected ones from the rest
        random = torch.randint(scores.shape[1], place.shape, generator=self.generator).to(place.device)
        both = torch.cat([place, random], 1)
        cells, theirs = at(self.mine.cells, both), teacher.enc_output[0](at(self.theirs.cells, both))
        linear = fit(head.enc_output[0], cells, theirs[..., self.kept], like(teacher.enc_output[0]))
        entries = fit_norm(head.enc_output[1], linear, teacher.enc_output[1](theirs)[..., self.kept])
        self._fit_scores(head.enc_score_head, teacher.enc_score_head, entries, at(scores, both))
        queries, sure = entries[:, : place.shape[1]], at(scores, place).sigmoid().amax(-1)
        self._fit_boxes(head.enc_bbox_head, teacher.enc_bbox_head, queries, chosen, moves, sure)
        known = teacher.denoising_class_embed.weight[:, self.kept]
        if self.classes is None:
            head.denoising_class_embed.weight[:] = known
        else:
            head.denoising_class_embed.weight[self.classes.student] = known[self.classes.teacher].mean(1)
        return queries

    def _fit_places(self, states: list[tuple[Tensor, Tensor]]) -> None:
        """Set what turns boxes into the position that is added to the queries, for all layers alike."""
        mine, theirs = self.mine.head.query_pos_head, self.theirs.head.query_pos_head
        boxes = torch.cat([boxes for _, boxes in states[:-1]], 1)
        boxes = boxes[:, torch.randperm(boxes.shape[1], generator=self.generator)[: max(POINTS // len(boxes), 1)]]
        fit_layers(mine.layers, theirs.layers, mine.act, boxes, boxes, theirs(boxes)[..., self.kept], self.equal)

    def _fit_layer(
        self, layer: Any, i: int, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor], after: Tensor
    ) -> Tensor:
        """Set a decoder layer and return its output.

        Args:
            layer: the student's layer.
            i: the index of the teacher's.
            here, there: queries and boxes that arrive at the student's and at the teacher's.
            after: the teacher's output.
        """
        teacher, kept = self.theirs.head.decoder.layers[i], self.kept
        (queries, boxes), (theirs, their_boxes) = here, there
        position, their_position = self.mine.head.query_pos_head(boxes), self.theirs.head.query_pos_head(their_boxes)
        pointers = (theirs + their_position).transpose(0, 1)
        summed = theirs + teacher.self_attn(pointers, pointers, theirs.transpose(0, 1))[0].transpose(0, 1)
        normed = teacher.norm1(summed)
        out = fit_attention(
            layer.self_attn, teacher.self_attn, (queries + position, queries), (theirs + their_position, theirs),
            summed[..., kept] - queries, kept,
        )  # fmt: skip
        queries = fit_norm(layer.norm1, queries + out, normed[..., kept])

        looking = normed + their_position
        seen = teacher.cross_attn(looking, their_boxes[:, :, None], self.theirs.memory, self.theirs.shapes)
        out = self._fit_cross(
            layer.cross_attn,
            teacher.cross_attn,
            queries + position,
            looking,
            boxes,
            (normed + seen)[..., kept] - queries,
        )
        normed = teacher.norm2(normed + seen)
        queries = fit_norm(layer.norm2, queries + out, normed[..., kept])

        summed = normed + teacher.linear2(teacher.act(teacher.linear1(normed)))
        out = fit_layers(
            [layer.linear1, layer.linear2], [teacher.linear1, teacher.linear2], layer.act, queries, normed,
            summed[..., kept] - queries, self.equal,
        )  # fmt: skip
        return fit_norm(layer.norm3, queries + out, after[..., kept])

    def _fit_cross(self, mine: Any, theirs: Any, x: Tensor, teacher_x: Tensor, boxes: Tensor, target: Tensor) -> Tensor:
        """Set a deformable attention: where queries look and how much each place counts are the teacher's."""
        like = self._like
        for name in ("sampling_offsets", "attention_weights"):
            theirs_linear = getattr(theirs, name)
            fit(getattr(mine, name), x, theirs_linear(teacher_x), like(theirs_linear))
        count = max(POINTS // len(x), 1)
        some = torch.randperm(self.mine.memory.shape[1], generator=self.generator)[:count]
        values = theirs.value_proj(self.theirs.memory[:, some])
        if not self.equal:
            heads = mine.n_heads
            out = theirs.output_proj.weight[self.kept].unflatten(1, (heads, -1))
            values = value_space(split(values, heads), out, mine.d_model // heads)
        fit(mine.value_proj, self.mine.memory[:, some], values, like(theirs.value_proj))
        gathered: list[Tensor] = []
        hook = mine.output_proj.register_forward_pre_hook(lambda module, args: gathered.append(args[0]))
        mine(x, boxes[:, :, None], self.mine.memory, self.mine.shapes)
        hook.remove()
        return fit(mine.output_proj, gathered[0], target, like(theirs.output_proj))

    def _fit_scores(self, mine: Any, theirs: Any, x: Tensor, logits: Tensor) -> Tensor:
        """Set class scores of the classes that both have; returns the teacher's top probability, (B, Q)."""
        if self.classes is None:
            fit(mine, x, logits, self._like(theirs))
        else:
            teacher = self.classes.teacher.to(logits.device)
            prior = None
            if self.equal and teacher.shape[1] == 1:  # of several that mean one, the highest counts
                prior = theirs.weight[teacher[:, 0]], theirs.bias[teacher[:, 0]]
            rows = self.classes.student.to(logits.device)
            mine.weight[rows], mine.bias[rows] = solved(x, logits[..., teacher].amax(-1), prior)
        return logits.sigmoid().amax(-1)

    def _fit_boxes(self, mine: Any, theirs: Any, x: Tensor, teacher_x: Tensor, target: Tensor, sure: Tensor) -> None:
        """Set what moves boxes; they matter where objects are."""
        fit_layers(mine.layers, theirs.layers, mine.act, x, teacher_x, target, self.equal, sure + 1e-2)

    def _like(self, layer: Any) -> Any:
        """The teacher's layer, if its channels are the student's."""
        return layer if self.equal else None


def at(x: Tensor, place: Tensor) -> Tensor:
    """(B, N, C) and indices (B, Q) -> (B, Q, C)."""
    return x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))


def probe(logits: Tensor, boxes: Tensor, generator: torch.Generator) -> Tensor:
    """As `TeacherStatistics` probes predictions, with boxes (B, Q, 4) as fractions of the image: centre and size."""
    p, size = logits.detach().sigmoid(), boxes[..., 2:].detach().clamp_min(1e-3).repeat(1, 1, 2)
    scaled = logits * (p * (1 - p)).sqrt(), boxes / size * p.amax(-1, keepdim=True).sqrt()
    signs = (torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1 for x in scaled)
    return torch.stack([(x * sign).sum() for x, sign in zip(scaled, signs, strict=True)]).sum()
