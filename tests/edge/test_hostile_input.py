"""The runtime and what others made: damaged images, models that it cannot feed or run, names that move the cursor.

Whatever it is, the command line ends with one sentence and the documented code.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers.cli import refusal
from helpers.edge import EDGE, entry, metadata, toy
from onnx import TensorProto, helper, numpy_helper

from yolokd_edge import cli
from yolokd_edge.common import PARITY, EdgeError, one_line
from yolokd_edge.contract import E2E
from yolokd_edge.detector import Detector
from yolokd_edge.images import is_cut_short, read_image
from yolokd_edge.verify import FIGURES, TOLERANCES

RAW_OUTPUT = np.zeros((1, 7, 4), np.float32)
HASTE = ["--quick", "--time-limit", "0.05"]
VERBS = {"detect": [], "bench": HASTE}  # those that take an image, with what makes them quick


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A model that answers every image with nothing."""
    return toy(tmp_path / "good.onnx", RAW_OUTPUT, metadata())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write(tmp_path / "photo.jpg")


def write(path: Path, size: tuple[int, int] = (90, 120)) -> Path:
    """A picture that takes many bytes to store."""
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    return path


def refused(capfd: pytest.CaptureFixture[str], *words: object, code: int = 2) -> str:
    """The one line on stderr of a command that must end with a code."""
    capfd.readouterr()
    assert cli.main([str(word) for word in words]) == code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("yolokd_edge: ") and line.endswith(".")
    return line


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_an_image_cut_short_is_refused(suffix: str, verb: str, good: Path, tmp_path: Path, capfd) -> None:
    file = write(tmp_path / f"cut{suffix}")
    content = file.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        file.write_bytes(content[: int(share * len(content))])
        assert "cut" + suffix in refused(capfd, verb, "--model", good, "--source", file, *VERBS[verb])


def test_whole_images_of_every_kind_are_not_cut_short(photo: Path, tmp_path: Path) -> None:
    """With a preview inside, progressive, with restart markers, with data after the end."""
    picture = cv2.imread(str(photo))
    plain = photo.read_bytes()
    preview = b"\xff\xe1" + (len(plain) + 2).to_bytes(2, "big") + plain
    kinds = [plain + b"\xff\xda\x00more", plain[:2] + preview + plain[2:]]
    for options in ([cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]):
        kinds.append(cv2.imencode(".jpg", picture, options)[1].tobytes())
    for content in kinds:
        photo.write_bytes(content)
        assert read_image(photo).shape == picture.shape
    assert is_cut_short(plain[:2] + preview + plain[2:-2]), "the preview's end is not the picture's"
    png = cv2.imencode(".png", picture)[1].tobytes()
    assert not is_cut_short(png) and not is_cut_short(png + b"more") and is_cut_short(png[:-1])
    assert not is_cut_short(cv2.imencode(".bmp", picture)[1].tobytes()[:50]), "other formats are the decoder's matter"


@pytest.mark.parametrize("words", ["detect", "bench --quick", "bench --repeats 2"])
def test_an_image_beyond_opencvs_limit_is_one_sentence(words: str, good: Path, photo: Path) -> None:
    """The limit is read once in a process, so this takes one of its own."""
    command = [sys.executable, str(EDGE), *words.split(), "--model", str(good), "--source", str(photo)]
    environment = {**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": "4000"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "photo.jpg has more pixels than OpenCV decodes" in line and "OPENCV_IO_MAX_IMAGE_PIXELS" in line


def test_an_image_for_which_there_is_no_memory_is_one_sentence(good: Path, photo: Path, capfd, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "fromfile", fail)
    assert "more memory than there is" in refused(capfd, "detect", "--model", good, "--source", photo)


# --- models -----------------------------------------------------------------------------------------------------------


def model(path: Path, takes: int = TensorProto.FLOAT, gives: int = TensorProto.FLOAT, nodes: object = None) -> Path:
    """A file of free input size whose input and output have these types."""
    kind = helper.tensor_dtype_to_np_dtype(gives)
    constant = helper.make_tensor("", gives, (1, 7, 4), [b"x"] * 28 if gives == TensorProto.STRING else [0] * 28)
    graph = helper.make_graph(
        nodes or [helper.make_node("Constant", [], ["output0"], value=constant)],
        f"answers with {kind}",
        [helper.make_tensor_value_info("images", takes, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("output0", gives, [1, 7, "anchors"])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, metadata())
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["UINT8", "INT64", "DOUBLE", "BOOL", "STRING"])
def test_an_input_that_is_not_fed_is_named(kind: str, verb: str, photo: Path, tmp_path: Path, capfd) -> None:
    file = model(tmp_path / "odd.onnx", takes=getattr(TensorProto, kind))
    said = refused(capfd, verb, "--model", file, "--source", photo, *VERBS[verb])
    assert f"odd.onnx takes tensor({kind.lower()}); only tensor(float), tensor(float16) are fed here." in said


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["UINT8", "INT64", "BOOL", "STRING"])
def test_an_output_that_is_no_detection_is_named(kind: str, verb: str, photo: Path, tmp_path: Path, capfd) -> None:
    file = model(tmp_path / "odd.onnx", gives=getattr(TensorProto, kind))
    said = refused(capfd, verb, "--model", file, "--source", photo, *VERBS[verb])
    assert f"odd.onnx gives tensor({kind.lower()}); only tensor(float), " in said


@pytest.mark.parametrize(("takes", "gives"), [("FLOAT16", "FLOAT16"), ("FLOAT16", "FLOAT"), ("FLOAT", "DOUBLE")])
def test_other_floating_point_numbers_are_fed_and_read(takes: str, gives: str, tmp_path: Path) -> None:
    """The one score that the file knows comes from the image: it is its mean brightness."""
    kinds = getattr(TensorProto, takes), getattr(TensorProto, gives)
    place = np.zeros((1, 7, 1), helper.tensor_dtype_to_np_dtype(kinds[1]))
    place[0, 5] = 1
    box = np.zeros_like(place)
    box[0, :4, 0] = 16, 16, 8, 8
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Cast", ["mean"], ["cast"], to=kinds[1]),
        helper.make_node("Constant", [], ["place"], value=numpy_helper.from_array(place)),
        helper.make_node("Constant", [], ["box"], value=numpy_helper.from_array(box)),
        helper.make_node("Mul", ["cast", "place"], ["scored"]),
        helper.make_node("Add", ["scored", "box"], ["output0"]),
    ]
    detector = Detector(model(tmp_path / "m.onnx", *kinds, nodes), threads=1, conf=0.1)
    (found,) = detector.detect(np.full((32, 64, 3), 102, np.uint8))
    assert found == pytest.approx([12, 12, 20, 20, 0.4, 1], abs=1e-3)


@pytest.fixture
def breaking(tmp_path: Path) -> Path:
    """A model that loads, and fails when it runs: its input cannot be reshaped so."""
    shape = numpy_helper.from_array(np.array([1, 7, 5], np.int64))
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Reshape", ["images", "shape"], ["output0"], name="\x1b[2J/odd\nnode"),
    ]
    return model(tmp_path / "breaking.onnx", nodes=nodes)


@pytest.mark.parametrize("words", ["detect", "bench --quick", "bench --repeats 2"])
def test_a_node_that_fails_when_it_runs_is_one_sentence(words: str, breaking: Path, photo: Path, capfd) -> None:
    """On stderr stands nothing else: ONNX Runtime would log the error, too."""
    said = refused(capfd, *words.split(), "--model", breaking, "--source", photo)
    assert "breaking.onnx cannot be run (The input tensor cannot be reshaped to the requested shape" in said


def test_doctor_runs_the_model_once(breaking: Path, good: Path, tmp_path: Path, capfd) -> None:
    assert cli.main(["doctor", "--model", str(breaking), "--provider", "cpu"]) == 1
    assert "error: " in (said := capfd.readouterr().out) and "breaking.onnx cannot be run" in said
    nothing = toy(tmp_path / "nan.onnx", np.full_like(RAW_OUTPUT, np.nan), metadata())
    assert cli.main(["doctor", "--model", str(nothing), "--provider", "cpu"]) == 1
    assert "not finite numbers on CPUExecutionProvider" in capfd.readouterr().out
    assert cli.main(["doctor", "--model", str(good), "--provider", "cpu"]) == 0


def test_the_reason_of_a_failing_node_is_kept_and_its_place_in_the_source_is_not() -> None:
    where = "/src/providers/cpu/reshape_helper.h:91 onnxruntime::Helper::Helper(const Shape&, bool) a == b was false. "
    before = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'' "
    assert one_line(RuntimeError(f"{before}Status Message: {where}It does not fit.")) == "It does not fit"
    assert one_line(RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Odd rank.")) == "Odd rank"


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ("333", "takes sides that are multiples of 32, not 333x333: give a size such as 320x320."),
        ("64x1", "takes sides that are multiples of 32, not 64x1: give a size such as 64x32."),
        ("0", "Input sizes must be whole numbers of at least 1, not '0'."),
        ("-64", "Input sizes must be whole numbers of at least 1, not '-64'."),
        ("1e9", "Input sizes must be whole numbers of at least 1, not '1e9'."),
        ("320000", "An input size has sides of at most 16384 pixels, not '320000'."),
        ("9" * 30, f"An input size has sides of at most 16384 pixels, not '{'9' * 30}'."),
    ],
)
@pytest.mark.parametrize("runs", [["--quick"], ["--repeats", "2"]])
def test_a_size_that_cannot_be_is_refused(
    size: str, sentence: str, runs: list[str], photo: Path, tmp_path: Path, capfd
) -> None:
    """However many processes measure."""
    free = model(tmp_path / "free.onnx")
    said = refused(capfd, "bench", "--model", free, "--source", photo, f"--imgsz={size}", *runs, "--time-limit", "0.05")
    assert said.endswith(sentence)


def test_yolokds_own_bench_refuses_the_same(photo: Path, breaking: Path, tmp_path: Path, capsys) -> None:
    """Nothing is written, and the code is that of bad input."""
    file, bytes_ = model(tmp_path / "free.onnx"), model(tmp_path / "bytes.onnx", takes=TensorProto.UINT8)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[:-9])
    quick = ["quick=True", "time_limit=0.05", f"project={tmp_path / 'runs'}"]
    for words, sentence in (
        ([f"model={file}", f"source={photo}", "imgsz=333"], "multiples of 32"),
        ([f"model={file}", f"source={photo}", "imgsz=0"], "at least 1"),
        ([f"model={bytes_}", f"source={photo}"], "takes tensor(uint8)"),
        ([f"model={breaking}", f"source={photo}"], "cannot be run (The input tensor cannot be reshaped"),
        ([f"model={file}", f"source={cut}"], "cut.jpg is cut short"),
    ):
        assert sentence in refusal(capsys, tmp_path, "bench", *words, *quick)


@pytest.mark.parametrize("size", ["333", "64"])
def test_a_fixed_file_has_one_size(size: str, good: Path, photo: Path, capfd) -> None:
    said = refused(capfd, "bench", "--model", good, "--source", photo, f"--imgsz={size}", *HASTE)
    assert "good.onnx has a fixed input of 32x64: export one file for each size" in said


def test_an_input_for_which_there_is_no_memory_is_one_sentence(good: Path, photo: Path, capfd, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise cv2.error("OpenCV: Insufficient memory (Failed to allocate 99 bytes)")

    monkeypatch.setattr(cv2, "copyMakeBorder", fail)
    said = refused(capfd, "detect", "--model", good, "--source", photo)
    assert "An image of 90x120 cannot be fitted to" in said and "input of 32x64 (OpenCV: Insufficient memory" in said


def test_a_size_that_a_file_claims_has_the_same_bound(photo: Path, tmp_path: Path, capfd) -> None:
    file = toy(tmp_path / "m.onnx", RAW_OUTPUT, metadata(hw=(32, 64)) | {"imgsz": "[32, 90000]"})
    assert "the metadata entries 'imgsz' and 'names' are not" in refused(
        capfd, "detect", "--model", file, "--source", photo
    )


# --- names ------------------------------------------------------------------------------------------------------------

EVIL = "\x1b[31m\ryolokd_edge all is well\nyolokd_edge pass\x9b2J\u202e"  # escapes, new lines, another direction


def evil_bundle(folder: Path) -> Path:
    """An unpacked bundle in which everything that has a name has an odd one; its model finds one object."""
    output = np.zeros((1, 2, 6), np.float32)
    output[0, 0] = 8, 8, 40, 24, 0.9, 1
    names = {k: f"{EVIL}{k}" for k in range(3)}
    odd, image = f"{EVIL}.onnx", f"{EVIL}.png"
    (folder / "parity").mkdir(parents=True)
    own = metadata(E2E) | {"names": str(names)} | entry(E2E, student={"file": EVIL})
    toy(folder / odd, output, own)
    cv2.imwrite(str(folder / "parity" / "a.png"), np.full((32, 64, 3), 90, np.uint8))
    (folder / "parity" / "a.png").rename(folder / "parity" / image)
    limits = dict.fromkeys({*TOLERANCES, *FIGURES.values()}, 0.1)
    expected = {
        "reference": EVIL,
        "conf": 0.25,
        "iou": 0.7,
        "max_det": 300,
        "tolerance": dict.fromkeys(("fp32", "fp16", "int8"), limits),
        "images": {image: {"detections": {odd: [[8, 8, 40, 24, 0.9, 1]]}}},
    }
    (folder / "parity" / "expected_dets.json").write_text(json.dumps(expected))
    kept = {f"{odd}/{image}": output[0], f"{odd}/{image}/index": np.arange(2), "model_x": np.zeros(1)}
    with (folder / "parity" / "expected_raw.npz").open("wb") as file:
        np.savez(file, **kept)
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    manifest = {
        "schema": "yolokd.bundle/1",
        "contract": {
            "output": E2E,
            "names": {str(k): name for k, name in names.items()},
            "imgsz": [32, 64],
            "defaults": {"conf": 0.25, "iou": 0.7, "max_det": 300},
        },
        "models": {odd: {"precision": "fp32", "providers": ["cpu"]}},
        "files": {name: checksum(folder / name) for name in files},
        "provenance": {"student": {"file": EVIL}, "teachers": [{"file": EVIL}], "methods": [EVIL], "dataset": EVIL},
    }
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def labelled(bundle: Path, folder: Path, with_labels: bool) -> Path:
    """The bundle's images in a folder of that name, each with one object of the first class, or with none."""
    shutil.copytree(bundle / "parity", folder / "images", ignore=shutil.ignore_patterns("*.json", "*.npz"))
    for image in list((folder / "images").iterdir()) if with_labels else ():
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{image.stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return folder / "images"


def checksum(file: Path) -> dict[str, object]:
    return {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.parametrize("name", ["images", "bundle"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("detect --origin", 0),
        ("detect --origin --json", 0),
        ("detect --save", 0),
        ("bench --quick --time-limit 0.05", 0),
        ("bench --repeats 2 --time-limit 0.05", 0),
        ("profile --runs 1", 0),
        ("profile --runs 1 --json", 0),
        ("val", 2),
        ("val --labelled", 0),
        ("val --labelled --json", 0),
        ("verify --origin", 0),
        ("verify --origin --json", 0),
        ("doctor --provider cpu", 0),
        ("doctor --provider cpu --json", 0),
        ("detect --precision int8", 2),
        ("detect --provider ncnn", 2),
        ("verify --precision fp16", 2),
    ],
)
def test_no_name_does_anything_to_a_terminal(words: str, code: int, name: str, tmp_path: Path, capfd) -> None:
    """Nor looks like a line of ours: what is printed has as many lines as with plain names."""
    bundle = evil_bundle(tmp_path / (EVIL if name == "bundle" else "plain"))
    verb, *more = words.split()
    given = [verb, "--model", str(bundle)]
    given += ["--source", str(bundle / "parity")] if verb in ("detect", "bench", "profile") else []
    if verb == "val":
        given += ["--data", str(labelled(bundle, tmp_path / EVIL, "--labelled" in more))]
        more = [word for word in more if word != "--labelled"]
    given += [*more, str(tmp_path / EVIL)] if "--save" in more else more
    assert cli.main(given) == code
    shown = capfd.readouterr()
    text = shown.out + shown.err
    assert text and all(c.isprintable() or c == "\n" for c in text), text
    assert sum(line.startswith("yolokd_edge") for line in text.splitlines()) == (code != 0)
    if "--json" not in more:
        assert "\\x1b" in text, "the names were to be shown, or the test says nothing"


def test_an_error_holds_nothing_but_what_can_be_printed() -> None:
    """Wherever its text goes: doctor's findings, another program's log."""
    assert str(EdgeError(f"{EVIL} is bad.")).isprintable()


def test_a_failing_verify_shows_no_name_as_it_is(tmp_path: Path, capfd) -> None:
    bundle = evil_bundle(tmp_path / EVIL)
    (bundle / "parity" / "expected_dets.json").write_text("{}")
    said = refused(capfd, "verify", "--model", bundle)
    assert "checksum differs" in said and "\\x1b" in said
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["parity/expected_dets.json"] = checksum(bundle / "parity" / "expected_dets.json")
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert "names no reference" in refused(capfd, "verify", "--model", bundle)


def test_every_line_that_the_runtime_prints_is_looked_at_here() -> None:
    """A new `print` in the runtime needs a name in this list, and a case above if it shows what a file holds."""
    known = {
        "__main__.py": 1,  # packages that are missing
        "board_files/deepstream_check.py": 5,  # names of images, and paths that the user gave
        "profiling.py": 1,
        "live.py": 1,
        "layers.py": 1,
        "cli.py": 6,  # errors, capture, doctor twice, verify twice
        "common.py": 1,  # tables of capture, val and throughput, whose names are made printable there
        "detect.py": 2,
        "bench/sweep.py": 1,  # a number of seconds
        "bench/workers.py": 1,  # a word to the parent
        "progress.py": 2,  # what is done, in words of ours, and counts
        "runtimes/coverage.py": 1,  # a number to the parent
        "runtimes/tensorrt.py": 1,  # an engine that is being built
    }
    found = {}
    for file in sorted(EDGE.rglob("*.py")):
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        if count := sum(getattr(call.func, "id", "") == "print" for call in calls):
            found[file.relative_to(EDGE).as_posix()] = count
    assert found == known


def test_parity_of_values_that_are_no_numbers_is_an_error_with_its_code(photo: Path, tmp_path: Path, capfd) -> None:
    file = toy(tmp_path / f"{EVIL}.onnx", np.full_like(RAW_OUTPUT, np.inf), metadata())
    said = refused(capfd, "detect", "--model", file, "--source", photo, code=PARITY)
    assert re.search(r"\\x1b\[31m.*computes values that are not finite", said)
