"""The ranges that INT8 gives the activations, from images, by the calibrators of ONNX Runtime.

One histogram of each tensor serves all calibrators, for both schemes: a scheme with zero point 0 takes the larger of
the two ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from onnxruntime.quantization.calibrate import CalibraterBase, TensorsData

from yolokd.data.splits import split_images
from yolokd.errors import printable
from yolokd.onnx.output_error import IMAGES
from yolokd.onnx.parity import readable
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_image
from yolokd_edge.progress import Progress

MINMAX, PERCENTILE, ENTROPY = "minmax", "percentile", "entropy"
CALIBRATORS = (MINMAX, PERCENTILE, ENTROPY)
PERCENT = 99.99  # of a tensor's values that `percentile` keeps within its range, half of the rest at either end
BINS = 2048  # of a histogram of the first image's values; more are added where later values are beyond them
COARSE = 512  # most bins that `entropy` is given: its time grows with their square
LEVELS = 128  # that `entropy` merges the bins to, as in NVIDIA's description of it
MEANING = {
    MINMAX: "smallest to largest value",
    PERCENTILE: f"{PERCENT:g} % of the values",
    ENTROPY: "least relative entropy",
}


def ranges(file: Path, images: Sequence[Path], calibrators: Sequence[str]) -> dict[str, TensorsData]:
    """The ranges of all tensors that convolutions read or write, by each of some calibrators.

    Args:
        file: the FP32 file.
        images: whose activations are looked at.
        calibrators: of CALIBRATORS.
    """
    histograms = set(calibrators) != {MINMAX}
    method = CalibrationMethod.Percentile if histograms else CalibrationMethod.MinMax
    options = {"num_bins": BINS, "percentile": PERCENT, "symmetric": False} if histograms else {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints every step
        augmented = (Path(folder) / "augmented.onnx").as_posix()
        calibrator = create_calibrator(file, ["Conv"], augmented, method, extra_options=options)
        for blob in _blobs(file, images):
            calibrator.collect_data(_One(blob))  # one by one: it holds all activations of what it is given
        return {name: _computed(calibrator, name) for name in calibrators}


def _computed(calibrator: CalibraterBase, name: str) -> TensorsData:
    if not hasattr(calibrator, "collector"):
        return calibrator.compute_data()
    collector = calibrator.collector
    if name == MINMAX:
        found = {tensor: histogram[2:4] for tensor, histogram in collector.histogram_dict.items()}
        return TensorsData(CalibrationMethod.MinMax, found)
    if name == PERCENTILE:
        return TensorsData(CalibrationMethod.Percentile, collector.compute_percentile())
    fine = collector.histogram_dict
    collector.num_quantized_bins = LEVELS
    collector.histogram_dict = {tensor: coarser(*histogram) for tensor, histogram in fine.items()}
    computed = collector.compute_entropy()
    collector.histogram_dict = fine
    return TensorsData(CalibrationMethod.Entropy, computed)


def coarser(counts: np.ndarray, edges: np.ndarray, *limits: np.ndarray) -> tuple[np.ndarray, ...]:
    """A histogram around 0 with bins merged, so that at most COARSE are left; still around 0."""
    half = len(counts) // 2
    merged = -(-half // (COARSE // 2))  # bins into one
    lacking = -half % merged  # at either end
    counts = np.pad(counts, lacking).reshape(-1, merged).sum(1)
    end = edges[-1] * ((half + lacking) / half)
    return counts, np.linspace(-end, end, len(counts) + 1, dtype=edges.dtype), *limits


def _blobs(file: Path, images: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
    """Inputs, preprocessed as at run time."""
    detector = Detector(file, threads=1)
    name = detector.session.get_inputs()[0].name
    with Progress(f"calibrating {printable(file.name)}", len(images)) as progress:
        for path in images:
            yield {name: detector.preprocess(read_image(path))[0]}
            progress.step()


class _One(CalibrationDataReader):
    """Feeds one input."""

    def __init__(self, feed: dict[str, Any]) -> None:
        self.feeds = iter([feed])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def image_sets(dataset: dict[str, Any], most: int) -> tuple[list[Path], list[Path], str]:
    """The images to calibrate on, those to measure on, and the split that the latter are from.

    Measured is on training images that nothing is calibrated on; where too few are left, or where nothing is calibrated
    (`most` is 0), on validation images.
    """
    training = split_images(dataset, "train") if most else []
    images = spread(training, most)
    used = set(images)
    rest = [path for path in training if path not in used]
    enough = len(rest) >= IMAGES
    held = spread(rest if enough else split_images(dataset, "val"), IMAGES)
    return list(filter(readable, images)), list(filter(readable, held)), "train" if enough else "val"


def spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most the given number, evenly over the list."""
    places = np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)
    return [paths[k] for k in places]


def digest(images: Sequence[Path]) -> str:
    """SHA-256 of the bytes of all images."""
    whole = hashlib.sha256()
    for path in images:
        whole.update(path.read_bytes())
    return whole.hexdigest()
