"""Which calibrator gives INT8 its ranges, and which layers stay in float: decided by the error that each leaves.

The error is that of the detections in images that nothing was calibrated on, see `output_error`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from ultralytics.utils import LOGGER

from yolokd.errors import UsageError, printable
from yolokd.onnx import calibration, quantize
from yolokd.onnx.output_error import OutputError
from yolokd_edge.progress import Progress

AUTO = "auto"


@dataclass(frozen=True)
class Wishes:
    """What a user may say of INT8."""

    calibrator: str = AUTO
    float_layers: int | None = None  # how many stay in float; None: none, or as many as max_error takes
    max_error: float | None = None  # percent that detections may be off

    def check(self) -> None:
        """Refuse what makes no sense."""
        if self.calibrator not in (AUTO, *calibration.CALIBRATORS):
            known = ", ".join((AUTO, *calibration.CALIBRATORS[:-1]))
            raise UsageError(
                f"calibrator={self.calibrator} is not known: give {known} or {calibration.CALIBRATORS[-1]}."
            )
        layers, error = self.float_layers, self.max_error
        if layers is not None and (isinstance(layers, bool) or not isinstance(layers, int) or layers < 0):
            raise UsageError(f"float_layers={layers} is not a number of layers: give 0 or more, such as 3.")
        if error is not None and (
            isinstance(error, bool) or not isinstance(error, (int, float)) or not 0 <= error <= 100
        ):
            raise UsageError(f"max_error={error} is not a percentage: give 0 to 100, such as 2.")

    def given(self) -> list[str]:
        """What differs from the defaults, as it is written."""
        return [f"{key}={value}" for key, value in vars(self).items() if value != getattr(Wishes(), key)]

    @property
    def searches(self) -> bool:
        """Whether layers are to be found that stay in float."""
        return bool(self.float_layers) or self.max_error is not None


class Trials:
    """Rounds a file in several ways, measures them, and writes the best.

    Args:
        file: the FP32 file.
        images: to calibrate on.
        measure: of the error.
        wishes: checked.

    Raises:
        UsageError: nothing is detected to find layers by, or there are fewer layers than should stay in float.
    """

    def __init__(self, file: Path, images: Sequence[Path], measure: OutputError, wishes: Wishes) -> None:
        self.file, self.images, self.measure, self.wishes = file, images, measure, wishes
        self.graph = load_model_with_shape_infer(file)
        convolutions = [node.name for node in self.graph.graph.node if node.op_type == "Conv"]
        self.head = quantize.head_convolutions(self.graph, file)
        self.layers = [name for name in convolutions if name not in set(self.head)]
        self._check()
        self.ranges = calibration.ranges(file, images, self._tried())

    def _tried(self) -> Sequence[str]:
        if self.wishes.calibrator != AUTO:
            return (self.wishes.calibrator,)
        if self.measure:
            return calibration.CALIBRATORS
        LOGGER.warning(
            f"Nothing is detected in the {len(self.measure.inputs)} images that INT8 is measured on, so the "
            f"calibrators cannot be compared: calibrator={calibration.MINMAX} is taken."
        )
        return (calibration.MINMAX,)

    def _check(self) -> None:
        if self.wishes.searches and not self.measure:
            raise UsageError(
                f"nothing is detected in the {len(self.measure.inputs)} images that INT8 is measured on, so no layers "
                "can be found to stay in float: leave out float_layers= and max_error=."
            )
        if (self.wishes.float_layers or 0) > len(self.layers):
            raise UsageError(
                f"float_layers={self.wishes.float_layers}: the student has {len(self.layers)} convolutions outside "
                "the head: give fewer."
            )

    def write(self, target: Path, scheme: dict[str, Any]) -> dict[str, Any]:
        """Write the INT8 file of a scheme; returns what was tried, for the manifest.

        Returns:
            ``calibrators``: name -> error, of those tried. ``layers``: of those outside the head and of the head's
            branches, the error when only they are rounded, largest first. ``left``: those that stay in float, with the
            error and the bytes of the file then.
        """
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(self, scheme, Path(folder) / target.name)
            errors = {name: trial.error(of, ()) for name, of in self.ranges.items()} if self.measure else {}
            chosen = min(errors or self.ranges, key=lambda name: errors.get(name, 0.0))  # of equal ones the first
            costs, left = [], []
            if self.wishes.searches:
                costs = self._costs(trial, chosen)
                left = self._leave(trial, chosen, costs, errors[chosen])
        floats = [row["name"] for row in left]
        figures = {
            "calibrator": f"{chosen}: {calibration.MEANING[chosen]}",
            "float_layers": [short(name) for name in floats],
            "calib_n": len(self.images),
            "calib_sha": calibration.digest(self.images),
        }
        quantize.int8(self.file, target, self.ranges[chosen], scheme, floats, figures)
        return {
            "calibrators": errors,
            "chosen": chosen,
            "layers": [{"layer": layer, "error": error} for layer, _, error in costs],
            "left": [{"layer": short(row["name"]), "error": row["error"], "bytes": row["bytes"]} for row in left],
        }

    def _costs(self, trial: Trial, chosen: str) -> list[tuple[str, list[str], float]]:
        """Name, convolutions and error of each layer, and of each branch of the head, when only it is rounded."""
        branches: dict[str, list[str]] = {}
        for name in self.head:
            branches.setdefault(f"head {name.split('/')[2].partition('.')[0]}", []).append(name)
        parts = {**{short(name): [name] for name in self.layers}, **branches}
        everything = {*self.layers, *self.head}
        costs = []
        with Progress(f"measuring the layers of {printable(trial.file.name)}", len(parts)) as progress:
            for part, names in parts.items():
                costs.append((part, names, trial.error(self.ranges[chosen], everything - set(names), head=False)))
                progress.step()
        return sorted(costs, key=lambda cost: -cost[2])

    def _leave(
        self, trial: Trial, chosen: str, costs: Iterable[tuple[str, list[str], float]], error: float
    ) -> list[dict[str, Any]]:
        """Leave layers in float, those that cost most first, until the wishes are met."""
        most = len(self.layers) if self.wishes.float_layers is None else self.wishes.float_layers
        limit, left = self.wishes.max_error, list[dict[str, Any]]()
        candidates = iter([name for _, (name, *_), _ in costs if name in set(self.layers)])
        while len(left) < most and (limit is None or 100 * error > limit):
            names = [*(row["name"] for row in left), next(candidates)]
            error = trial.error(self.ranges[chosen], names)
            left.append({"name": names[-1], "error": error, "bytes": trial.file.stat().st_size})
        if limit is not None and 100 * error > limit:
            LOGGER.warning(
                f"{trial.file.name}: detections are off by {100 * error:.2f} % with {len(left)} layers in float, more "
                f"than max_error={limit:g}: allow more with float_layers= or max_error=."
            )
        return left


class Trial:
    """Rounds a graph by one scheme, into one file that is written again and again."""

    def __init__(self, of: Trials, scheme: dict[str, Any], file: Path) -> None:
        self.of, self.scheme, self.file = of, scheme, file

    def error(self, ranges: TensorsData, floats: Collection[str], head: bool = True) -> float:
        """The error with these convolutions in float, and the head's too unless told."""
        names = {*floats, *self.of.head} if head else set(floats)
        onnx.save(quantize.rounded(self.of.graph, ranges, self.scheme, names), self.file)
        return round(self.of.measure.of(self.file), 6)


def short(name: str) -> str:
    """A convolution's name as users know the layer: /model.2/m.0/cv1/conv/Conv is model.2.m.0.cv1."""
    path = [part for part in name.split("/") if part]
    return re.sub(r"\.conv$", "", ".".join(path[:-1] if len(path) > 1 else path))
