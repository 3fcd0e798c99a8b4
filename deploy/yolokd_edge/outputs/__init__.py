"""What a model's output means: a file for each kind of head, and a line here for each output contract."""

from __future__ import annotations

from pathlib import Path

from yolokd_edge.contract import DETR, E2E, NMS, OBB, POSE, RAW, SEGMENT, Contract
from yolokd_edge.outputs.base import Output
from yolokd_edge.outputs.detr import Queries
from yolokd_edge.outputs.obb import Rotated
from yolokd_edge.outputs.pose import Keypoints
from yolokd_edge.outputs.segment import Masks
from yolokd_edge.outputs.yolo import Final, Raw

OUTPUTS: dict[str, type[Output]] = {
    RAW: Raw,
    E2E: Final,
    NMS: Final,
    DETR: Queries,
    OBB: Rotated,
    POSE: Keypoints,
    SEGMENT: Masks,
}


def output_of(contract: Contract, path: Path) -> Output:
    """How to read the output of a file that declares this contract."""
    return OUTPUTS[contract.output](contract, path)
