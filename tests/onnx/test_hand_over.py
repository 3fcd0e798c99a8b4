"""Hand-over to DeepStream and Triton: the files by their published rules, and what they give against our runtime."""

from __future__ import annotations

import configparser
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from helpers.cli import refusal
from helpers.edge import metadata, toy

import yolokd
from yolokd.errors import ParityError
from yolokd.onnx import deepstream, hand_over, triton
from yolokd_edge.bundle import open_bundle
from yolokd_edge.cli import main as edge_main
from yolokd_edge.common import EdgeError
from yolokd_edge.contract import E2E, NMS
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_image
from yolokd_edge.verify import verify_bundle

# Keys of the groups [property] and [class-attrs-...], as DeepStream publishes them in gstnvinfer_property_parser.h
# (https://docs.nvidia.com/metropolis/deepstream/dev-guide/sdk-api/gstnvinfer__property__parser_8h.html).
PROPERTY = set(
    "gie-unique-id process-mode interval labelfile-path gpu-id secondary-reinfer-interval output-tensor-meta "
    "enable-dla batch-size tensor-meta-pool-size network-mode model-engine-file int8-calib-file workspace-size "
    "output-blob-names network-type force-implicit-batch-dim infer-dims output-io-formats layer-device-precision "
    "use-dla-core model-color-format net-scale-factor offsets mean-file maintain-aspect-ratio symmetric-padding "
    "scaling-filter scaling-compute-hw network-input-order input-tensor-from-meta custom-lib-path parse-bbox-func-name "
    "engine-create-func-name onnx-file num-detected-classes cluster-mode filter-out-class-ids".split()
)
CLASS = set("pre-cluster-threshold post-cluster-threshold eps group-threshold minBoxes nms-iou-threshold topk".split())
ROWS = [[10, 4, 30, 20, 0.9, 2], [50, 1, 70, 40, 0.6, 0], [5, 5, 9, 9, 0.1, 1]]  # one beyond the frame, one unsure


@pytest.fixture(scope="module")
def bundle(teacher, scenes, tmp_path_factory) -> Path:
    """The teacher's bundle with NMS in the graph, for both programs, unpacked."""
    folder = tmp_path_factory.mktemp("handed")
    checkpoint = Path(shutil.copy(teacher, folder / "teacher.pt"))
    made = yolokd.bundle(checkpoint, data=scenes, imgsz=96, contract="nms", handover="deepstream,triton", fp16=True)
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


# --- DeepStream -----------------------------------------------------------------------------------------------------


def by_the_parser(file: Path, blob: np.ndarray, threshold: float, classes: int) -> list[tuple[Any, ...]]:
    """What NvDsInferParseCustomBatchedNMSTLT does box by box: class, score, left, top, right, bottom."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    count, boxes, scores, kinds = session.run(None, {port.name: blob})  # in the graph's order
    height, width = port.shape[2:]
    found: list[tuple[Any, ...]] = []
    for k in range(int(count.reshape(-1)[0])):
        if len(found) > 200 or scores[0, k] < threshold or kinds[0, k] >= classes:
            continue
        x1, y1, x2, y2 = boxes[0, k]
        left, right = (float(min(max(x * width, 0), width - 1)) for x in (x1, x2))
        top, bottom = (float(min(max(y * height, 0), height - 1)) for y in (y1, y2))
        found.append((int(kinds[0, k]), float(scores[0, k]), left, top, right, bottom))
    return found


def test_deepstream_finds_the_boxes_of_the_runtime(bundle):
    folder, detector = bundle / "deepstream", Detector(bundle / "model.onnx", threads=1)
    images = sorted((folder / "images").iterdir())
    assert images and (folder / "labels.txt").read_text().split("\n")[:-1] == list(detector.names.values())
    for path in images:
        frame = cv2.imread(str(path))
        assert frame.shape[:2] == detector.contract.hw
        found = by_the_parser(
            folder / deepstream.FILE, detector.preprocess(frame)[0], detector.conf, detector.contract.nc
        )
        ours = detector.detect(frame)
        assert len(found) == len(ours) > 0
        assert [f[0] for f in found] == ours[:, 5].astype(int).tolist()
        np.testing.assert_allclose([f[1:] for f in found], ours[:, [4, 0, 1, 2, 3]].clip(max=95), atol=1e-3)


def test_the_configuration_has_published_keys_and_the_files_own_figures(bundle):
    config = configparser.ConfigParser()
    config.optionxform = str  # type: ignore[assignment, method-assign]
    config.read(bundle / "deepstream/nvinfer.txt")
    assert set(config["property"]) <= PROPERTY and set(config["class-attrs-all"]) <= CLASS
    given = config["property"]
    assert given["infer-dims"] == "3;96;96" and int(given["num-detected-classes"]) == 10
    assert (given["maintain-aspect-ratio"], given["symmetric-padding"], given["cluster-mode"]) == ("1", "1", "4")
    assert float(given["net-scale-factor"]) == pytest.approx(1 / 255, abs=1e-15)
    assert all((bundle / "deepstream" / given[key]).is_file() for key in ("onnx-file", "labelfile-path"))
    outputs = onnx.load(bundle / "deepstream" / given["onnx-file"]).graph.output
    assert [o.name for o in outputs] == ["keep_count", "boxes", "scores", "classes"]


def kitti(boxes: list[dict[str, Any]]) -> str:
    """Boxes as deepstream-app writes them."""
    zeros = " ".join(["0.0"] * 7)
    lines = (f"{b['label']} 0.0 0 0.0 {' '.join(f'{v:f}' for v in b['box'])} {zeros} {b['conf']:f}\n" for b in boxes)
    return "".join(lines)


def test_the_check_on_the_device(bundle, tmp_path):
    folder = tmp_path / "deepstream"
    shutil.copytree(bundle / "deepstream", folder)

    def checked() -> tuple[int, str]:
        done = subprocess.run([sys.executable, "check.py"], cwd=folder, capture_output=True, text=True)
        return done.returncode, done.stdout

    assert checked() == (2, "There is no text of source 0 in found: run deepstream-app -c app.txt first.\n")
    expected = json.loads((folder / "expected.json").read_text())
    (folder / "found").mkdir()
    for k, name in enumerate(sorted(expected)):
        assert f"[source{k}]\nenable=1\ntype=2\nuri=file://images/{name}\n" in (folder / "app.txt").read_text()
        (folder / f"found/00_{k:03d}_000000.txt").write_text(kitti(expected[name]))
    code, said = checked()
    assert code == 0 and "(100 %)" in said
    for k, name in enumerate(sorted(expected)):  # left and right swapped places, as with a wrong letterbox
        moved = [b | {"box": [95 - b["box"][2], b["box"][1], 95 - b["box"][0], b["box"][3]]} for b in expected[name]]
        (folder / f"found/00_{k:03d}_000000.txt").write_text(kitti(moved))
    assert checked()[0] == 5
    (folder / "found/00_000_000000.txt").write_text("shirt 1 2\n")
    code, said = checked()
    assert code == 2 and "is not what deepstream-app writes" in said


@pytest.mark.parametrize("contract", [E2E, NMS])
def test_final_detections_of_other_heads(contract, tmp_path):
    file = toy(tmp_path / "model.onnx", np.array([ROWS]), metadata(contract))
    detector = Detector(file, threads=1)
    onnx.save(deepstream.with_outputs(onnx.load(file), detector.contract.hw, False), tmp_path / "d.onnx")
    found = by_the_parser(tmp_path / "d.onnx", np.zeros((1, 3, 32, 64), np.float32), 0.25, 3)
    np.testing.assert_allclose(found, [[2, 0.9, 10, 4, 30, 20], [0, 0.6, 50, 1, 63, 31]], atol=1e-4)


def test_an_rtdetrs_queries(tmp_path):
    rows = np.array([[[0.5, 0.25, 0.25, 0.25, 0.8, 1], [0.1, 0.9, 0.4, 0.4, 0.5, 0]]])
    file = toy(tmp_path / "model.onnx", rows, metadata() | {"head": "RTDETRDecoder"})
    (tmp_path / "parity").mkdir()
    cv2.imwrite(str(tmp_path / "parity/0.png"), np.full((40, 90, 3), 7, np.uint8))
    deepstream.write(tmp_path / "out", file, tmp_path / "parity")
    found = by_the_parser(tmp_path / "out" / deepstream.FILE, np.zeros((1, 3, 32, 64), np.float32), 0.25, 3)
    np.testing.assert_allclose(found, [[1, 0.8, 24, 4, 40, 12], [0, 0.5, 0, 22.4, 19.2, 31]], atol=1e-4)
    assert "maintain-aspect-ratio=0" in (tmp_path / "out/nvinfer.txt").read_text()


def test_a_file_that_gives_the_parser_other_boxes_is_not_handed_over(tmp_path, monkeypatch):
    file = toy(tmp_path / "model.onnx", np.array([ROWS]), metadata(E2E))
    (tmp_path / "parity").mkdir()
    cv2.imwrite(str(tmp_path / "parity/0.png"), np.zeros((32, 64, 3), np.uint8))
    real = deepstream.with_outputs
    monkeypatch.setattr(deepstream, "with_outputs", lambda graph, hw, centred: real(graph, hw[::-1], centred))
    with pytest.raises(ParityError, match="gives DeepStream's parser other boxes in 0.png"):
        deepstream.write(tmp_path / "out", file, tmp_path / "parity")


# --- Triton ---------------------------------------------------------------------------------------------------------


def schema() -> Any:
    """Triton's published model_config.proto, of its client library, without what that needs for gRPC."""
    folder = importlib.util.find_spec("tritonclient").submodule_search_locations[0]  # type: ignore[union-attr, index]
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(folder) / "grpc/model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


class Server(ThreadingHTTPServer):
    """A model folder served by the published protocol: config.pbtxt read by Triton's schema, files run here."""

    def __init__(self, models: Path, shift: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.shift, self.configs, self.sessions = shift, {}, {}
        for folder in models.iterdir():
            text = (folder / "config.pbtxt").read_text(encoding="utf-8")
            config = text_format.Parse(text, SCHEMA.ModelConfig())  # an unknown field is an error
            assert config.name == folder.name and config.backend == "onnxruntime" and config.max_batch_size == 0
            session = onnxruntime.InferenceSession(str(folder / "1/model.onnx"), providers=["CPUExecutionProvider"])
            for ports, told in ((session.get_inputs(), config.input), (session.get_outputs(), config.output)):
                assert [(p.name, p.shape) for p in ports] == [(t.name, list(t.dims)) for t in told]
                assert all(SCHEMA.DataType.Name(t.data_type) == "TYPE_FP32" for t in told)
            self.configs[folder.name], self.sessions[folder.name] = config, session
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """The protocol, as far as it is asked for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def say(self, content: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        server: Any = self.server
        if self.path == "/v2":
            return self.say(b'{"name": "triton", "version": "2.99.0"}')
        name = self.path.split("/")[3]
        config = server.configs[name]
        if self.path.endswith("/config"):
            told = json_format.MessageToDict(config, preserving_proto_field_name=True)
            return self.say(json.dumps(told).encode())
        ports = {
            kind: [{"name": p.name, "datatype": "FP32", "shape": list(p.dims)} for p in told]
            for kind, told in (("inputs", config.input), ("outputs", config.output))
        }
        self.say(json.dumps({"name": name, **ports}).encode())

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v2/repository/index":
            return self.say(json.dumps([{"name": n, "state": "READY"} for n in server.configs]).encode())
        length = int(self.headers["Inference-Header-Content-Length"])
        asked, session = json.loads(body[:length]), server.sessions[self.path.split("/")[3]]
        one = asked["inputs"][0]
        assert (one["datatype"], one["parameters"]["binary_data_size"]) == ("FP32", len(body) - length)
        array = np.frombuffer(body[length:], np.float32).reshape(one["shape"])
        outputs = session.run([o["name"] for o in asked["outputs"]], {one["name"]: array})
        told = [
            {
                "name": o["name"],
                "datatype": "FP32",
                "shape": list(a.shape),
                "parameters": {"binary_data_size": a.nbytes},
            }
            for o, a in zip(asked["outputs"], outputs, strict=True)
        ]
        head = json.dumps({"outputs": told}).encode()
        moved = (a + np.float32([server.shift] * 4 + [0, 0]) for a in outputs)
        content = head + b"".join(a.tobytes() for a in moved)
        self.say(content, Inference_Header_Content_Length=str(len(head)))


SCHEMA = schema()


@pytest.fixture
def serve(bundle, monkeypatch):
    """Function: start a server of the bundle's model folder, or of another, and name it to the runtime."""
    servers = []

    def start(models: Path | None = None, **options: Any) -> Server:
        servers.append(Server(models or bundle / "triton/models", **options))
        monkeypatch.setenv("YOLOKD_TRITON", servers[-1].address)
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_computes_what_the_file_computes(bundle, serve, tmp_path, capsys):
    serve()
    frame = read_image(bundle / "parity/0.png")
    for file in ("model.onnx", "model_fp16.onnx"):  # found by its checksum
        ours, theirs = (Detector(bundle / file, provider, threads=1) for provider in ("cpu", "triton"))
        np.testing.assert_array_equal(ours.detect(frame), theirs.detect(frame))
        assert theirs.contract == ours.contract and theirs.active == "triton:server"
    found = verify_bundle(open_bundle(bundle), "triton")
    assert found["pass"] and found["exact"] and found["provider"] == "triton:server"
    words = ["bench", "--model", str(bundle), "--source", str(bundle / "parity"), "--provider", "triton", "--quick"]
    assert edge_main([*words, "--time-limit", "2", "--out", str(tmp_path / "r.json")]) == 0
    runtime = json.loads((tmp_path / "r.json").read_text())[0]["runtime"]
    assert runtime["triton"] == "2.99.0" and runtime["providers_active"] == ["triton:server"]


def test_a_server_that_computes_something_else_does_not_verify(bundle, serve):
    serve(shift=3.0)
    assert not verify_bundle(open_bundle(bundle), "triton")["pass"]


def test_no_server_another_model_and_an_address_that_is_none(bundle, serve, monkeypatch, tmp_path):
    file = bundle / "model.onnx"
    server = serve()
    other = toy(tmp_path / "other.onnx", np.array([ROWS]), metadata(E2E))
    with pytest.raises(
        EdgeError, match="serves teacher-edge.*none of which is .*other.onnx: give it the bundle's folder"
    ):
        Detector(other, "triton")
    server.shutdown()
    server.server_close()
    with pytest.raises(EdgeError, match="No Triton server answers at http://127") as refused:
        Detector(file, "triton")
    assert refused.value.code == 4
    monkeypatch.setenv("YOLOKD_TRITON", "ftp://x")
    with pytest.raises(EdgeError, match="YOLOKD_TRITON=ftp://x is no address: give one such as http://localhost:8000"):
        Detector(file, "triton")


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'"x"', b"[" * 100000])
def test_something_else_that_answers_is_no_triton_server(answer, bundle, serve, monkeypatch):
    serve()
    monkeypatch.setattr(Answers, "do_GET", lambda self: self.say(answer))
    with pytest.raises(EdgeError, match="answers /v2 in other words: is it a Triton server") as refused:
        Detector(bundle / "model.onnx", "triton")
    assert refused.value.code == 4


def test_texts_of_any_kind_survive_in_the_configuration(tmp_path):
    props = metadata(E2E) | {"names": repr({0: 'é"\\', 1: "日本", 2: "a\nb"})}
    file = toy(tmp_path / "model.onnx", np.array([ROWS]), props)
    config = text_format.Parse(triton.config('a "b"', file), SCHEMA.ModelConfig())
    assert config.name == 'a "b"' and json.loads(config.parameters["metadata"].string_value) == props


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["handover=deepstream"], "takes final boxes: give contract=nms, or contract=e2e for a model with an NMS-free"),
        (["handover=snapdragon"], "handover=snapdragon is not one of deepstream, triton."),
        (["handover=3"], "handover=3 names no program: give deepstream or triton, or both."),
    ],
)
def test_bad_input(words, said, teacher, tmp_path, capsys):
    checkpoint = shutil.copy(teacher, tmp_path / "teacher.pt")
    assert said in refusal(capsys, tmp_path, "bundle", f"model={checkpoint}", *words)


def test_a_task_that_deepstreams_parser_cannot_read():
    class Student:
        task = "segment"

    with pytest.raises(yolokd.errors.UsageError, match="reads boxes, this is a segment model"):
        hand_over.refuse(["deepstream"], Student(), "raw")  # type: ignore[arg-type]
