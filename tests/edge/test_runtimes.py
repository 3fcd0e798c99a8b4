"""Runtimes beside ONNX Runtime: real where they are installed, and played for what goes wrong."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from helpers.edge import colour_frames, entry, export, measured, metadata, toy
from ultralytics import YOLO

from yolokd.latency import gate
from yolokd_edge import cli, contract
from yolokd_edge.bench import trial
from yolokd_edge.bench.options import PROFILES, Limits
from yolokd_edge.bench.report import text_table
from yolokd_edge.bundle import Bundle
from yolokd_edge.common import EdgeError
from yolokd_edge.detector import Detector, load
from yolokd_edge.runtimes import base
from yolokd_edge.runtimes.table import ON_CPU, OTHER_RUNTIMES, PROVIDERS, Provider, name_of

RAW = np.zeros((1, 4 + 3, 42), np.float32)
RAW[0, :5, 0] = 20, 16, 10, 8, 0.9
YAML = "task: detect\nimgsz:\n- 32\n- 64\nnames:\n  0: a\n  1: b\n  2: 'no'\nchannels: 3\nend2end: false\nargs:\n  {}\n"
FRAME = np.full((40, 60, 3), 90, np.uint8)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement of a few frames."""
    monkeypatch.setitem(PROFILES, "smoke", Limits(30, 0.0, 60.0, 0.01))
    monkeypatch.setattr(trial, "WARM_UP_CPU_S", 0.0)


# --- the real ones --------------------------------------------------------------------------------------------------


def farthest(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference of detections, in pixels and scores."""
    assert [len(f) for f in found] == [len(e) for e in expected] and sum(map(len, found)) >= 20
    return max(float(np.abs(f - e).max(initial=0)) for f, e in zip(found, expected, strict=True))


def test_openvino_computes_what_onnxruntime_computes(teacher: Path, brief: None, tmp_path: Path) -> None:
    openvino, frames = pytest.importorskip("openvino"), colour_frames(tmp_path)
    file = export(teacher, tmp_path / "raw.onnx", imgsz=(96, 160))
    other, ours = (Detector(file, provider, threads=1) for provider in ("openvino", "cpu"))
    assert other.contract == ours.contract
    assert farthest([other.detect(f) for f in frames], [ours.detect(f) for f in frames]) < 0.05
    record = measured([file], frames, threads=1, provider="openvino")[0]
    assert record["runtime"]["openvino"] == openvino.__version__
    assert record["runtime"]["providers_active"] == ["openvino:CPU"] and record["runtime"]["ep_coverage"] == 1


@pytest.mark.slow  # the exporter optimises for a while
def test_ncnn_computes_what_onnxruntime_computes(teacher: Path, brief: None, tmp_path: Path) -> None:
    pytest.importorskip("pnnx")
    ncnn, frames = pytest.importorskip("ncnn"), colour_frames(tmp_path)
    file = export(teacher, tmp_path / "raw.onnx", imgsz=(96, 160))
    folder = YOLO(shutil.copy(teacher, tmp_path / "t.pt")).export(format="ncnn", imgsz=(96, 160))
    other, ours = Detector(folder, "ncnn", threads=1), Detector(file, threads=1)
    assert other.contract[:4] == ours.contract[:4]
    assert farthest([other.detect(f) for f in frames], [ours.detect(f) for f in frames]) < 0.05
    record = measured([folder], frames, threads=1, provider="ncnn")[0]
    assert record["runtime"]["ncnn"] == ncnn.__version__ and record["model"]["format"] == "ncnn"


# --- played ---------------------------------------------------------------------------------------------------------


class Size(int):
    """A fixed dimension, as OpenVINO tells it."""

    is_static = True

    def get_length(self) -> int:
        return int(self)


def fake_openvino(devices: list[str], log: list[Any]) -> ModuleType:
    """OpenVINO's interface as far as it is used, computing with ONNX Runtime."""

    class Core:
        available_devices = ("CPU", "GPU.0", "GPU.1")

        def read_model(self, path: str) -> Any:
            try:
                session = onnxruntime.InferenceSession(path)
            except Exception:
                raise RuntimeError("Exception from core.cpp:84:\nUnable to read the model") from None
            known = session.get_modelmeta().custom_metadata_map
            entry = {k: SimpleNamespace(astype=lambda kind, v=v: kind(v)) for k, v in known.items()}
            ports = [
                [
                    SimpleNamespace(
                        any_name=p.name,
                        partial_shape=[Size(n) for n in p.shape],
                        element_type=SimpleNamespace(get_type_name=lambda: "f32"),
                    )
                    for p in side
                ]
                for side in (session.get_inputs(), session.get_outputs())
            ]
            rt_info = {"framework": entry}
            return SimpleNamespace(session=session, inputs=ports[0], outputs=ports[1], get_rt_info=lambda: rt_info)

        def compile_model(self, model: Any, device: str, hints: dict[str, Any]) -> Any:
            log.append((device, hints))
            run = model.session.run
            request = SimpleNamespace(infer=lambda feed, share_inputs: {"out": run(None, feed)[0]})
            return SimpleNamespace(get_property=lambda name: devices, create_infer_request=lambda: request)

    module = ModuleType("openvino")
    module.Core, module.__version__ = Core, "2026.4"
    return module


@pytest.fixture
def openvino(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the played OpenVINO was asked for."""
    log: list[Any] = []
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino(["CPU"], log))
    return log


def test_openvino_is_asked_for_low_latency_full_precision_and_the_threads(openvino: list[Any], tmp_path: Path) -> None:
    file = toy(tmp_path / "a.onnx", RAW, metadata())
    detector = Detector(file, "openvino", threads=3)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 3, "INFERENCE_PRECISION_HINT": "f32"}
    assert openvino == [("CPU", hints)]
    assert np.array_equal(detector.detect(FRAME), Detector(file).detect(FRAME)) and len(detector.detect(FRAME))


def test_other_devices_of_openvino(monkeypatch: pytest.MonkeyPatch, brief: None, tmp_path: Path) -> None:
    """One that is there and used, one that is there and not used, one that is not there."""
    log: list[Any] = []
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino(["GPU.0"], log))
    file = toy(tmp_path / "a.onnx", RAW, metadata())
    record = measured([file], [FRAME], threads=3, provider="openvino-gpu")[0]
    assert log == [("GPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})]
    assert record["runtime"]["providers_active"] == ["openvino:GPU"] and record["runtime"]["openvino"] == "2026.4"
    assert gate.provider_problems("new", record) == []
    with pytest.raises(EdgeError, match="OpenVINO sees no NPU here, only CPU, GPU.") as absent:
        Detector(file, "openvino-npu")
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino(["CPU"], log))
    with pytest.raises(EdgeError, match="openvino:GPU was asked for, but .* runs on openvino:CPU") as elsewhere:
        Detector(file, "openvino-gpu")
    assert (absent.value.code, elsewhere.value.code) == (4, 4)


RECORDED = {  # provider -> what get_providers() of a session on it tells, where it runs and where it does not
    "qnn": ["QNNExecutionProvider", "CPUExecutionProvider"],
    "coreml": ["CoreMLExecutionProvider", "CPUExecutionProvider"],
    "dml": ["DmlExecutionProvider", "CPUExecutionProvider"],
    "xnnpack": ["XnnpackExecutionProvider", "CPUExecutionProvider"],
}
OPTIONS = {
    "qnn": {"backend_path": "libQnnHtp.so"},
    "coreml": {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"},
    "xnnpack": {"intra_op_num_threads": "3"},
}


@pytest.mark.parametrize("provider", RECORDED)
def test_other_accelerators_of_onnx_runtime(provider: str, brief: None, monkeypatch, tmp_path: Path) -> None:
    """Asked for with their options, believed only if the session names them first and they run enough of the graph."""
    names, asked, shares = RECORDED[provider], [], {"own": 10, "cpu": 0}
    real = onnxruntime.InferenceSession

    class Session:
        told = names

        def __init__(self, path: str, options: Any, providers: list[Any], enable_fallback: int) -> None:
            asked.append((providers, options.intra_op_num_threads, options.enable_mem_pattern))
            self.real = real(path)
            self.get_modelmeta, self.get_inputs = self.real.get_modelmeta, self.real.get_inputs
            self.get_outputs, self.run = self.real.get_outputs, self.real.run

        def get_providers(self) -> list[str]:
            return self.told

        def get_provider_graph_assignment_info(self) -> list[Any]:
            counts = zip(names, shares.values(), strict=True)
            return [SimpleNamespace(ep_name=n, get_nodes=lambda k=k: [None] * k) for n, k in counts]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    file = toy(tmp_path / "a.onnx", RAW, metadata())
    record = measured([file], [FRAME], threads=3, provider=provider)[0]
    first = (names[0], OPTIONS[provider]) if provider in OPTIONS else names[0]
    assert asked[-1] == ([first, names[1]], 1 if provider == "xnnpack" else 3, provider != "dml")
    assert record["runtime"]["providers_active"] == names and record["runtime"]["ep_coverage"] == 1
    assert gate.provider_problems("new", record) == []
    shares.update(own=4, cpu=6)
    if provider == "xnnpack":
        assert Detector(file, provider).coverage == 0.4
        shares.update(own=1, cpu=9)
    with pytest.raises(EdgeError, match=f"{names[0]} was asked for, but took only") as little:
        Detector(file, provider)
    monkeypatch.setattr(Session, "told", names[1:])
    with pytest.raises(EdgeError, match=f"{names[0]} was asked for, but ONNX Runtime runs .* on CPU") as elsewhere:
        Detector(file, provider)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names[1:])
    with pytest.raises(EdgeError, match=f"{names[0]} is not in this ONNX Runtime build") as absent:
        Detector(file, provider)
    assert {little.value.code, elsewhere.value.code, absent.value.code} == {4}


def test_a_record_says_which_runtime_ran_and_the_gate_holds_it_to_that(
    openvino: list[Any], brief: None, tmp_path: Path
) -> None:
    file = toy(tmp_path / "a.onnx", RAW, metadata())
    record = measured([file], [FRAME], threads=1, provider="openvino")[0]
    runtime, why = record["runtime"], record["unavailable"]
    assert (runtime["openvino"], runtime["ncnn"], runtime["spin"]) == ("2026.4", None, None)
    assert why["runtime.ncnn"] == "not the runtime" and why["runtime.spin"] == "openvino does not report it"
    assert (runtime["providers_active"], runtime["fallback"]) == (["openvino:CPU"], False)
    assert not any(reason.startswith("fallback") for reason in record["stability"]["reasons"])
    assert gate.provider_problems("new", record) == []
    runtime["providers_active"] = ["CPUExecutionProvider"]
    assert gate.provider_problems("new", record)[0][0] == gate.PROVIDER
    assert "openvino:cpu 32x64" in text_table(measured([file], [FRAME], threads=1, provider="openvino"))


def test_openvino_that_runs_elsewhere_or_cannot_read_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino(["GPU.0"], []))
    with pytest.raises(EdgeError, match="openvino:CPU was asked for, but .* runs on openvino:GPU") as elsewhere:
        Detector(toy(tmp_path / "a.onnx", RAW, metadata()), "openvino")
    (tmp_path / "b.onnx").write_text("no model")
    with pytest.raises(EdgeError, match="OpenVINO cannot load .*b.onnx .*Unable to read the model") as unread:
        Detector(tmp_path / "b.onnx", "openvino")
    assert (elsewhere.value.code, unread.value.code) == (4, 2)


def test_a_bundle_gives_openvino_its_file_for_the_cpu(openvino: list[Any]) -> None:
    models = {
        "trt.onnx": {"precision": "int8", "providers": ["trt"]},
        "m.onnx": {"precision": "int8", "providers": ["cpu"]},
    }
    bundle = Bundle(Path("b.zip"), Path("b"), {"models": models}, None)
    assert bundle.model("int8", "openvino") == Path("b/m.onnx")
    with pytest.raises(EdgeError, match="holds no int8 model for the provider ncnn"):
        bundle.model("int8", "ncnn")


def fake_ncnn(log: list[Any], fails: str = "") -> ModuleType:
    """ncnn's interface as far as it is used; it finds one box everywhere."""

    class Extractor:
        def __enter__(self) -> Extractor:
            return self

        def __exit__(self, *why: object) -> None:
            pass

        def input(self, name: str, mat: np.ndarray) -> None:
            assert (name, mat.shape, mat.dtype) == ("in0", (3, 32, 64), np.float32)

        def extract(self, name: str) -> tuple[int, np.ndarray]:
            return int(fails == "run"), RAW[0]

    class Net:
        def __init__(self) -> None:
            self.opt = SimpleNamespace()
            log.append(self.opt)

        def load_param(self, path: str) -> int:
            return -1 if fails == "load" else 0

        def load_model(self, path: str) -> int:
            return 0

        def input_names(self) -> list[str]:
            return ["in0"]

        def output_names(self) -> list[str]:
            return ["out0"]

        def create_extractor(self) -> Extractor:
            return Extractor()

    module = ModuleType("ncnn")
    module.Net, module.Mat, module.__version__ = Net, lambda array: array, "1.0"
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as Ultralytics' ncnn export leaves it."""
    made = tmp_path / "t_ncnn_model"
    made.mkdir()
    (made / "model.ncnn.param").write_text("767417")
    (made / "model.ncnn.bin").write_bytes(b"weights")
    (made / "metadata.yaml").write_text(YAML.format("quantize: null"))
    return made


def test_ncnn_reads_its_folder_and_keeps_the_precision_of_the_file(folder: Path, brief: None, monkeypatch) -> None:
    options: list[Any] = []
    monkeypatch.setitem(sys.modules, "ncnn", fake_ncnn(options))
    detector = load(folder, "ncnn", threads=2)
    assert detector.contract[:4] == (contract.RAW, {0: "a", 1: "b", 2: "no"}, (32, 64), "fp32")
    assert (options[0].num_threads, options[0].use_vulkan_compute, options[0].use_fp16_arithmetic) == (2, False, False)
    assert len(detector.detect(FRAME)) == 1
    (folder / "metadata.yaml").write_text(YAML.format("quantize: 16"))
    record = measured([folder], [FRAME], threads=1, provider="ncnn")[0]
    assert options[-1].use_fp16_storage and record["model"]["precision"] == "fp16"
    weights = b"767417weights"
    assert (record["model"]["sha256"], record["model"]["bytes"]) == (hashlib.sha256(weights).hexdigest(), len(weights))
    assert (record["model"]["format"], record["runtime"]["providers_active"]) == ("ncnn", ["ncnn:CPU"])


@pytest.mark.parametrize(
    ("fails", "damage", "sentence"),
    [
        ("load", None, "is not a model that ncnn can load"),
        ("run", None, "ncnn could not run the model"),
        ("", lambda folder: (folder / "metadata.yaml").unlink(), "its metadata.yaml is missing or unreadable"),
        ("", lambda folder: (folder / "metadata.yaml").write_text("{"), "its metadata.yaml is missing or unreadable"),
        ("", lambda folder: (folder / "metadata.yaml").write_text("3"), "its metadata.yaml is missing or unreadable"),
        ("", lambda folder: (folder / "model.ncnn.bin").unlink(), "There is no model file"),
    ],
)
def test_a_damaged_folder_is_refused(fails: str, damage: Any, sentence: str, folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", fake_ncnn([], fails))
    if damage:
        damage(folder)
    with pytest.raises(EdgeError, match=sentence) as error:
        Detector(folder, "ncnn").detect(FRAME)
    assert error.value.code == 2


def test_the_wrong_kind_of_model_for_a_runtime_is_refused(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", fake_ncnn([]))
    with pytest.raises(EdgeError, match="is a model for ncnn: give the provider ncnn"):
        load(folder, "cpu")
    with pytest.raises(
        EdgeError, match="a.onnx is an ONNX file, and ncnn reads what `yolokd export format=ncnn` writes"
    ):
        load(toy(tmp_path / "a.onnx", RAW, metadata()), "ncnn")


@pytest.mark.parametrize(
    ("provider", "absent", "pip"),
    [("openvino", "openvino", "openvino"), ("ncnn", "ncnn", "ncnn"), ("ncnn", "yaml", "pyyaml")],
)
def test_a_missing_package_is_one_sentence_with_the_remedy(
    provider: str, absent: str, pip: str, folder: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", fake_ncnn([]))
    monkeypatch.setitem(sys.modules, absent, None)
    model = folder if provider == "ncnn" else toy(tmp_path / "a.onnx", RAW, metadata())
    cv2.imwrite(str(tmp_path / "a.png"), FRAME)
    words = ["detect", "--model", str(model), "--source", str(tmp_path / "a.png"), "--provider", provider]
    assert cli.main(words) == 4
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and f"The provider {provider} needs the Python package {absent}" in error
    assert error.endswith(f": pip install {pip}.\n")
    if absent == provider:
        assert cli.main(["doctor", "--provider", provider, "--json"]) == 1
        findings = json.loads(capfd.readouterr().out)
        assert any(f"needs the Python package {absent}" in finding["what"] for finding in findings)


class Interpreter:
    """LiteRT's, as far as it is used: one box whose place and size are shares of the input."""

    def __init__(self, path: str, num_threads: int) -> None:
        self.fed: list[Any] = []

    def allocate_tensors(self) -> None: ...

    def get_input_details(self) -> list[dict[str, Any]]:
        return [{"index": 0, "shape": np.array([1, 3, 32, 64]), "dtype": np.float32}]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [{"index": 9, "shape": np.array(RAW.shape), "dtype": np.float32}]

    def set_tensor(self, index: int, blob: np.ndarray) -> None:
        assert (index, blob.shape) == (0, (1, 3, 32, 64))

    def invoke(self) -> None: ...

    def get_tensor(self, index: int) -> np.ndarray:
        shares = RAW.astype(np.float32)
        shares[:, [0, 2]] /= 64
        shares[:, [1, 3]] /= 32
        return shares


@pytest.fixture
def tflite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as Ultralytics' LiteRT export leaves it, and the package."""
    package, part = ModuleType("ai_edge_litert"), ModuleType("ai_edge_litert.interpreter")
    package.__version__, part.Interpreter = "2.3.0", Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert", package)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", part)
    file = tmp_path / "a.tflite"
    file.write_bytes(b"flatbuffer")
    with zipfile.ZipFile(file, "a") as archive:
        written = {
            "imgsz": [32, 64],
            "names": {"0": "a", "1": "b", "2": "c"},
            "task": "detect",
            "args": {},
            "stride": 32,
        }
        archive.writestr("metadata.json", json.dumps(written))
        archive.writestr("yolokd.json", entry(contract.RAW, parity={"pass": True})["yolokd"])
    return file


def test_litert_s_shares_of_the_input_are_pixels_again(tflite: Path, tmp_path: Path) -> None:
    detector, other = load(tflite, "litert"), load(toy(tmp_path / "a.onnx", RAW, metadata()), "cpu")
    assert len(other.detect(FRAME)) == 1 and np.allclose(detector.detect(FRAME), other.detect(FRAME), atol=1e-4)
    assert detector.contract.meta["parity"] == {"pass": True} and detector.active == "litert:CPU"


def test_a_damaged_litert_file_is_refused(tflite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Interpreter, "get_input_details", lambda self: [{"shape": np.array([1, 32, 64, 3]), "dtype": float}]
    )
    with pytest.raises(EdgeError, match="does not take images .1, 3, 32, 64. in FP32"):
        load(tflite, "litert")
    tflite.write_bytes(b"flatbuffer")
    with pytest.raises(EdgeError, match="the exporter's metadata in it is missing or unreadable"):
        load(tflite, "litert")


def test_a_fallback_from_openvino_is_allowed_only_where_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    file = toy(tmp_path / "a.onnx", RAW, metadata())
    detector = Detector(file, "openvino", allow_fallback=True)
    assert (detector.active, detector.fallback) == ("CPUExecutionProvider", True)


# --- one table of providers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_has_its_file_and_is_known_by_what_it_calls_itself(name: str) -> None:
    provider = PROVIDERS[name]
    opened = import_module(f"yolokd_edge.runtimes.{provider.module}").open_session
    assert list(inspect.signature(opened).parameters) == ["path", "provider", "threads", "tensorrt"]
    assert name_of(provider.names[0]) == name and (provider.names[0] in ON_CPU) == provider.on_cpu
    assert (name in OTHER_RUNTIMES) == (provider.module != "onnxruntime")


def test_a_runtime_of_ones_own_is_a_module_and_a_line(tmp_path: Path, brief: None, monkeypatch) -> None:
    class Echo(base.Session):
        version = "1.2"

        def __init__(self, path: Path, threads: int) -> None:
            self.real = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            self.get_modelmeta, self.get_inputs = self.real.get_modelmeta, self.real.get_inputs
            self.get_outputs, self.run = self.real.get_outputs, self.real.run

        def get_providers(self) -> list[str]:
            return ["echo:NPU"]

    def open_session(path: Path, provider: str, threads: int, tensorrt: base.TensorRT) -> base.Opened:
        return base.timed_session(Echo, path, provider, threads)

    monkeypatch.setitem(sys.modules, "yolokd_edge.runtimes.echo", SimpleNamespace(open_session=open_session))
    monkeypatch.setitem(PROVIDERS, "echo", Provider("echo", ("echo:NPU",), package="echo"))
    file = toy(tmp_path / "toy.onnx", RAW, metadata())
    (record,) = measured([file], [FRAME], threads=1, provider="echo")
    assert record["runtime"]["providers_active"] == ["echo:NPU"] and record["runtime"]["provider_requested"] == "echo"
    assert gate.provider_problems("new", record) == []
    record["runtime"]["providers_active"] = ["CPUExecutionProvider"]
    assert gate.provider_problems("new", record)[0][2] == "new: echo was asked for and CPUExecutionProvider was active"
