"""Detect with an exported YOLO model and measure its latency: numpy, OpenCV and ONNX Runtime, nothing else.

For Python 3.8 and newer. In an unpacked bundle (`yolokd bundle`), or where the package is installed:

    python3 -m yolokd_edge detect --model model.onnx --source images/ --save drawn/
    python3 -m yolokd_edge verify --model name-edge.zip
    python3 -m yolokd_edge bench --model model.onnx --source images/ --out report.json
    python3 -m yolokd_edge doctor

A model is an ONNX file or a bundle: the zip file, or the folder that it was unpacked to.

Frames are BGR uint8 arrays (H, W, 3) as OpenCV decodes them. Detections are float32 arrays (n, 6): x1, y1, x2, y2 in
pixels of the frame, confidence, class index. Clocks count nanoseconds; reports give milliseconds.

Where to look:

- contract: what an exported file says of itself
- detector: a file in, detections out; around it boxes (letterbox, NMS) and images
- outputs: what a model's output means, a file for each kind of head
- runtimes: ONNX Runtime, TensorRT, OpenVINO, ncnn, MNN, LiteRT, TorchScript, a Triton server, and the proof of where a
  model runs
- bundle: opened and checked; provenance: who taught the model
- detect, verify, doctor, bench: what the command line does; drawings: boxes drawn on frames
- load: throughput against latency, scenarios of load, frames of a camera; layers: the first layer that goes wrong
- board: what the board tells of itself while frames are timed
- jetson: the latency tests for pytest
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolokd_edge.bench.options import BenchOptions
    from yolokd_edge.bench.sweep import measure_models
    from yolokd_edge.bundle import Bundle, open_bundle
    from yolokd_edge.common import EdgeError
    from yolokd_edge.contract import Contract, read_contract
    from yolokd_edge.detector import Detector, load
    from yolokd_edge.doctor import diagnose
    from yolokd_edge.images import list_images, read_image
    from yolokd_edge.verify import verify_bundle
    from yolokd_edge.version import VERSION as __version__

# Loaded when first used: importing one module, such as the words of the report, costs no OpenCV and no ONNX Runtime.
_HOME = {
    "BenchOptions": "bench.options",
    "measure_models": "bench.sweep",
    "Bundle": "bundle",
    "open_bundle": "bundle",
    "EdgeError": "common",
    "Contract": "contract",
    "read_contract": "contract",
    "Detector": "detector",
    "load": "detector",
    "diagnose": "doctor",
    "list_images": "images",
    "read_image": "images",
    "verify_bundle": "verify",
    "__version__": "version",
}
__all__ = [
    "BenchOptions", "Bundle", "Contract", "Detector", "EdgeError", "__version__", "diagnose", "list_images", "load",
    "measure_models", "open_bundle", "read_contract", "read_image", "verify_bundle",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'yolokd_edge' has no attribute {name!r}")
    return getattr(import_module(f"yolokd_edge.{_HOME[name]}"), "VERSION" if name == "__version__" else name)
