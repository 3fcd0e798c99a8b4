"""What a model is loaded with: inputs made from images or from noise, and requests that take them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from yolokd_edge.bundle import own_bundle
from yolokd_edge.common import EdgeError
from yolokd_edge.detector import Detector, load
from yolokd_edge.images import noise_frames, read_frames
from yolokd_edge.load.options import LoadOptions
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.requests import Requests, open_requests
from yolokd_edge.runtimes.table import name_of

DIFFERENT = 64  # inputs that are kept in memory, at most


def open_detector(options: LoadOptions) -> Detector:
    """The model, opened once to know its contract and where it runs."""
    settings: dict[str, Any] = {
        "tensorrt": TensorRT(options.fp16, options.cache),
        "allow_fallback": options.allow_fallback,
        "hw": options.hw,
    }
    return load(options.model, options.provider, options.threads, options.precision, **settings)


def takes_batches(detector: Detector) -> bool:
    """Whether the file was exported without a fixed number of images."""
    return not isinstance(detector.session.get_inputs()[0].shape[0], int)


def frames_for(detector: Detector, options: LoadOptions) -> list[np.ndarray]:
    """The images, in a fixed shuffled order, or noise of the model's input size."""
    if options.random:
        return noise_frames(detector.contract.hw, options.seed)
    return read_frames(options.source or str(own_bundle() / "parity"), options.seed, DIFFERENT)


def make_inputs(detector: Detector, frames: Sequence[np.ndarray], batch: int, seed: int) -> list[np.ndarray]:
    """Inputs (batch, 3, H, W) of frames drawn at random with replacement, as the rules have it; at most 64."""
    single = [detector.preprocess(frame)[0] for frame in frames]
    shapes = {blob.shape for blob in single}
    if len(shapes) > 1:
        raise EdgeError(f"{detector.path} fits these images to inputs of several sizes, which cannot be one input.")
    if batch == 1:
        return single
    rng = random.Random(seed)
    count = max(min(DIFFERENT // batch, len(single)), 2)
    return [np.concatenate(rng.choices(single, k=batch)) for _ in range(count)]


def requests_for(
    detector: Detector, options: LoadOptions, streams: int | None, inputs: Sequence[np.ndarray]
) -> Requests:
    """Open the model as often as streams need it, for inputs of this shape."""
    blob = inputs[0]
    settings: dict[str, Any] = {"fp16": options.fp16, "cache": options.cache, "hw": options.hw}
    tensorrt = TensorRT(**settings, batch=len(blob), cuda_graph=options.cuda_graph)
    provider = name_of(detector.active) or "cpu"
    return open_requests(detector.path, provider, streams, options.threads, tensorrt, blob)


def check_batches(detector: Detector, batches: Sequence[int]) -> None:
    """Refuse several images in an input where the file takes one."""
    if max(batches) > 1 and not takes_batches(detector):
        raise EdgeError(
            f"{detector.path} takes one image at a time: export it with dynamic=True to measure batch={max(batches)}."
        )
