"""What every kind of output is asked: how a frame becomes the input, and the output detections in the frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolokd_edge.boxes import Letterbox, letterbox, unletterbox
from yolokd_edge.common import PARITY, EdgeError
from yolokd_edge.contract import Contract


class Limits(NamedTuple):
    """What a detection must pass."""

    conf: float  # its score is above this
    iou: float  # overlap above which NMS drops the weaker one
    max_det: int  # of a frame
    validating: bool  # a box for each class above conf, and none cut at the frame's border


class Output:
    """Reads the outputs of a file, each (1, ...). Detections are rows (n, 6 or more), best first: box, score, class,
    and what the task adds.

    Args:
        contract: what the file declares.
        path: the file, for messages.
    """

    fitting = "letterbox"  # how a frame is fitted into the input, for the bundle's manifest
    shapes: tuple[tuple[str, ...], ...]  # of each output: numbers, and words for sizes that may be any
    columns = 6  # of a row
    per_anchor = False  # whether the first output holds an anchor point in each column
    adds: str | None = None  # what a detection has beside its box, the name of its tolerance

    def __init__(self, contract: Contract, path: Path) -> None:
        self.contract, self.path = contract, path

    def check_count(self, inputs: int, outputs: int) -> None:
        """Refuse a file with another number of inputs or outputs."""
        if inputs != 1 or outputs != len(self.shapes):
            wanted = "one each" if len(self.shapes) == 1 else f"one and {len(self.shapes)}"
            raise EdgeError(f"{self.path} has {inputs} inputs and {outputs} outputs; a detector has {wanted}.")

    def check_shapes(self, shapes: Sequence[Sequence[Any]]) -> None:
        """Refuse outputs that contradict the contract. A symbolic dimension (a name) contradicts nothing."""
        for wanted, shape in zip(self.shapes, shapes):  # noqa: B905
            fits = len(shape) == len(wanted)
            for want, got in zip(wanted, shape) if fits else ():  # noqa: B905
                fits &= not (want.isdigit() and isinstance(got, int)) or int(want) == got
            if not fits:
                raise EdgeError(
                    f"{self.path} declares {self.contract.output} with {self.contract.nc} classes, "
                    f"({', '.join(wanted)}), but its output is {tuple(shape)}."
                )

    def fit(self, frame: np.ndarray, validating: bool = False) -> tuple[np.ndarray, Letterbox]:
        """The frame (H, W, 3) in the input's size, and the way back."""
        return letterbox(frame, self.contract.hw, validating)

    def decode(self, outputs: Sequence[np.ndarray], limits: Limits) -> tuple[np.ndarray, int]:
        """Detections from the outputs without their first axis; and how many were above conf."""
        raise NotImplementedError

    def to_frame(self, rows: np.ndarray, box: Letterbox, limits: Limits) -> np.ndarray:
        """Detections of `decode` in pixels of the frame."""
        return unletterbox(rows, box, clip=not limits.validating)

    def added(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """What each of the latest frame's detections has beside its box, in pixels of the frame, as JSON knows it."""
        return [{} for _ in rows]

    def things(self, rows: np.ndarray) -> np.ndarray:
        """What `apart` compares, for each of the latest frame's detections: the rows, or something else."""
        return rows

    def apart(self, a: np.ndarray, b: np.ndarray) -> float:
        """How far what two detections have beside their boxes is apart, of `things`."""
        return 0.0

    def units(self) -> np.ndarray:
        """What a difference of 1 is, for each value that the task adds to an anchor point."""
        return np.ones(0)

    def in_pixels(self, outputs: Any) -> np.ndarray:
        """The first output (1, ...) with boxes in pixels of the input, to be compared with another."""
        first: np.ndarray = outputs[0] if isinstance(outputs, tuple) else outputs
        return first

    def final(self, rows: np.ndarray, limits: Limits) -> tuple[np.ndarray, int]:
        """Rows (n, 6) that end with score and class, best first: those above conf, and how many these were."""
        kept = rows[rows[:, 4] > limits.conf]  # padding rows have confidence 0
        classes = kept[:, 5]
        if len(kept) and not (0 <= classes.min() <= classes.max() < self.contract.nc and (classes % 1 == 0).all()):
            raise EdgeError(f"{self.path} detects classes that its metadata does not name.", PARITY)
        return kept[: limits.max_det], len(kept)
