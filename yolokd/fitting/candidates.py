"""The students in question: a layout at several widths, depths and image sizes, and what each has to compute.

A student of any size can start from its teacher (`yolokd.init`), so a size needs no pretraining of its own, and the
grid need not be that of the published n, s, m, l and x.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import guess_model_scale, guess_model_task, yaml_model_load
from ultralytics.utils.ops import make_divisible

from yolokd.detectors import read
from yolokd.detectors.opening import open_student, refuse_layout, scaled_yaml, stored_yaml
from yolokd.errors import UsageError, one_line

WIDTHS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125)  # of the family's own
DEPTHS = (1.0, 0.5)
SIZES = (1.0, 0.8, 0.6)  # of the largest image
DETR = "RTDETRDecoder"
STRIDE = 32  # which image sizes are multiples of
SIDE = 64  # pixels for which the work is counted
UNLIMITED = 2**16  # channels, where a layout has no limit
LETTER = re.compile(r"yolo(?:e-)?v?\d+[nslmx]")  # by which Ultralytics finds a layout's scale


@dataclass(frozen=True)
class Family:
    """A layout in a file, and the factors of which the candidates' are shares."""

    file: Path
    width: float
    depth: float


@dataclass(frozen=True, order=True)
class Candidate:
    """A student of a family."""

    width: float  # factor on the channels
    depth: float  # factor on the number of repeated blocks
    imgsz: int  # pixels

    @property
    def name(self) -> str:
        """For folders, files and tables."""
        return f"w{self.width:g}-d{self.depth:g}-{self.imgsz}"

    def within(self, other: Candidate) -> bool:
        """Whether it is another student's or smaller in every respect."""
        return self.width <= other.width and self.depth <= other.depth and self.imgsz <= other.imgsz


@dataclass(frozen=True)
class Work:
    """What a candidate computes for one image; the latency is modelled as a sum of shares of these."""

    gflops: float
    activations: float  # millions of numbers that the convolutions output
    convolutions: float
    pixels: float  # millions

    def terms(self) -> list[float]:
        """As a row of the model's matrix; the first is what every frame takes."""
        return [1.0, self.gflops, self.activations, self.convolutions, self.pixels]


# --- the layout -----------------------------------------------------------------------------------------------------


def layout_of(teacher: Any, family: Any, trust: bool) -> dict[str, Any]:
    """The layout of the teacher's own family, or of the YAML that family= names."""
    if family is None:
        return dict(teacher.yaml)
    try:
        found = yaml_model_load(str(family))
    except Exception as error:  # a missing, damaged or foreign file ends in several types
        raise UsageError(
            f"family={family} is not a model YAML that Ultralytics finds ({one_line(error)}): give one such as "
            "yolo11n.yaml, or leave it out for the teacher's own."
        ) from error
    refuse_layout(found, f"family={family}", trust)
    wanted = kind_of(teacher.yaml)
    if kind_of(found) != wanted:
        raise UsageError(
            f"family={family} is for {kind_of(found)}, and the teacher for {wanted}: give a layout for the same, or "
            "leave it out for the teacher's own."
        )
    return dict(found)


def kind_of(layout: dict[str, Any]) -> str:
    """What a layout's head is for; an RT-DETR and a YOLO have no start in common."""
    return "detect, an RT-DETR" if layout["head"][-1][2] == DETR else task_of(layout)


def task_of(layout: dict[str, Any]) -> str:
    """The task of a layout, also of an RT-DETR's, of which Ultralytics says none."""
    return "detect" if layout["head"][-1][2] == DETR else str(guess_model_task(layout))


def store_family(layout: dict[str, Any], classes: int, keypoints: Any = None) -> Family:
    """A layout as a file with one scale, its own, and the data's number of classes and shape of keypoints."""
    layout = {key: value for key, value in layout.items() if key not in ("ch", "channels")}
    scale, scales = layout.pop("scale", None), layout.pop("scales", None) or {}
    named = Path(str(layout.pop("yaml_file", ""))).stem
    depth, width = (float(layout.pop(key, 1.0)) for key in ("depth_multiple", "width_multiple"))
    most = UNLIMITED
    if scales:
        scale = scale or next(iter(scales))
        depth, width, most = scales[scale]
    letter = str(scale or "n")
    found = LETTER.search(named)
    stem = found[0] if found and guess_model_scale(found[0]) == letter else f"yolo0{letter}"
    if keypoints is not None and "kpt_shape" in layout:
        layout["kpt_shape"] = list(keypoints)
    file = stored_yaml({**layout, "nc": classes, "scales": {letter: [depth, width, most]}}, stem)
    return Family(Path(file), width, depth)


# --- the grid -------------------------------------------------------------------------------------------------------


def grid(
    family: Family, largest: int, widths: Any = None, depths: Any = None, sizes: Any = None, least: int = STRIDE
) -> list[Candidate]:
    """Every candidate, the largest first; of several that come to the same network one.

    Args:
        family: whose factors are the largest, unless others are given.
        largest: side of the largest image, pixels.
        widths, depths: factors as in a model YAML, in place of shares of the family's.
        sizes: image sizes in pixels, in place of shares of the largest.
        least: side of the smallest image that the family takes, pixels.
    """
    wide = numbers("widths", widths, 0.01, 4) or [family.width * share for share in WIDTHS]
    deep = numbers("depths", depths, 0.01, 4) or [family.depth * share for share in DEPTHS]
    sides = numbers("sizes", sizes, least, 2**13) or [max(largest * share, least) for share in SIZES]
    sides = [max(math.ceil(round(side / STRIDE, 6)) * STRIDE, least) for side in sides]  # up, as Ultralytics rounds
    layout = yaml_model_load(str(family.file))
    found: dict[Any, Candidate] = {}
    for imgsz in sorted(set(sides), reverse=True):
        for depth in sorted(set(deep), reverse=True):
            for width in sorted(set(wide), reverse=True):
                candidate = Candidate(round(float(width), 6), round(float(depth), 6), int(imgsz))
                found.setdefault((imgsz, *shape(layout, candidate)), candidate)
    return list(found.values())


def numbers(key: str, value: Any, low: float, high: float) -> list[float]:
    """The numbers of a list option; empty where none are given."""
    if value is None:
        return []
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not given or not all(type(x) in (int, float) and low <= x <= high for x in given):
        raise UsageError(f"{key}={value} is not a list of numbers from {low:g} to {high:g}: write {key}=[0.25,0.5].")
    return given


def shape(layout: dict[str, Any], candidate: Candidate) -> tuple[Any, ...]:
    """The repeats and channels of a layout's rows, which equal networks have in common."""
    most = next(iter(layout["scales"].values()))[2]
    rows = [*layout["backbone"], *layout["head"]]
    repeats = tuple(max(round(n * candidate.depth), 1) if n > 1 else n for _, n, *_ in rows)
    wide = [args[0] for *_, args in rows if args and type(args[0]) is int and args[0] >= 8]
    return repeats, tuple(make_divisible(min(c, most) * candidate.width, 8) for c in wide)


def yaml_of(family: Family, candidate: Candidate) -> str:
    """Path of the model YAML of a candidate."""
    return scaled_yaml(str(family.file), candidate.width, candidate.depth)


# --- what it computes -----------------------------------------------------------------------------------------------


def works(family: Family, candidates: Sequence[Candidate]) -> dict[Candidate, Work]:
    """What each candidate computes; a network is built once for all its image sizes."""
    counted: dict[tuple[float, float], tuple[float, float, int]] = {}
    found = {}
    for candidate in candidates:
        key = candidate.width, candidate.depth
        if key not in counted:
            counted[key] = count(open_student(yaml_of(family, candidate)).model)
        flops, numbers_out, convolutions = counted[key]
        area = (candidate.imgsz / SIDE) ** 2
        found[candidate] = Work(flops * area / 1e9, numbers_out * area / 1e6, convolutions, candidate.imgsz**2 / 1e6)
    return found


@torch.no_grad()
def count(model: Any) -> tuple[float, float, int]:
    """Operations, numbers output, and count of the convolutions for an image of SIDE x SIDE; an RT-DETR's queries are
    the same for every image, and not among them."""
    seen: list[tuple[float, float]] = []
    side = max(least_side(model), SIDE)

    def look(module: nn.Conv2d, _: Any, out: torch.Tensor) -> None:
        each = math.prod(module.kernel_size) * module.in_channels / module.groups
        seen.append((2.0 * each * out.numel(), float(out.numel())))

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    area = (SIDE / side) ** 2
    return area * sum(f for f, _ in seen), area * sum(n for _, n in seen), len(seen)


def least_side(model: Any) -> int:
    """Side of the smallest image that a network takes: an RT-DETR must have a cell for each of its queries."""
    queries = getattr(model.model[-1], "num_queries", 0)
    strides = read(model).strides
    side = STRIDE
    while sum((side // stride) ** 2 for stride in strides) < queries:
        side += STRIDE
    return side


def outermost(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other surpasses in width, depth and image size: with its start a smaller student is never better,
    so only these need to be tried."""
    return [c for c in candidates if not any(c != other and c.within(other) for other in candidates)]
