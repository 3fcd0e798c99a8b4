"""Which parts of two RT-DETRs correspond, beside the convolutions that `layer_pairs` finds in any two networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.modules.transformer import AIFI

from yolokd.init.layer_pairs import LayerPair, align

POINTS = 2**15  # highest number of queries that a decoder is fitted to
TOKENS = 2**18  # highest number of cells of the maps that it reads meanwhile


@dataclass(frozen=True, slots=True)
class TransformerPair:
    """Corresponding transformers of student and teacher: two AIFI layers, or two whole decoders."""

    name: str
    student: Any
    teacher: Any

    @property
    def last(self) -> bool:
        """Whether its outputs are predictions."""
        return isinstance(self.student, RTDETRDecoder)


def detr_pairs(
    student: Any, teacher: Any, strides: tuple[tuple[int, ...], tuple[int, ...]]
) -> list[LayerPair | TransformerPair]:
    """Pairs of two detection models with an RTDETRDecoder.

    Args:
        student: the student.
        teacher: the teacher.
        strides: those of the maps that their decoders read.
    """
    pairs: list[LayerPair | TransformerPair] = [
        TransformerPair(f"model.{here.i}", here, there)
        for here, there in align(student.model[:-1], teacher.model[:-1])
        if isinstance(here, AIFI) and encoders_alike(here, there)
    ]
    mine, theirs = student.model[-1], teacher.model[-1]
    if strides[0] == strides[1] and decoders_alike(mine, theirs):
        name = f"model.{mine.i}"
        for i, (here, there) in enumerate(zip(mine.input_proj, theirs.input_proj, strict=True)):
            pairs.append(LayerPair(f"{name}.input_proj.{i}", here, there))
        pairs.append(TransformerPair(name, mine, theirs))
    return pairs


def encoders_alike(student: Any, teacher: Any) -> bool:
    """Whether the student's layer can be solved from the teacher's: no larger, and normalised after each sum."""
    return (
        not (student.normalize_before or teacher.normalize_before)
        and student.ma.num_heads == teacher.ma.num_heads
        and student.ma.embed_dim <= teacher.ma.embed_dim
        and student.fc1.out_features <= teacher.fc1.out_features
    )


def decoders_alike(student: Any, teacher: Any) -> bool:
    """Whether the student's decoder can be solved from the teacher's: no larger, with as many heads and points."""
    here, there = student.decoder.layers[0], teacher.decoder.layers[0]
    return (
        not (student.learnt_init_query or teacher.learnt_init_query)  # they belong to no place of the image
        and student.nhead == teacher.nhead
        and here.cross_attn.n_points == there.cross_attn.n_points
        and student.hidden_dim <= teacher.hidden_dim
        and here.linear1.out_features <= there.linear1.out_features
        and len(student.decoder.layers) <= teacher.decoder.eval_idx + 1
    )


def decoder_images(head: Any, maps: Sequence[Tensor]) -> int:
    """How many images a decoder is fitted to, given the maps that it reads."""
    cells = sum(x.shape[-2] * x.shape[-1] for x in maps)
    count: int = max(min(POINTS // min(head.num_queries, cells), TOKENS // cells), 2)
    return count


def teacher_layers(student: Any, teacher: Any) -> list[int]:
    """For each of the student's decoder layers, the teacher's: evenly spaced, the last one that of its predictions."""
    step = (teacher.decoder.eval_idx + 1) / len(student.decoder.layers)
    return [round((i + 1) * step) - 1 for i in range(len(student.decoder.layers))]
