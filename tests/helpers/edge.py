"""What the tests of the edge side share: exported models, hand-made ONNX files, colour frames that are not square."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from ultralytics import YOLO

from yolokd.demo.scenes import compose
from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.bench.sweep import collect, measure_models
from yolokd_edge.bench.timing import Run
from yolokd_edge.bench.trial import Trial, make_trial
from yolokd_edge.common import PACKAGE as EDGE


def copy_runtime(folder: Path) -> Path:
    """Put the runtime into a folder as a bundle does; returns the package's folder there."""
    rest = shutil.ignore_patterns("board_files", "jetson", "__pycache__")
    return Path(shutil.copytree(EDGE, folder / EDGE.name, ignore=rest))


def measured(models: Sequence[Any], source: Any, out: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    """The records of models, by options."""
    return measure_models(BenchOptions(models, source, **options), out)


def collected(models: Sequence[Any], source: Any, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of models and their samples, by options."""
    return collect(BenchOptions(models, source, **options))


def export(checkpoint: Path, target: Path, **arguments: Any) -> Path:
    """Export with Ultralytics alone, so that the file carries nothing but its metadata."""
    copy = target.with_suffix(".pt")  # Ultralytics writes beside the checkpoint
    shutil.copy(checkpoint, copy)
    return Path(YOLO(copy).export(format="onnx", simplify=False, opset=17, **arguments))


def metadata(contract: str = "raw_xywh_scores", classes: int = 3, hw: tuple[int, int] = (32, 64)) -> dict[str, str]:
    """What Ultralytics' exporter writes, as far as the runtime reads it."""
    names = {k: f"class{k}" for k in range(classes)}
    args = {"quantize": None, "nms": True if contract.startswith("nms") else None}
    return {
        "names": str(names),
        "imgsz": str(list(hw)),
        "stride": "32",
        "task": "detect",
        "end2end": str(contract.startswith("e2e")),
        "args": str(args),
        "channels": "3",
    }


def entry(contract: str, **fields: Any) -> dict[str, str]:
    """The metadata entry that yolokd's own export adds."""
    return {"yolokd": json.dumps({"schema": "yolokd.export/1", "output_contract": contract, **fields})}


def toy(path: Path, output: np.ndarray, props: dict[str, str], hw: tuple[int, int] = (32, 64)) -> Path:
    """An ONNX file that answers every image (1, 3, *hw) with the same output."""
    constant = helper.make_node("Constant", [], ["output0"], value=numpy_helper.from_array(output.astype(np.float32)))
    graph = helper.make_graph(
        [constant],
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *hw])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(output.shape))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, props)
    onnx.save(model, path)
    return path


def set_metadata(path: Path, target: Path, **changes: str) -> Path:
    """A copy of an ONNX file with some metadata entries changed or added."""
    model = onnx.load(path)
    helper.set_model_props(model, {p.key: p.value for p in model.metadata_props} | changes)
    onnx.save(model, target)
    return target


def colour_frames(folder: Path, count: int = 8) -> list[np.ndarray]:
    """Frames of many shapes, none square, tinted: a square or grey one would hide a wrong letterbox or BGR for RGB."""
    scenes = sorted((compose(folder / "scenes", train=1, val=2 * count, seed=5).parent / "images/val").glob("*.jpg"))
    rng, frames = np.random.default_rng(0), []
    for k in range(count):
        one, two = cv2.imread(str(scenes[2 * k])), cv2.imread(str(scenes[2 * k + 1]))
        cut = int(rng.integers(20, 150))
        frame = np.hstack([one, two[:, :cut]]) if k % 2 else np.vstack([one, two[:cut]])
        frame = (frame * rng.uniform(0.4, 1, 3)).astype(np.uint8)
        size = (int(frame.shape[1] * rng.uniform(0.5, 2.5)), int(frame.shape[0] * rng.uniform(0.5, 2.5)))
        frames.append(cv2.resize(frame, size))
    return frames


def trial(run: Run, seconds: float, **facts: Any) -> Trial:
    """One process's frames of a scripted detector, with everything else about it in order."""
    start = run.starts[0][0] if run.starts else 0
    usual = {
        "repeat": 0,
        "stream": 0,
        "window": [start, start + round(seconds * 1e9)],
        "warmup": {"frames": 20, "s": 2.0, "stable": True},
        "load": {"before": 0.0, "after": 1.0},
        "steal": 0.0,
        "images": {"n": 40, "sha": "", "source_hw": [[8, 8]]},
        "uses_gpu": False,
        "runtime": {"fallback": False, "providers_active": ["CPUExecutionProvider"]},
        "model": {"file": "scripted.onnx"},
    }
    return make_trial(run, seconds, {**usual, **facts})


# What a manifest and a file's metadata say of where a model comes from.
ORIGIN = {
    "student": {"file": "best.pt", "sha256": "00"},
    "teachers": [{"file": "big.pt", "sha256": "11"}],
    "start": "teacher",
    "methods": {"cwd": {"gain": 1.0}},
    "gain": 1.0,
    "dataset": "d.yaml",
    "accuracy": {"map50": 0.5},
}


def labelled(
    folder: Path,
    frames: Sequence[np.ndarray],
    objects: Sequence[Sequence[Sequence[float]]],
    names: dict[int, str],
    **more,
) -> Path:
    """YAML of a data set of frames, for training and validation, with the rows of each frame's label file."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for k, (frame, rows) in enumerate(zip(frames, objects, strict=True)):
        cv2.imwrite(str(folder / "images" / f"{k}.png"), frame)
        lines = [" ".join([f"{row[0]:.0f}", *(f"{value:.6f}" for value in row[1:])]) for row in rows]
        (folder / "labels" / f"{k}.txt").write_text("\n".join(lines))
    content = {"path": str(folder), "train": "images", "val": "images", "names": names, **more}
    (folder / "data.yaml").write_text(json.dumps(content))  # JSON is YAML
    return folder / "data.yaml"


def shares(points: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Points (..., 2) in pixels of a frame as shares of it, none beyond its border."""
    return (points / frame.shape[1::-1]).clip(0, 1)


def centre_and_size(boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) xyxy in pixels of a frame as a label file has them."""
    corners = shares(boxes.reshape(-1, 2, 2), frame)
    return np.concatenate([corners.mean(1), corners[:, 1] - corners[:, 0]], axis=1)
