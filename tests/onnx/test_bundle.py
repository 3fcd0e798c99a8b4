"""`yolokd bundle`: what is in the zip file, that it says the truth, and that it works where only the runtime is."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import zipfile
from argparse import ArgumentTypeError
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers.cli import refusal
from onnx import numpy_helper
from ultralytics import YOLO
from ultralytics.utils.torch_utils import get_flops

import yolokd
from yolokd import cli, compat
from yolokd.errors import ParityError, UsageError
from yolokd.onnx import bundle as verb
from yolokd.onnx import likeness, profile, quantize, rounding
from yolokd.onnx.calibration import CALIBRATORS, MEANING
from yolokd.onnx.output_error import OutputError
from yolokd_edge.bundle import EXPECTED, open_bundle
from yolokd_edge.cli import main as edge_main
from yolokd_edge.contract import PRECISIONS, RAW
from yolokd_edge.detector import Detector
from yolokd_edge.images import list_images, read_image
from yolokd_edge.jetson.options import PERCENTILES, STAGES, read_budgets
from yolokd_edge.verify import verify_bundle

MODELS = ["model.onnx", "model_fp16.onnx", "model_int8_cpu.onnx", "model_int8_trt.onnx"]


def make(teacher: Path, scenes: Path, folder: Path) -> Path:
    """The bundled teacher with all its twins."""
    checkpoint = Path(shutil.copy(teacher, folder / "teacher.pt"))
    out = folder / "out" / "teacher-edge.zip"
    return yolokd.bundle(checkpoint, out, data=scenes, fp16=True, int8=True, imgsz=96, calib=8)


@pytest.fixture(scope="module")
def made(teacher, scenes, tmp_path_factory) -> Path:
    return make(teacher, scenes, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def unpacked(made, tmp_path_factory) -> Path:
    """The bundle as the person with the board has it; nobody writes into it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder)
    return folder


def manifest(folder: Path) -> dict:
    return json.loads((folder / "bundle.json").read_text())


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command with this Python in a folder."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True)


# --- contents -------------------------------------------------------------------------------------------------------


def test_the_bundle_holds_what_a_board_needs_and_nothing_that_needs_torch(unpacked: Path) -> None:
    files = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    said = manifest(unpacked)
    assert files == set(said["files"]) | {"bundle.json"}
    assert {
        *MODELS,
        "yolokd_edge/__main__.py",
        "yolokd_edge/bench/sweep.py",
        "run.sh",
        "README.md",
        "LICENSE",
        "NOTICE",
        "jetson/conftest.py",
    } <= files
    assert {f"requirements-{board}.txt" for board in ("cpu", "cuda", "jp5", "jp6", "jp7")} <= files
    assert not any(name.endswith((".pt", ".engine", ".plan", ".pyc")) for name in files)
    assert not any(name.startswith(("yolokd_edge/jetson", "yolokd_edge/board_files")) for name in files)
    for name, entry in said["files"].items():
        data = (unpacked / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    wanted = [line for f in unpacked.glob("requirements-*.txt") for line in f.read_text().lower().splitlines()]
    assert not any(re.match("(torch|ultralytics|yolokd|onnx)\\b", line) for line in wanted)
    assert "GNU AFFERO GENERAL PUBLIC LICENSE" in (unpacked / "LICENSE").read_text()
    assert "model_int8_trt.onnx" in (unpacked / "README.md").read_text()


def test_the_manifest_says_what_the_models_are(unpacked: Path, teacher: Path, scenes: Path) -> None:
    said = manifest(unpacked)
    assert said["schema"] == "yolokd.bundle/1" and list(said["models"]) == MODELS
    assert [m["precision"] for m in said["models"].values()] == ["fp32", "fp16", "int8", "int8"]
    assert said["contract"]["output"] == RAW and said["contract"]["imgsz"] == [96, 96]
    assert said["contract"]["names"] == {str(k): v for k, v in YOLO(teacher).names.items()}
    student = said["provenance"]["student"]
    assert student == {"file": "teacher.pt", "sha256": hashlib.sha256(teacher.read_bytes()).hexdigest()}
    assert str(scenes.parent) not in json.dumps(said)  # no path of the machine that made it
    for name, entry in said["models"].items():
        detector = Detector(unpacked / name, threads=1)
        assert detector.contract.precision == entry["precision"]
        assert detector.contract.meta["accuracy"] == entry["accuracy"]
        assert "date" not in detector.contract.exporter
        assert entry["opset"] <= 18 and entry["ir"] <= 9


def test_accuracy_is_that_of_ultralytics_and_its_change_is_against_fp32(
    unpacked: Path, scenes: Path, tmp_path: Path
) -> None:
    models = manifest(unpacked)["models"]
    first = models["model.onnx"]["accuracy"]
    assert first["map50"] > 0.2 and first["n_images"] == 8 and first["split"] == "val"
    for name in ("model.onnx", "model_int8_trt.onnx"):
        known, change = models[name]["accuracy"], models[name]["change"]
        settings = {"imgsz": 96, "rect": False, "batch": 1, "device": "cpu", "plots": False, "project": str(tmp_path)}
        box = YOLO(unpacked / name, task="detect").val(data=str(scenes), **settings).box
        assert (known["map50"], known["map50_95"]) == pytest.approx((box.map50, box.map))
        assert change["map50_95"] == pytest.approx(known["map50_95"] - first["map50_95"], abs=1e-6)
    assert models["model_int8_trt.onnx"]["accuracy"] != first


def test_parity_images_are_coloured_not_square_and_smaller_as_well_as_larger_than_the_input(unpacked: Path) -> None:
    images = [read_image(p) for p in list_images(unpacked / "parity")]
    assert len(images) == 6 and all(i.shape[0] != i.shape[1] for i in images)
    assert all(np.ptp(i.astype(int), axis=2).max() > 8 for i in images)
    assert min(max(i.shape[:2]) for i in images) < 96 < max(max(i.shape[:2]) for i in images)
    grey = np.full((50, 50, 3), 100, np.uint8)
    assert verb.varied(grey, 0, (96, 96)).shape[0] > verb.varied(grey, 0, (96, 96)).shape[1]
    assert np.ptp(verb.varied(grey, 1, (96, 96)), axis=2).min() > 8


def test_expected_detections_are_exactly_those_of_ultralytics(unpacked: Path) -> None:
    expected = json.loads((unpacked / EXPECTED).read_text())
    reference, total = YOLO(unpacked / "model.onnx", task="detect"), 0
    for name, image in expected["images"].items():
        frame = cv2.imread(str(unpacked / "parity" / name))
        with compat.boxes_by_axis():
            theirs = reference.predict(frame, rect=False, device="cpu", verbose=False)[0].boxes.data.numpy()
        assert np.array_equal(np.float32(image["detections"]["model.onnx"]).reshape(-1, 6), theirs)
        total += len(theirs)
    assert total >= 6


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes(made: Path, teacher, scenes, tmp_path: Path) -> None:
    assert make(teacher, scenes, tmp_path).read_bytes() == made.read_bytes()


# --- INT8 -----------------------------------------------------------------------------------------------------------


def quantizers(file: Path) -> tuple[list[np.ndarray], list[np.ndarray], list[onnx.NodeProto]]:
    """Zero points of activations, zero points of weights, and convolutions of which anything is quantized."""
    model = onnx.load(file).graph
    constants = {t.name: numpy_helper.to_array(t) for t in model.initializer}
    activations = [constants[n.input[2]] for n in model.node if n.op_type == "QuantizeLinear"]
    dequantized = {n.output[0]: n for n in model.node if n.op_type == "DequantizeLinear"}
    weights = [constants[n.input[2]] for n in dequantized.values() if n.input[0] in constants]
    return activations, weights, [n for n in model.node if n.op_type == "Conv" and dequantized.keys() & set(n.input)]


def test_the_int8_files_are_what_their_hardware_takes(unpacked: Path) -> None:
    cpu, _, cpu_convolutions = quantizers(unpacked / "model_int8_cpu.onnx")
    assert {z.dtype for z in cpu} == {np.dtype(np.uint8)}
    trt, weights, convolutions = quantizers(unpacked / "model_int8_trt.onnx")
    assert {z.dtype for z in trt + weights} == {np.dtype(np.int8)}  # no int32: no bias is quantized
    assert not any(z.any() for z in trt + weights)  # zero point 0
    assert any(z.ndim == 1 and z.size > 1 for z in weights)  # by channel
    full = onnx.load(unpacked / "model.onnx")
    head = set(quantize.head_convolutions(full, unpacked / "model.onnx"))
    everything = {n.name for n in full.graph.node if n.op_type == "Conv"}
    for found in (convolutions, cpu_convolutions):
        assert {n.name for n in found} == everything - head
    assert 10 < len(head) < len(everything) / 2


def test_the_manifest_says_how_far_detections_are_off_and_which_calibrator_was_taken(
    unpacked: Path, scenes: Path
) -> None:
    models = manifest(unpacked)["models"]
    measure = OutputError(unpacked / "model.onnx", list_images(scenes.parent / "images/val"))
    for name in MODELS[1:]:
        error = models[name]["output_error"]
        assert error == {"value": pytest.approx(measure.of(unpacked / name), abs=1e-6), "split": "val", "n": 8}
        assert f"{100 * error['value']:.2f} %" in (unpacked / "README.md").read_text()
    assert models["model_fp16.onnx"]["output_error"]["value"] < 0.02  # it rounds a thousand times more finely
    for name in MODELS[2:]:
        tried = models[name]["trials"]
        assert list(tried["calibrators"]) == list(CALIBRATORS) and not tried["layers"] and not tried["left"]
        assert tried["chosen"] == min(tried["calibrators"], key=tried["calibrators"].get)
        assert tried["calibrators"][tried["chosen"]] == models[name]["output_error"]["value"]
        assert models[name]["int8"]["calibrator"] == f"{tried['chosen']}: {MEANING[tried['chosen']]}"


def test_a_graph_that_hides_its_head_is_not_quantized(unpacked: Path, tmp_path: Path) -> None:
    model = onnx.load(unpacked / "model.onnx")
    for node in model.graph.node:
        node.name = node.name.replace("model.", "part_")
    with pytest.raises(UsageError, match="hides its head"):
        quantize.head_convolutions(model, tmp_path / "a.onnx")


# --- on the board ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_verify_passes_from_the_zip_file_and_is_exact_here(precision: str, made: Path) -> None:
    figures = verify_bundle(open_bundle(made), threads=1, precision=precision)
    assert figures["pass"] and figures["exact"] and figures["dets"]["n"] >= 6
    assert figures["raw"]["max_abs_box"] == figures["raw"]["score_scale"] == 0  # of every precision


def test_the_unpacked_bundle_works_alone(unpacked: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unpacked, tmp_path / "edge"))
    checked = run(folder, "-m", "yolokd_edge", "verify")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "0 without a partner" in checked.stdout
    found = run(folder, "-m", "yolokd_edge", "detect", "--source", "parity", "--save", "drawn", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    expected = json.loads((folder / EXPECTED).read_text())["images"]
    for line in lines:
        boxes = [d["box"] for d in line["detections"]]
        name = Path(line["image"]).name
        assert np.allclose(boxes, np.array(expected[name]["detections"]["model.onnx"])[:, :4], atol=6e-4)
    assert sorted(p.name for p in (folder / "drawn").iterdir()) == sorted(expected)
    code = "import runpy, sys; sys.argv = ['yolokd_edge', 'verify']\n" + (
        "try: runpy.run_module('yolokd_edge', run_name='__main__')\n"
        "except SystemExit: print({'torch', 'ultralytics', 'onnx', 'yolokd'} & set(sys.modules))"
    )
    assert run(folder, "-c", code).stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("what", ["weights", "colours"])
def test_verify_fails_with_5_where_something_else_is_computed(
    what: str, unpacked: Path, tmp_path: Path, capsys
) -> None:
    folder = Path(shutil.copytree(unpacked, tmp_path / "edge"))
    said = manifest(folder)
    if what == "weights":
        model = onnx.load(folder / "model.onnx")
        weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.02), weight.name))
        onnx.save(model, folder / "model.onnx")
        changed = ["model.onnx"]
    else:
        changed = [f"parity/{k}.png" for k in range(6)]
        for name in changed:
            cv2.imwrite(str(folder / name), cv2.imread(str(folder / name))[..., ::-1])
    for name in changed:
        said["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(said))
    assert edge_main(["verify", "--model", str(folder), "--threads", "1"]) == 5
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and "does not compute what the bundle says" in out.err
    assert "model.onnx on CPUExecutionProvider, 6 images" in out.out


def distort(file: Path, factor: np.ndarray, shift: np.ndarray) -> None:
    """Multiply and shift the rows of a file's output (1, rows, anchors)."""
    model = onnx.load(file)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["exact" if output == name else output for output in node.output]
    for tensor, values in (("factor", factor), ("shift", shift)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(values).reshape(1, -1, 1), tensor))
    model.graph.node.append(onnx.helper.make_node("Mul", ["exact", "factor"], ["scaled"]))
    model.graph.node.append(onnx.helper.make_node("Add", ["scaled", "shift"], [name]))
    onnx.save(model, file)


@pytest.mark.parametrize(
    ("file", "precision", "factor", "shift", "sentence"),
    [
        ("model_int8_cpu.onnx", "int8", [1] * 4 + [0.9] * 10, [0] * 14, "score_scale is 0.1, above 0.0"),
        ("model_fp16.onnx", "fp16", [1] * 14, [2, 0] + [0] * 12, "max_abs_box is 2, above"),
        ("model_fp16.onnx", "fp16", [1] * 4 + [np.nan] * 10, [0] * 14, "are not finite numbers"),
        ("model_int8_cpu.onnx", "int8", [1] * 4 + [1e-3] * 10, [0] * 14, "without a partner"),
    ],
)
def test_a_twin_that_is_a_little_off_fails(
    file: str, precision: str, factor: list[float], shift: list[float], sentence: str, unpacked, tmp_path, capsys
) -> None:
    folder = Path(shutil.copytree(unpacked, tmp_path / "edge"))
    distort(folder / file, np.array(factor), np.array(shift))
    said = manifest(folder)
    said["files"][file]["sha256"] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(said))
    assert edge_main(["verify", "--model", str(folder), "--threads", "1", "--precision", precision]) == 5
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_the_tolerances_come_from_what_rounding_moves_and_are_stated(unpacked: Path) -> None:
    expected = json.loads((unpacked / EXPECTED).read_text())
    assert set(expected["rounding"]) == set(MODELS)
    assert expected["rounding"]["model.onnx"]["max_abs_score"] < 2e-3
    for precision, bounds in rounding.BOUNDS.items():
        limits = expected["tolerance"][precision]
        assert all(least <= limits[key] <= most for key, (least, most) in bounds.items())
        assert f"{precision}: network output {limits['raw_box']:g} px" in (unpacked / "README.md").read_text()


def test_tolerances_are_four_times_the_rounding_within_bounds() -> None:
    figures = {"max_abs_box": 0.25, "max_abs_score": 1.0, "mean_abs_box": 0.0, "score_scale": 0.0}
    limits = rounding.tolerances({"fp16": [figures]})["fp16"]
    assert (limits["raw_box"], limits["raw_score"], limits["mean_box"]) == (1.0, 0.02, 0.1)
    assert rounding.tolerances({})["fp16"]["raw_box"] == 1.9  # nothing was measured


def test_a_twin_that_loses_too_much_is_refused_and_nothing_is_written(
    teacher: Path, scenes: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    dark = tmp_path / "dark"
    (dark / "images/train").mkdir(parents=True)
    for k in range(8):
        cv2.imwrite(str(dark / f"images/train/{k}.png"), np.full((64, 64, 3), k % 2, np.uint8))
    data = dark / "dark.yaml"
    text = scenes.read_text().splitlines()
    text = [line for line in text if not line.startswith(("path:", "train:", "val:"))]
    places = [f"path: {dark}", "train: images/train", f"val: {scenes.parent / 'images/val'}"]
    data.write_text("\n".join([*places, *text]))
    checkpoint = Path(shutil.copy(teacher, tmp_path / "teacher.pt"))
    warned: list[str] = []
    monkeypatch.setattr(likeness.LOGGER, "warning", lambda text, *more: warned.append(str(text)))
    with pytest.raises(ParityError) as refused:
        yolokd.bundle(checkpoint, tmp_path / "a.zip", data=data, int8=True, imgsz=64)
    assert re.match(
        r"model_int8_cpu.onnx loses \d+\.\d+ points of mAP50-95 \(.* in FP32, .* in INT8\), more than "
        "max_drop=5, so no bundle was made: calibrate on",
        str(refused.value),
    )
    assert refused.value.code == 5 and not (tmp_path / "a.zip").exists()
    assert any("calibration images look unlike the validation images" in text for text in warned)


def test_the_boards_tests_pass_judge_and_report(made: Path, unpacked: Path, tmp_path: Path) -> None:
    common = ["-q", "-p", "no:cacheprovider", "--threads", "1", "--junitxml", tmp_path / "report.xml"]
    measured = ["--profile", "smoke", "--repeats", "1", "--soak", "1", "--max-drift", "100"]
    budgets = ["--budget", "total.p50=60s,total.p90=1us", "--budget", "infer.p999=1s"]
    package = ["--pyargs", "yolokd_edge.jetson", "--bundle", made, "-rs"]
    result = run(tmp_path, "-m", "pytest", *package, *common, *measured, *budgets)
    assert result.returncode in (1, 3), (
        result.stdout + result.stderr
    )  # 3: other work made the missed budget inconclusive
    # frames that other work slowed in long stretches say too little for an interval: inconclusive, never a pass
    assert re.search(r"total.p90 is [0-9.]+ ms, (over the budget of 0.001 ms|of which no interval can)", result.stdout)
    assert "infer.p999 cannot be told from" in result.stdout  # 100 frames are too few
    # what this machine's other work can make inconclusive: both budgets and the soak
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (failed|passed|skipped)", result.stdout.splitlines()[-1])}
    assert result.returncode == (1 if "failed" in counts else 3)
    assert counts["passed"] >= 3 and sum(counts.values()) == 7
    assert result.stdout.count("inconclusive: ") == counts.get("skipped", 0)
    report = (tmp_path / "report.xml").read_text()
    for name in (
        "total.p50_ms",
        "total.p50_upper95_ms",
        "verdict",
        "soak_drift",
        "soak_verdict",
        "ep_coverage",
        "parity",
    ):
        assert f'<property name="{name}" value=' in report
    alone = run(unpacked, "-B", "-m", "pytest", "jetson", *common, "--soak", "0")  # beside an installed yolokd
    assert "3 passed, 2 skipped" in alone.stdout, alone.stdout + alone.stderr


@pytest.mark.parametrize("text", ["total.p99=15", "total.p42=15ms", "all.p99=15ms", "total.p99=0ms", "total.p99=15ms,"])
def test_a_budget_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no budget: write a stage"):
        read_budgets(text)


def test_budgets_are_read_with_their_units() -> None:
    assert read_budgets("total.p99=15ms,infer.p50=0.5s") == [("total", "p99", 15), ("infer", "p50", 500)]
    for stage, name in itertools.product(STAGES, PERCENTILES):
        assert read_budgets(f"{stage}.{name}=1ms") == [(stage, name, 1)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--budget", "total.p99=15"], "is no budget: write a stage"),
        (["--bundle", "nowhere.zip"], "There is no bundle nowhere.zip."),
        ([], "No bundle: give --bundle"),
    ],
)
def test_the_boards_tests_refuse_what_they_cannot_read(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    result = run(tmp_path, "-m", "pytest", "--pyargs", "yolokd_edge.jetson", "-p", "no:cacheprovider", *arguments)
    assert result.returncode not in (0, 1) and sentence in result.stdout + result.stderr


def test_other_sessions_of_pytest_keep_their_options(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--bundle', default='mine')")
    (tmp_path / "test_own.py").write_text("def test(pytestconfig): assert pytestconfig.getoption('bundle') == 'mine'")
    assert run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider").returncode == 0


# --- static figures -------------------------------------------------------------------------------------------------


def test_static_figures_are_those_of_the_checkpoint(unpacked: Path, teacher: Path) -> None:
    figures = profile.figures(unpacked / "model.onnx")
    fused = YOLO(teacher).model.fuse(verbose=False)
    assert figures["parameters"] == sum(p.numel() for p in fused.parameters())
    assert figures["gflops"] == pytest.approx(get_flops(YOLO(teacher).model, 96), rel=0.05)
    assert figures["bytes"] == (unpacked / "model.onnx").stat().st_size
    int8 = profile.figures(unpacked / "model_int8_cpu.onnx")
    assert (int8["parameters"], int8["gflops"]) == (figures["parameters"], figures["gflops"])


def test_figures_of_a_graph_known_by_hand(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Sigmoid", ["a"], ["b"], "sigmoid"),
        onnx.helper.make_node("Mul", ["a", "b"], ["c"], "mul"),
        onnx.helper.make_node("GlobalAveragePool", ["c"], ["y"], "pool"),
    ]
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(n, kind, d) for n, d in (("x", [1, 3, 10, 20]), ("y", [1, 8, 1, 1]))]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]), ir_version=10)
    onnx.save(model, tmp_path / "g.onnx")
    figures = profile.figures(tmp_path / "g.onnx")
    assert figures["parameters"] == 216
    assert figures["gflops"] == round(2 * 216 * 200 / 1e9, 4)
    assert (figures["peak_activation_bytes"], figures["peak_node"]) == (3 * 8 * 200 * 4, "mul")  # a, b and c
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "dynamic.onnx")
    figures = profile.figures(tmp_path / "dynamic.onnx")
    assert (figures["parameters"], figures["gflops"], figures["peak_activation_bytes"]) == (216, None, None)


def test_a_file_without_a_fixed_shape_has_no_slowest_nodes(unpacked: Path, tmp_path: Path, capsys) -> None:
    model = onnx.load(unpacked / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "dynamic.onnx")
    assert "has no fixed input shape" in refusal(capsys, tmp_path, "inspect", f"model={tmp_path / 'dynamic.onnx'}")


def test_inspect_shows_the_slowest_nodes(unpacked: Path, capsys) -> None:
    assert cli.main(["inspect", f"model={unpacked / 'model.onnx'}", "top=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "parameters" in lines[0] and "GFLOPs" in lines[0] and len(lines) == 6
    rows = profile.slowest(unpacked / "model.onnx", most=1000, runs=3)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
    assert sum(row["op"] == "Conv" for row in rows) > 40


def test_a_missing_training_folder_is_seen_before_anything_is_exported(teacher, scenes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(verb.export, "export", lambda *given, **more: pytest.fail("it was exported"))
    data = tmp_path / "mine.yaml"
    data.write_text(f"path: {scenes.parent}\ntrain: gone\nval: images/val\nnames: {{0: a}}\n")
    with pytest.raises(UsageError, match="the train split of .* holds no image"):
        yolokd.bundle(teacher, tmp_path / "a.zip", data=data, int8=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect"], "no model"),
        (["inspect", "model=nowhere.onnx"], "There is no model file nowhere.onnx"),
        (["inspect", "model=a.txt"], "a.txt is not an ONNX model that can be read"),
        (["inspect", "model=a.txt", "top=0"], "top=0 is not a whole number"),
        (["bundle"], "no model"),
        (["bundle", "model=nowhere.pt"], "model=nowhere.pt is not a checkpoint"),
        (["bundle", "model=teacher.pt", "out=there.zip"], "there.zip exists already"),
        (["bundle", "model=teacher.pt", "out=there.tar"], "out=there.tar does not end in .zip"),
        (["bundle", "model=teacher.pt", "int8=True"], "need the data set"),
        (["bundle", "model=teacher.pt", "int8=maybe"], "int8=maybe is neither True nor False"),
        (["bundle", "model=teacher.pt", "max_drop=-1"], "max_drop=-1 is not a number of points"),
        (["bundle", "model=teacher.pt", "calib=0"], "calib=0 is not a number of images"),
        (["bundle", "model=teacher.pt", "data=no.yaml"], "data=no.yaml cannot be used"),
        (["bundle", "model=teacher.pt", "precision=int8"], "precision"),
        (["bundle", "model=a.pt"], "model=a.pt is not a checkpoint that Ultralytics can open"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    arguments: list[str], sentence: str, teacher: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(teacher, "teacher.pt")
    for name in ("there.zip", "a.txt", "a.pt"):
        Path(name).write_text("mine")
    assert sentence in refusal(capsys, tmp_path, *arguments)
