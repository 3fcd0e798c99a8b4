"""The edge runtime finds what Ultralytics finds, needs nothing but its three libraries, and says what is wrong."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import zipapp
from graphlib import TopologicalSorter
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from helpers.edge import EDGE, colour_frames, copy_runtime, entry, export, metadata, set_metadata, toy
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import ops
from ultralytics.utils.nms import non_max_suppression

import yolokd
import yolokd_edge
from yolokd import compat
from yolokd_edge import cli
from yolokd_edge.boxes import NMS_BLOCK, letterbox, nms, unletterbox
from yolokd_edge.common import EdgeError, one_line
from yolokd_edge.contract import CONTRACTS
from yolokd_edge.detector import Detector
from yolokd_edge.images import IMAGE_SUFFIXES, list_images, read_image
from yolokd_edge.runtimes import onnxruntime_options
from yolokd_edge.runtimes.table import PROVIDERS
from yolokd_edge.version import VERSION

RAW, E2E, NMS = CONTRACTS[:3]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return colour_frames(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, teacher: Path, untrained):
    """Function: kind -> ONNX file; made when first asked for."""
    folder = tmp_path_factory.mktemp("onnx")
    kinds = {
        "raw": (teacher, {"imgsz": 160}),
        "raw-wide": (teacher, {"imgsz": (96, 160)}),
        "nms": (teacher, {"imgsz": 160, "nms": True}),
        "e2e": (untrained("yolo26n"), {"imgsz": 160, "nms": False}),
    }

    def make(kind: str) -> Path:
        file = folder / f"{kind}.onnx"
        return file if file.exists() else export(kinds[kind][0], file, **kinds[kind][1])

    return make


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def by_axis():
    """Old versions of Ultralytics put boxes a pixel beside: what is compared here is the rest."""
    with compat.boxes_by_axis():
        yield


def shapes() -> list[tuple[int, int]]:
    rng = np.random.default_rng(1)
    odd = [(160, 160), (96, 160), (1, 300), (300, 1), (7, 7), (161, 159), (480, 640), (1080, 1919)]
    return odd + [(int(h), int(w)) for h, w in rng.integers(5, 700, (60, 2))]


@pytest.mark.parametrize("hw", [(160, 160), (96, 160), (640, 352)])
def test_letterbox_is_ultralytics_pixel_for_pixel_and_maps_boxes_back_alike(hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    for shape in shapes():
        frame = rng.integers(0, 256, (*shape, 3), np.uint8)
        fitted, box = letterbox(frame, hw)
        try:
            reference = LetterBox(hw, auto=False)(image=frame)
        except cv2.error:  # up to 8.4.123, of an image that would be less than a pixel wide
            assert min(shape) == 1
            continue
        assert np.array_equal(fitted, reference), shape
        rows = rng.uniform(-20, 700, (30, 6)).astype(np.float32)
        expected = ops.scale_boxes(hw, torch.from_numpy(rows[:, :4].copy()), shape).numpy()
        assert np.array_equal(unletterbox(rows, box)[:, :4], expected), shape


def test_nms_keeps_what_torchvision_keeps_in_its_order() -> None:
    rng = np.random.default_rng(3)
    for n in (0, 1, 2, 60, NMS_BLOCK, NMS_BLOCK + 1, 700):
        centre = rng.uniform(0, 100, (n // 6 + 1, 2)).repeat(6, 0)[:n] + rng.normal(0, 2, (n, 2))
        side = rng.uniform(0, 30, (n, 2)) * (rng.random((n, 1)) > 0.1)  # every tenth box is empty
        boxes = np.hstack([centre - side / 2, centre + side / 2]).astype(np.float32)
        scores = rng.random(n).round(2).astype(np.float32)  # with ties
        for iou in (0.2, 0.7):
            expected = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).numpy()
            assert np.array_equal(nms(boxes, scores, iou, 10_000), expected)
            assert np.array_equal(nms(boxes, scores, iou, 5), expected[:5])


@pytest.mark.parametrize(
    ("conf", "iou", "most"), [(0.25, 0.7, 300), (0.001, 0.7, 300), (0.05, 0.3, 4), (0.999, 0.7, 9)]
)
def test_raw_output_is_postprocessed_as_ultralytics_does(conf: float, iou: float, most: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    raw = np.empty((1, 4 + 12, 400), np.float32)
    raw[0, :2] = rng.uniform(0, 600, (2, 50)).repeat(8, 1) + rng.normal(0, 3, (2, 400))
    raw[0, 2:4] = rng.uniform(20, 60, (2, 400))
    raw[0, 4:] = rng.random((12, 400)) ** 6
    detector = Detector(toy(tmp_path / "toy.onnx", raw, metadata(classes=12)), "cpu", 1, conf, iou, most)
    blob, box = detector.preprocess(np.zeros((500, 1000, 3), np.uint8))
    expected = non_max_suppression(torch.from_numpy(raw.copy()), conf, iou, max_det=most)[0]
    expected[:, :4] = ops.scale_boxes((32, 64), expected[:, :4], (500, 1000))
    assert np.array_equal(detector.postprocess(detector.infer(blob), box), expected.numpy())


def test_overlaps_near_the_threshold_are_judged_with_the_rounding_of_the_class_offset(tmp_path: Path) -> None:
    rng, pairs, classes = np.random.default_rng(5), 300, 80
    raw = np.zeros((1, 4 + classes, 2 * pairs), np.float32)
    shift = rng.uniform(6.9, 7.2, pairs)  # boxes 40 wide overlap by 0.7 when 7.06 apart
    raw[0, :2] = rng.uniform(0, 7000, (2, pairs)).repeat(2, 1)
    raw[0, 0, 1::2] += shift
    raw[0, 2:4] = 40
    raw[0, 4 + rng.integers(20, classes, pairs).repeat(2), np.arange(2 * pairs)] = rng.uniform(0.3, 1, 2 * pairs)
    detector = Detector(toy(tmp_path / "toy.onnx", raw, metadata(classes=classes)), max_det=1000)
    _, box = detector.preprocess(np.zeros((32, 64, 3), np.uint8))
    expected = non_max_suppression(torch.from_numpy(raw.copy()), 0.25, 0.7, max_det=1000)[0][:, 4:].numpy()
    assert np.array_equal(detector.postprocess(raw, box)[:, 4:], expected)


def test_same_overlap_is_suppressed_within_a_class_and_kept_across_classes(tmp_path: Path) -> None:
    raw = np.zeros((1, 4 + 3, 4), np.float32)
    raw[0, :4] = np.array([[20, 16, 10, 8], [21, 16, 10, 8], [20, 16, 10, 8], [50, 16, 4, 4]]).T
    raw[0, [4, 4, 5, 6], range(4)] = 0.5, 0.9, 0.6, 0.7
    detector = Detector(toy(tmp_path / "toy.onnx", raw, metadata()))
    found = detector.detect(np.zeros((32, 64, 3), np.uint8))
    assert found.tolist() == pytest.approx(
        np.array([[16, 12, 26, 20, 0.9, 0], [48, 14, 52, 18, 0.7, 2], [15, 12, 25, 20, 0.6, 1]])
    )
    assert detector.candidates == 4


@pytest.mark.parametrize(
    ("kind", "contract", "conf", "fewest"),
    [
        ("raw", RAW, 0.25, 20),
        ("raw", RAW, 0.001, 200),
        ("raw-wide", RAW, 0.1, 20),
        ("nms", NMS, 0.25, 20),
        ("e2e", E2E, 0, 2400),  # untrained: its scores are tiny, so every row counts
    ],
)
def test_detections_are_those_of_ultralytics(
    kind: str, contract: str, conf: float, fewest: int, exported, frames: list[np.ndarray]
) -> None:
    detector, reference = Detector(exported(kind), threads=1, conf=conf), YOLO(exported(kind), task="detect")
    assert detector.contract.output == contract
    total = 0
    for frame in frames:
        expected = reference.predict(frame, rect=False, conf=conf, device="cpu", verbose=False)[0].boxes.data.numpy()
        found = detector.detect(frame)
        assert found.dtype == np.float32 and np.array_equal(found, expected)
        total += len(found)
    assert total >= fewest  # else the comparison proves nothing


@pytest.mark.parametrize("kind", ["raw", "raw-wide"])
def test_detections_are_those_of_the_checkpoint(kind: str, exported, teacher: Path, frames: list[np.ndarray]) -> None:
    detector, reference = Detector(exported(kind), threads=1), YOLO(teacher)
    for frame in frames:
        prediction = reference.predict(frame, rect=False, imgsz=detector.contract.hw, device="cpu", verbose=False)
        expected, found = prediction[0].boxes.data.numpy(), detector.detect(frame)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max(initial=0) < 1e-3  # pixels; two runtimes round differently


def test_swapped_colours_would_be_seen(exported, frames: list[np.ndarray]) -> None:
    detector = Detector(exported("raw"), threads=1)
    same = [np.array_equal(detector.detect(f), detector.detect(f[..., ::-1].copy())) for f in frames]
    assert not any(same)


# --- the contract ---------------------------------------------------------------------------------------------------


def test_contract_is_read_from_metadata_never_from_the_shape(tmp_path: Path) -> None:
    final = np.zeros((1, 300, 6), np.float32)
    for contract in (E2E, NMS):  # one shape, two contracts
        assert Detector(toy(tmp_path / "a.onnx", final, metadata(contract))).contract.output == contract
    both = metadata(NMS) | entry(E2E, teacher={"file": "t.pt", "sha256": "0"})
    contract = Detector(toy(tmp_path / "b.onnx", final, both)).contract
    assert contract.output == E2E  # yolokd's own entry comes first
    assert contract.meta["teacher"] == {"file": "t.pt", "sha256": "0"}
    assert (contract.hw, contract.nc, contract.precision) == ((32, 64), 3, "fp32")


def test_padding_rows_and_low_scores_are_dropped_and_boxes_clipped(tmp_path: Path) -> None:
    final = np.zeros((1, 300, 6), np.float32)
    final[0, 0] = -5, 2, 70, 30, 0.9, 1
    final[0, 1] = 1, 2, 3, 4, 0.25, 0  # not above the threshold
    detector = Detector(toy(tmp_path / "a.onnx", final, metadata(NMS)))
    found = detector.detect(np.zeros((64, 128, 3), np.uint8))
    assert found.tolist() == [[0, 4, 128, 60, pytest.approx(0.9), 1]]
    assert detector.candidates == 1


def without(*keys: str) -> dict[str, str]:
    return {k: v for k, v in metadata().items() if k not in keys}


RAW_OUTPUT, FINAL_OUTPUT = np.zeros((1, 7, 42)), np.zeros((1, 300, 6))
REFUSED = {
    "no metadata": (RAW_OUTPUT, {}, "no export metadata (names, imgsz, task)"),
    "no names": (RAW_OUTPUT, without("names"), "no export metadata (names)"),
    "raw, but final": (FINAL_OUTPUT, metadata(RAW), "declares raw_xywh_scores with 3 classes"),
    "raw, other classes": (RAW_OUTPUT, metadata(RAW, classes=5), "(1, 9, anchors), but its output is (1, 7, 42)"),
    "e2e, but raw": (RAW_OUTPUT, metadata(E2E), "declares e2e_xyxy_conf_cls"),
    "nms by entry, but raw": (RAW_OUTPUT, metadata(RAW) | entry(NMS), "declares nms_xyxy_conf_cls"),
    "other input size": (RAW_OUTPUT, metadata(hw=(64, 64)), "declares an input of (1, 3, 64, 64)"),
    "unknown contract": (RAW_OUTPUT, metadata() | entry("boxes"), "names none of the output contracts"),
    "broken entry": (RAW_OUTPUT, metadata() | {"yolokd": "{"}, "names none of the output contracts"),
    "unreadable names": (RAW_OUTPUT, metadata() | {"names": "{0: "}, "'names' is unreadable"),
    "no size": (RAW_OUTPUT, metadata() | {"imgsz": "[32]"}, "are not a size and the names of classes"),
    "no class names": (RAW_OUTPUT, metadata() | {"names": "3"}, "are not a size and the names of classes"),
    "segmentation": (RAW_OUTPUT, metadata() | {"task": "segment"}, "has 1 inputs and 1 outputs"),
    "RT-DETR": (RAW_OUTPUT, metadata() | {"head": "RTDETRDecoder"}, "declares detr_cxcywh_conf_cls"),
    "grey": (RAW_OUTPUT, metadata() | {"channels": "1"}, "takes 1 channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_interpreted_is_refused(case: str, tmp_path: Path) -> None:
    output, props, sentence = REFUSED[case]
    file = toy(tmp_path / "toy.onnx", output, props)
    with pytest.raises(EdgeError) as error:
        Detector(file)
    assert sentence in str(error.value) and str(file) in str(error.value) and error.value.code == 2


# --- providers ------------------------------------------------------------------------------------------------------


class FallenBack:
    """A session that ONNX Runtime moved to the CPU although something else was asked for."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


@pytest.mark.parametrize(("provider", "name"), [("cuda", "CUDA"), ("trt", "Tensorrt")])
def test_a_provider_that_is_not_active_is_an_error(provider: str, name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("YOLOKD_CACHE", str(tmp_path))
    file = toy(tmp_path / "toy.onnx", RAW_OUTPUT, metadata())
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EdgeError, match=f"{name}ExecutionProvider is not in this ONNX Runtime") as absent:
        Detector(file, provider)
    every = list(PROVIDERS["trt"].names)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: every)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises(EdgeError, match="runs .* on CPUExecutionProvider") as fallen:
        Detector(file, provider)
    assert absent.value.code == fallen.value.code == 4


def test_auto_takes_the_first_provider_that_is_active(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("YOLOKD_CACHE", str(tmp_path))
    file, real = toy(tmp_path / "toy.onnx", RAW_OUTPUT, metadata()), onnxruntime.InferenceSession

    def session(*args, providers: list[str], **kwargs):
        return FallenBack() if len(providers) > 1 else real(*args, providers=providers, **kwargs)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS["trt"].names))
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert Detector(file, "auto").session.get_providers() == ["CPUExecutionProvider"]


PLACE = (
    "[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:/onnxruntime_src/onnxruntime/core/graph/{}:57 "
    "void onnxruntime::Check(const std::unordered_map<std::__cxx11::basic_string<char>, int>&, bool (*)(int), int) {}"
)
IR = "Unsupported model IR version: 10, max supported IR version: 9"


@pytest.mark.parametrize("where", ["", "[with T = std::string] "])
def test_the_cause_of_an_error_is_kept_and_its_place_in_the_source_is_not(where: str) -> None:
    assert one_line(RuntimeError(PLACE.format("model.cc", where + IR))) == IR
    assert one_line(RuntimeError("No such file (a.onnx) Here.")) == "No such file (a.onnx) Here"


def test_pips_cuda_is_loaded_only_where_it_is_and_is_needed(tmp_path: Path, monkeypatch, capsys) -> None:
    file, loaded = toy(tmp_path / "toy.onnx", RAW_OUTPUT, metadata()), []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS["cuda"].names))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append(print("advice")), raising=False)
    monkeypatch.setattr(onnxruntime_options, "find_spec", lambda name: None)
    for installed in (False, True):
        monkeypatch.setattr(onnxruntime_options, "find_spec", lambda name, found=installed: found or None)
        Detector(file)
        with pytest.raises(EdgeError):
            Detector(file, "cuda")
        assert len(loaded) == int(installed)
    assert capsys.readouterr() == ("", "advice\n")
    monkeypatch.delattr(onnxruntime, "preload_dlls")  # before 1.21
    with pytest.raises(EdgeError):
        Detector(file, "cuda")


# --- the package on a board -----------------------------------------------------------------------------------------

MODULES = sorted(EDGE.rglob("*.py"))


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(EDGE)))
def test_every_module_is_python_3_8_and_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 8))
    assert text.count("\n") <= 500


def imports_of(file: Path) -> set[str]:
    """Modules of the package that a module imports when it is loaded."""
    nodes = [n for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.ImportFrom)]
    names = {n.module: [a.name for a in n.names] for n in nodes if (n.module or "").startswith("yolokd_edge")}
    inside = {f"{module}.{name}" for module, given in names.items() for name in given}
    return {name for name in {*names, *inside} if EDGE.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file()}


def test_no_module_imports_one_that_imports_it() -> None:
    arrows = {".".join(["yolokd_edge", *f.relative_to(EDGE).with_suffix("").parts]): imports_of(f) for f in MODULES}
    assert sum(map(len, arrows.values())) > 100
    assert list(TopologicalSorter(arrows).static_order())  # raises where there is a cycle


def test_the_packages_description_names_what_is_there() -> None:
    named = set(re.findall(r"[a-z_]+", yolokd_edge.__doc__.partition("Where to look:")[2]))
    packages = {p.name for p in EDGE.iterdir() if (p / "__init__.py").is_file()}
    verbs_and_models = {"contract", "detector", "boxes", "images", "bundle", "provenance", "verify", "doctor", "detect"}
    assert packages | verbs_and_models | {"drawings"} <= named


@pytest.mark.parametrize("folder", [".", "deploy"])
def test_both_distributions_list_every_package_of_the_runtime_and_no_version(folder: str, request) -> None:
    text = (request.config.rootpath / folder / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^packages = \[  #[^\n]*\n([^\]]*)\]", text, re.MULTILINE)
    deploy = request.config.rootpath / "deploy"
    found = {".".join(f.parent.relative_to(deploy).parts) for f in deploy.glob("yolokd_edge*/**/__init__.py")}
    assert {name for name in re.findall(r'"(.+?)"', listed) if name.startswith("yolokd_edge")} == found
    assert VERSION not in text and yolokd.__version__ == yolokd_edge.__version__ == VERSION


def test_public_names_are_the_same_for_python_and_for_type_checkers() -> None:
    tree = ast.parse((EDGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert typed == set(yolokd_edge.__all__) == {name for name in yolokd_edge.__all__ if hasattr(yolokd_edge, name)}
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        getattr(yolokd_edge, "nowhere")  # noqa: B009


def test_the_package_alone_imports_neither_torch_nor_ultralytics_nor_yolokd(tmp_path: Path) -> None:
    package = copy_runtime(tmp_path)
    modules = [".".join(f.relative_to(tmp_path).with_suffix("").parts) for f in package.rglob("*.py")]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; "
    code += "print(*{m.split('.')[0] for m in sys.modules}); print(sys.modules['yolokd_edge.cli'].__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    names, file = run.stdout.splitlines()
    loaded = set(names.split())
    assert Path(file).parent == package and {"numpy", "cv2", "onnxruntime"} <= loaded
    assert not loaded & {"torch", "ultralytics", "yolokd", "matplotlib", "onnx", "openvino", "ncnn"}


def test_words_of_the_report_and_providers_cost_no_library() -> None:
    code = "import sys, yolokd_edge, yolokd_edge.bench.options, yolokd_edge.runtimes.table, yolokd_edge.bench.schema; "
    run = subprocess.run(
        [sys.executable, "-c", code + "print(*sys.modules)"], cwd=sys.prefix, capture_output=True, text=True, check=True
    )
    assert not {"numpy", "cv2", "onnxruntime"} & set(run.stdout.split())


def test_a_board_without_packages_is_told_which_to_install(tmp_path: Path) -> None:
    copy_runtime(tmp_path)
    for start in (["-m", "yolokd_edge"], ["yolokd_edge"]):
        run = subprocess.run([sys.executable, "-S", *start, "doctor"], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 2 and run.stderr.count("\n") == 1
        assert "a package is missing or broken" in run.stderr and "requirements-cpu.txt" in run.stderr


def test_every_image_suffix_of_ultralytics_is_one_here(tmp_path: Path) -> None:
    assert {s.lstrip(".") for s in IMAGE_SUFFIXES} >= IMG_FORMATS
    (tmp_path / "a.heic").write_bytes(b"not for OpenCV")
    (path,) = list_images(tmp_path)
    with pytest.raises(EdgeError, match=r"a.heic cannot be decoded as an image; .* convert it to PNG or JPEG\."):
        read_image(path)


def test_a_drawn_image_of_a_format_that_cannot_be_written_becomes_a_png(tmp_path: Path, capsys) -> None:
    file = toy(tmp_path / "toy.onnx", RAW_OUTPUT, metadata())
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.jpg"), np.full((20, 30, 3), 90, np.uint8))
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/a.mpo")  # several JPEGs in one file, of which one is read
    words = ["--model", str(file), "--source", str(tmp_path / "images"), "--save", str(tmp_path / "drawn")]
    assert cli.main(["detect", *words]) == 0, capsys.readouterr().err
    assert [p.name for p in (tmp_path / "drawn").iterdir()] == ["a.mpo.png"]


@pytest.mark.parametrize("start", ["-m yolokd_edge", "elsewhere/yolokd_edge", "edge.pyz"])
def test_it_detects_and_measures_from_a_folder_by_its_path_and_zipped(
    start: str, exported, frames, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy_runtime(tmp_path / "elsewhere" if start.startswith("elsewhere") else tmp_path)
    if start.endswith("pyz"):
        (tmp_path / "yolokd_edge").rename(tmp_path / "elsewhere/yolokd_edge")
        zipapp.create_archive(tmp_path / "elsewhere", tmp_path / start, main="yolokd_edge.__main__:main")
        shutil.rmtree(tmp_path / "elsewhere")
    (tmp_path / "images").mkdir()
    for k, frame in enumerate(frames[:3]):
        cv2.imwrite(str(tmp_path / f"images/{k}.png"), frame)
    shutil.copy(exported("raw"), tmp_path / "raw.onnx")
    common = ["--model", "raw.onnx", "--source", "images", "--threads", "1"]

    def edge_file(verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-B", *start.split(), verb, *common, *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    run = edge_file("detect", "--json", "--save", "drawn")
    assert (run.returncode, run.stderr) == (0, "")
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["0.png", "1.png", "2.png"]
    expected = Detector(exported("raw"), threads=1).detect(frames[0])
    boxes = [found["box"] for found in lines[0]["detections"]]
    assert np.allclose(boxes, expected[:, :4], atol=6e-4)  # pixels, written with three decimals
    assert lines[0]["hw"] == list(frames[0].shape[:2])
    assert not np.array_equal(cv2.imread(str(tmp_path / "drawn/0.png")), frames[0])
    run = edge_file("bench", "--quick", "--time-limit", "0.5", "--out", "report.json")
    assert (run.returncode, run.stderr) == (0, "")
    (record,) = json.loads((tmp_path / "report.json").read_text())
    assert record["model"]["file"] == "raw.onnx" and record["memory"]["rss_mb"] > 0 and record["cold"]["import_s"] > 0
    assert "raw.onnx" in run.stdout
    run = edge_file("bench", "--repeats", "2", "--time-limit", "0.2", "--out", "workers.json")  # in new processes
    assert (run.returncode, run.stderr) == (0, "")
    (record,) = json.loads((tmp_path / "workers.json").read_text())
    assert record["protocol"]["repeats"] == 2 and record["cold"]["import_s"] > 0
    assert edge_file("detect", "--provider", "trt").returncode == 4  # an exit code survives a zip file's own start


# --- bad input on the command line ----------------------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    toy(tmp_path / "good.onnx", RAW_OUTPUT, metadata())
    toy(tmp_path / "bare.onnx", RAW_OUTPUT, {})
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for folder in ("none", "notes", "broken", "fine"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notes/readme.txt").write_text("no image")
    cv2.imwrite(str(tmp_path / "fine/a.png"), np.zeros((20, 30, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "broken/a.png"), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "broken/b.jpg").write_bytes(b"not a photograph")
    (tmp_path / "broken/c.png").write_bytes(b"")
    (tmp_path / "report.json").write_text("[]")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        ("bench --model text.onnx --source fine", "text.onnx is not an ONNX model", 2),
        ("bench --model empty.onnx --source fine", "empty.onnx is not an ONNX model", 2),
        ("bench --model fine/a.png --source fine", "export it to ONNX first", 2),
        ("bench --model nowhere.onnx --source fine", "There is no model file nowhere.onnx", 2),
        ("bench --model bare.onnx --source fine", "bare.onnx has no export metadata", 2),
        ("bench --model good.onnx --source none", "none holds no image", 2),
        ("bench --model good.onnx --source notes", "notes holds no image", 2),
        ("bench --model good.onnx --source nowhere", "no image file or folder nowhere", 2),
        ("bench --model good.onnx --source broken", "cannot be decoded as an image", 2),
        ("bench --model good.onnx --source fine --out report.json", "report.json exists already", 2),
        ("bench --model good.onnx --source fine --out fine", "fine cannot be the report", 2),
        ("bench --model good.onnx --source fine --provider cuda", "CUDAExecutionProvider", 4),
        ("detect --model text.onnx --source fine", "text.onnx is not an ONNX model", 2),
        ("detect --model good.onnx --source broken/b.jpg", "b.jpg cannot be decoded as an image", 2),
        ("detect --model good.onnx --source broken/c.png", "c.png cannot be decoded as an image", 2),
        ("detect --model good.onnx --source fine --save fine", "fine cannot take the drawn images", 2),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    arguments: str, sentence: str, code: int, bad: Path, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bad)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    before = sorted(p.name for p in bad.rglob("*"))
    assert cli.main(arguments.split()) == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and sentence in lines[0], lines
    assert sorted(p.name for p in bad.rglob("*")) == before  # nothing half-written


@pytest.mark.parametrize("option", ["--conf 2", "--conf x", "--threads 0", "--max-det 1.5", "--provider tpu"])
def test_a_bad_option_is_a_usage_error(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["detect", "--model", "a.onnx", "--source", "b", *option.split()])
    assert stop.value.code == 2
    assert option.split()[1] in capsys.readouterr().err


def test_metadata_of_an_exported_file_survives_an_added_entry(exported, tmp_path: Path) -> None:
    file = set_metadata(exported("raw"), tmp_path / "named.onnx", **entry(RAW, accuracy={"map50": 0.5}))
    detector = Detector(file)
    assert detector.contract.meta["accuracy"] == {"map50": 0.5}
    assert detector.names[0] == "t-shirt"
