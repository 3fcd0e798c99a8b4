"""What a bundle says, thousands of times nearly right: the runtime's own error, or an answer and strict JSON."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.edge import ORIGIN
from helpers.fuzzing import Wish, changed, fuzz, mistyped, strict

from yolokd_edge import verify
from yolokd_edge.bundle import EXPECTED, EXPECTED_RAW, Bundle, read_manifest
from yolokd_edge.common import EdgeError, json_text
from yolokd_edge.contract import PRECISIONS, RAW, Contract
from yolokd_edge.detector import check_manifest
from yolokd_edge.outputs import output_of
from yolokd_edge.provenance import known_provenance, provenance_text
from yolokd_edge.runtimes.table import PROVIDERS

HERE = Path("edge.zip")
NAMES = {"0": "cat", "1": "dog"}

# --- manifests ------------------------------------------------------------------------------------------------------

MANIFEST = {
    "schema": "yolokd.bundle/1",
    "name": "edge",
    "contract": {
        "output": RAW,
        "names": NAMES,
        "imgsz": [32, 64],
        "defaults": {"conf": 0.25, "iou": 0.7, "max_det": 300},
    },
    "models": {
        "model.onnx": {"precision": "fp32", "providers": ["cpu", "cuda"]},
        "model_int8.onnx": {"precision": "int8", "providers": ["cpu"]},
    },
    "provenance": ORIGIN,
    "files": {
        name: {"bytes": 100, "sha256": "ab"}
        for name in ("model.onnx", "model_int8.onnx", "parity/0.png", EXPECTED, EXPECTED_RAW)
    },
}


def use_manifest(text: str) -> dict:
    manifest = read_manifest(text.encode("utf-8", "surrogatepass"), HERE)
    bundle = Bundle(HERE, Path("/nowhere"), manifest, None)
    settings = [bundle.setting(key) for key in ("conf", "iou", "max_det")]
    assert all(0 <= v < 2**41 for v in settings)
    names = {int(k): v for k, v in manifest["contract"]["names"].items()}
    height, width = manifest["contract"]["imgsz"]
    contract = Contract(str(manifest["contract"]["output"]), names, (height, width), "fp32", {}, {})
    for name in manifest["models"]:
        assert Path("/nowhere") in (bundle.folder / name).parents
    for precision in PRECISIONS:
        for provider in PROVIDERS:
            try:
                path = bundle.model(precision, provider)
            except EdgeError:
                continue
            check_manifest(bundle, SimpleNamespace(path=path, contract=contract._replace(precision=precision)))
    origin = manifest.get("provenance")
    assert isinstance(provenance_text(origin), (str, type(None)))
    strict(json_text(known_provenance(origin)))
    return manifest


def test_a_valid_manifest_is_read_as_it_was_written() -> None:
    assert use_manifest(json.dumps(MANIFEST)) == MANIFEST


def wished_manifest(wish: Wish) -> dict:
    return use_manifest(mistyped(json.dumps(changed(MANIFEST, wish.edits)), wish.typos))


@pytest.mark.slow
def test_manifests() -> None:
    fuzz(wished_manifest, EdgeError)


# --- expectations ---------------------------------------------------------------------------------------------------

OUTPUT = np.zeros((1, 6, 8), np.float32)
OUTPUT[0, :, 0] = 20, 16, 10, 8, 0.9, 0.1
FOUND = np.float32([[15, 12, 25, 20, 0.9, 0]])
TOLERANCES = {
    p: {"raw_box": 1, "raw_score": 1, "box": 1, "conf": 1, "unmatched": 0, "mean_box": 1, "score_scale": 0.5}
    for p in PRECISIONS
}
EXPECTATIONS = {
    "reference": "onnxruntime",
    "conf": 0.25,
    "iou": 0.7,
    "max_det": 300,
    "tolerance": TOLERANCES,
    "images": {"0.png": {"hw": [32, 64], "detections": {"model.onnx": FOUND.tolist()}}},
}
ARRAYS = {
    "0.png": [[float(v) for v in row] for row in OUTPUT[0]],
    "0.png/index": list(range(8)),
}


class Scripted:
    """A detector that finds the same in every image."""

    def __init__(self, path: Path, *_: object, **__: object) -> None:
        self.path, self.active, self.conf, self.iou, self.max_det = path, "CPUExecutionProvider", 0.25, 0.7, 300
        self.contract = Contract(RAW, {0: "cat", 1: "dog"}, (32, 64), "fp32", {}, {})
        self.output = output_of(self.contract, path)

    def preprocess(self, _: object) -> tuple[None, None]:
        return None, None

    def infer(self, _: object) -> np.ndarray:
        return OUTPUT

    def postprocess(self, *_: object) -> np.ndarray:
        return FOUND[: self.max_det] if self.conf < 0.9 else FOUND[:0]


@pytest.fixture
def parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a bundle of which only the parity pack is read."""
    (tmp_path / "parity").mkdir()
    monkeypatch.setattr(verify, "Detector", Scripted)
    monkeypatch.setattr(verify, "read_image", lambda path: None)
    return tmp_path


def use_expectations(folder: Path, text: str, arrays: object) -> dict:
    (folder / EXPECTED).write_bytes(text.encode("utf-8", "surrogatepass"))
    named = arrays if isinstance(arrays, dict) else {"0.png": arrays}
    try:
        with np.errstate(over="ignore"):
            kept = {
                str(k).encode("utf-8", "ignore").decode(): np.array(v, np.float32 if "index" not in str(k) else None)
                for k, v in named.items()
            }
    except (ValueError, TypeError, OverflowError):  # no array can be made of it
        kept = {"0.png": np.array([str(arrays)[:9]])}
    with (folder / EXPECTED_RAW).open("wb") as file:
        np.savez(file, **{"a": np.zeros(1), **{k.replace("\0", ""): v for k, v in kept.items() if k != "file"}})
    figures = verify.verify_bundle(Bundle(HERE, folder, MANIFEST, None))
    strict(json_text(figures))
    assert verify.parity_text(figures).isprintable() and isinstance(figures["pass"], bool)
    return figures


def test_valid_expectations_pass(parity: Path) -> None:
    assert use_expectations(parity, json.dumps(EXPECTATIONS), ARRAYS)["pass"]


def test_expectations_found_by_fuzzing(parity: Path) -> None:
    """A whole number that is a float ended in a slice, a tolerance without its fellow in the sentence."""
    with pytest.raises(EdgeError, match="no usable max_det"):
        use_expectations(parity, json.dumps({**EXPECTATIONS, "max_det": 300.0}), ARRAYS)
    tolerance = {p: {k: v for k, v in limits.items() if k != "score_scale"} for p, limits in TOLERANCES.items()}
    assert use_expectations(parity, json.dumps({**EXPECTATIONS, "tolerance": tolerance}), ARRAYS)["pass"]


@pytest.mark.slow
def test_expectations(parity: Path) -> None:
    def use(wish: Wish) -> None:
        both = changed({"said": EXPECTATIONS, "arrays": ARRAYS}, wish.edits)
        both = both if isinstance(both, dict) else {}
        use_expectations(parity, mistyped(json.dumps(both.get("said")), wish.typos), both.get("arrays"))

    fuzz(use, EdgeError)
