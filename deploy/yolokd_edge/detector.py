"""The detector: an exported file in, detections out; and `load`, which takes files and bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolokd_edge.boxes import Letterbox
from yolokd_edge.bundle import Bundle, is_bundle, open_bundle, own_bundle
from yolokd_edge.common import PARITY, EdgeError, one_line, usable_cores
from yolokd_edge.contract import check_input_shape, check_multiple, read_contract, size_text
from yolokd_edge.outputs import output_of
from yolokd_edge.outputs.base import Limits
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.opening import open_first_active, open_model
from yolokd_edge.runtimes.table import PROVIDERS, check_provider, format_of

INPUTS: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # as ONNX Runtime names them
OUTPUTS = (*INPUTS, "tensor(double)")


class Detector:
    """An exported detector on ONNX Runtime, box for box what Ultralytics predicts with `rect=False`.

    Args:
        path: The ONNX file, or what `yolokd export format=` wrote; its metadata says how to read its output.
        provider: cpu, cuda, trt, or auto (the first of trt, cuda, cpu that is really active); or another runtime in
            place of ONNX Runtime (openvino, ncnn, mnn, litert, torchscript), which differ a little.
        threads: The runtime's threads within one run; all usable cores by default.
        conf: Detections at or below this score are dropped.
        iou: Overlap above which NMS drops the weaker box of a class (raw contract only).
        max_det: The greatest number of detections per frame.
        tensorrt: How TensorRT builds its engine (provider trt).
        allow_fallback: Take the next of trt, cuda, cpu where the provider asked for is not active.
        hw: Input height and width, for a file exported without a fixed size.

    A file with NMS inside has its own conf, iou and max_det baked in; conf and max_det can only narrow them.
    """

    def __init__(
        self,
        path: str | Path,
        provider: str = "cpu",
        threads: int | None = None,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        tensorrt: TensorRT | None = None,
        allow_fallback: bool = False,
        hw: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.provider = Path(path), provider
        self.conf, self.iou, self.max_det = conf, iou, max_det
        self.threads = threads or usable_cores()
        self.validating = False  # as Ultralytics validates: a box for each class above conf, none cut at the border
        self.candidates = 0  # boxes above conf before NMS, of the latest frame
        self.bundle: Bundle | None = None  # where the file comes from, if `load` took it from one
        check_provider(provider)
        if format_of(self.path) is None:
            raise EdgeError(f"There is no model file {self.path}.")
        tensorrt = (tensorrt or TensorRT())._replace(hw=hw)
        opened = (open_first_active if provider == "auto" or allow_fallback else open_model)(
            self.path, provider, self.threads, tensorrt
        )
        self.session, self.nodes, self.session_s, self.coverage, self.trt = opened
        self.active: str = self.session.get_providers()[0]
        self.fallback = provider != "auto" and self.active != PROVIDERS[provider].names[0]
        self._read_interface(hw)

    def _read_interface(self, hw: tuple[int, int] | None) -> None:
        metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        self.contract = read_contract(metadata, self.path)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        output_of(self.contract, self.path).check_count(len(inputs), len(outputs))
        if hw is not None:
            if any(isinstance(size, int) for size in inputs[0].shape[2:]) and hw != self.contract.hw:
                raise EdgeError(
                    f"{self.path} has a fixed input of {size_text(self.contract.hw)}: export one file for each size to "
                    "be measured."
                )
            check_multiple(self.contract, hw, self.path)
            self.contract = self.contract._replace(hw=hw)
        check_input_shape(self.contract, inputs[0].shape, self.path)
        self.output = output_of(self.contract, self.path)
        self.output.check_shapes([port.shape for port in outputs])
        self._input, self._outputs = inputs[0].name, [port.name for port in outputs]
        for says, port, kinds, what in (
            ("takes", inputs[0], tuple(INPUTS), "fed"),
            *(("gives", port, OUTPUTS, "read") for port in outputs),
        ):
            if port.type not in kinds:
                raise EdgeError(f"{self.path} {says} {port.type}; only {', '.join(kinds)} are {what} here.")
        self._dtype = INPUTS[inputs[0].type]

    @property
    def input_type(self) -> Any:
        """numpy's type of the input."""
        return self._dtype

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model comes from: what the bundle's manifest says, else the file's own metadata."""
        written: dict[str, Any] = (self.bundle.manifest if self.bundle else {}).get("provenance") or self.contract.meta
        return written

    @property
    def names(self) -> dict[int, str]:
        """Class index -> name."""
        return self.contract.names

    def preprocess(self, frame: np.ndarray) -> tuple[np.ndarray, Letterbox]:
        """Turn a frame (H, W, 3) into the input blob (1, 3, h, w), RGB in 0..1, and the way back."""
        try:
            fitted, box = self.output.fit(frame, self.validating)
            blob = np.empty((1, 3) + fitted.shape[:2], np.float32)
        except (MemoryError, cv2.error) as error:
            raise EdgeError(
                f"An image of {size_text(frame.shape)} cannot be fitted to {self.path}'s input of "
                f"{size_text(self.contract.hw)} ({one_line(error) or 'too little memory'}): give a smaller size."
            ) from None
        for k, plane in enumerate(cv2.split(fitted)):  # by plane: faster than one strided pass over three
            blob[0, 2 - k] = plane  # BGR to RGB
        blob /= 255
        return blob.astype(self._dtype, copy=False), box

    def infer(self, blob: np.ndarray) -> Any:
        """Run the model: host array in, host array out, so that copies to and from a GPU are inside. Several outputs
        are a tuple."""
        try:
            raw = self.session.run(self._outputs, {self._input: blob})
        except Exception as error:  # the runtimes' own exception types share no base class
            raise EdgeError(f"{self.path} cannot be run ({one_line(error)}).") from None
        return raw[0] if len(self._outputs) == 1 else tuple(raw)

    def postprocess(self, raw: Any, box: Letterbox) -> np.ndarray:
        """Turn what `infer` gave into detections (n, 6 or more) in frame pixels, best first."""
        outputs = raw if isinstance(raw, tuple) else (raw,)
        self.output.check_shapes([output.shape for output in outputs])
        arrays = [output[0].astype(np.float32, copy=False) for output in outputs]
        if not all(np.isfinite(array).all() for array in arrays):  # comparisons with NaN are false: as an empty image
            raise EdgeError(
                f"{self.path} computes values that are not finite numbers on {self.active}: use another "
                "precision or provider.",
                PARITY,
            )
        limits = Limits(self.conf, self.iou, self.max_det, self.validating)
        detections, self.candidates = self.output.decode(arrays, limits)
        return self.output.to_frame(detections, box, limits)

    def detect(self, frame: np.ndarray) -> np.ndarray:
        """Detect in one frame (H, W, 3) BGR uint8; detections in its pixels, best first: (n, 6), and behind these what
        the task adds (see `outputs`)."""
        blob, box = self.preprocess(frame)
        return self.postprocess(self.infer(blob), box)


def check_manifest(bundle: Bundle, detector: Detector) -> None:
    """Refuse an ONNX file of a bundle that declares something else than the bundle's manifest."""
    declared, found = bundle.manifest["contract"], detector.contract
    entry = bundle.manifest["models"][detector.path.name]
    pairs = {
        "output contract": (declared["output"], found.output),
        "input size": (list(declared["imgsz"]), list(found.hw)),
        "class names": ({int(k): v for k, v in declared["names"].items()}, found.names),
        "precision": (entry["precision"], found.precision),
    }
    for what, (manifest, file) in pairs.items():
        if manifest != file:
            raise EdgeError(
                f"{bundle.path}: {detector.path.name} declares the {what} {file}, its manifest {manifest}: "
                "the bundle contradicts itself."
            )


def load(
    model: str | Path | None,
    provider: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    **settings: Any,
) -> Detector:
    """A Detector of an ONNX file, or of a bundle's file of a precision; None is the bundle that this package lies in.

    Thresholds that are None come from the bundle, or are those of Detector; further settings are Detector's own.
    """
    path = own_bundle() if model is None else Path(model)
    thresholds: dict[str, Any] = {"conf": conf, "iou": iou, "max_det": max_det}
    given = {key: value for key, value in thresholds.items() if value is not None}
    if not is_bundle(path):
        if precision is not None:
            raise EdgeError(f"A precision can be chosen from a bundle; {path} is one file with the precision it has.")
        return Detector(path, provider, threads, **given, **settings)
    bundle = open_bundle(path)
    settings.update({key: bundle.setting(key) for key in thresholds}, **given)
    detector = Detector(bundle.model(precision or "fp32", provider), provider, threads, **settings)
    check_manifest(bundle, detector)
    detector.bundle = bundle  # a zip file's temporary folder lives as long
    return detector
