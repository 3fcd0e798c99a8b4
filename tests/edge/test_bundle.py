"""The runtime's side of a bundle: what it refuses to read, and sources other than images. No model is trained here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.cli import contents
from helpers.edge import EDGE, copy_runtime, entry, metadata, toy

from yolokd_edge import cli, detector, verify
from yolokd_edge.bundle import EXPECTED, EXPECTED_RAW
from yolokd_edge.common import EdgeError, printable
from yolokd_edge.contract import E2E, PRECISIONS
from yolokd_edge.detector import load
from yolokd_edge.jetson import test_board
from yolokd_edge.jetson.options import read_budgets
from yolokd_edge.provenance import KEYS, known_provenance, provenance_text
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.verify import Layout, compare_detections, raw_difference

FINAL = np.zeros((1, 300, 6), np.float32)
FINAL[0, 0] = 8, 8, 40, 24, 0.9, 1


def write_bundle(folder: Path, contract: str = E2E, **changes: object) -> Path:
    """A small bundle, unpacked: a model that answers every image with one box, and a manifest that may be changed."""
    folder.mkdir()
    toy(folder / "model.onnx", FINAL, metadata(contract))
    (folder / "README.md").write_text("read me")
    said = {
        "schema": "yolokd.bundle/1",
        "contract": {
            "output": E2E,
            "names": {str(k): f"class{k}" for k in range(3)},
            "imgsz": [32, 64],
            "defaults": {"conf": 0.5, "iou": 0.6, "max_det": 7},
        },
        "models": {"model.onnx": {"precision": "fp32", "providers": ["cpu", "cuda", "trt"]}},
        "files": {n: checksum(folder / n) for n in ("model.onnx", "README.md")},
    }
    (folder / "bundle.json").write_text(json.dumps({**said, **changes}))
    return folder


def checksum(file: Path) -> dict[str, object]:
    return {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def pack(folder: Path, target: Path, more: Callable[[zipfile.ZipFile], object] = lambda archive: None) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
        more(archive)
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "edge")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for k in range(2):
        cv2.imwrite(str(tmp_path / f"images/{k}.png"), np.full((40, 80, 3), 90, np.uint8))
    return tmp_path / "images"


@pytest.mark.parametrize("packed", [True, False])
def test_a_bundle_is_read_as_zip_file_and_as_folder_with_its_own_settings(packed: bool, folder: Path) -> None:
    path = pack(folder, folder.parent / "edge.zip") if packed else folder
    detector = load(path, threads=1)
    assert (detector.conf, detector.iou, detector.max_det) == (0.5, 0.6, 7)
    assert (load(path, conf=0.1).conf, load(path, max_det=2).max_det) == (0.1, 2)
    assert len(detector.detect(np.zeros((32, 64, 3), np.uint8))) == 1
    assert detector.path.read_bytes() == (folder / "model.onnx").read_bytes()  # still there while it is in use


# --- bundles that are refused ---------------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def changed(folder: Path, **changes: object) -> Path:
    shutil.rmtree(folder)
    return write_bundle(folder, **changes)


def unlink(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def outside(folder: Path) -> Path:
    (folder.parent / "secret").write_text("read me")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(folder.parent / "secret")
    return folder


ZIP = "edge.zip"
BAD: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "changed byte in the folder": (
        lambda f, z: flip_a_byte(f / "model.onnx").parent,
        "model.onnx is not the file that was bundled",
    ),
    "changed byte in the zip file": (lambda f, z: flip_a_byte(pack(f, z)), "edge.zip is not an intact zip file"),
    "changed byte, then zipped": (
        lambda f, z: pack(flip_a_byte(f / "model.onnx").parent, z),
        "model.onnx is not the file that was bundled",
    ),
    "missing file": (lambda f, z: unlink(f, "README.md"), "the file README.md is missing"),
    "missing file, zipped": (lambda f, z: pack(unlink(f, "README.md"), z), "the file README.md is missing"),
    "no manifest": (lambda f, z: unlink(f, "bundle.json"), "is not a bundle: it holds no readable bundle.json"),
    "no manifest, zipped": (lambda f, z: pack(unlink(f, "bundle.json"), z), "edge.zip is not a bundle"),
    "cut short": (lambda f, z: cut(pack(f, z)), "edge.zip is not an intact zip file"),
    "leaves the folder": (
        lambda f, z: pack(f, z, lambda a: a.writestr("../../evil.txt", "x")),
        "'../../evil.txt' leaves the bundle's folder",
    ),
    "absolute path": (
        lambda f, z: pack(f, z, lambda a: a.writestr("/tmp/evil.txt", "x")),
        "'/tmp/evil.txt' leaves the bundle's folder",
    ),
    "backslashes": (
        lambda f, z: pack(f, z, lambda a: a.writestr("..\\evil.txt", "x")),
        "leaves the bundle's folder",
    ),
    "leaves the folder by its manifest": (
        lambda f, z: changed(f, files={"../images/0.png": {"bytes": 1, "sha256": ""}}),
        "'../images/0.png' leaves the bundle's folder",
    ),
    "link in the zip file": (lambda f, z: pack(f, z, link), "link is a link"),
    "link in the folder": (lambda f, z: outside(f), "README.md is a link that leaves"),
    "zip bomb": (lambda f, z: pack(f, z, lambda a: a.writestr("zeros", bytes(50_000_000))), "would unpack to 50 MB"),
    "unlisted file": (
        lambda f, z: pack(f, z, lambda a: a.writestr("more.py", "x")),
        "holds more.py, which its manifest",
    ),
    "newer schema": (lambda f, z: changed(f, schema="yolokd.bundle/2"), "yolokd.bundle/2, newer than yolokd.bundle/1"),
    "other schema": (lambda f, z: changed(f, schema="yolokd.latency/1"), "is not a manifest of the schema"),
    "no JSON": (lambda f, z: (f / "bundle.json").write_text("{") and f, "is not a manifest of the schema"),
    "a list": (lambda f, z: (f / "bundle.json").write_text("[]") and f, "is not a manifest of the schema"),
    "incomplete": (lambda f, z: changed(f, models=None), "bundle.json is incomplete (models)"),
    "unreadable entries": (lambda f, z: changed(f, models={"model.onnx": 3}), "has entries that cannot be read"),
    "other contract": (
        lambda f, z: changed(f, contract="nms_xyxy_conf_cls"),
        "declares the output contract nms_xyxy_conf_cls, its manifest e2e_xyxy_conf_cls",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("verb", ["detect --source images", "verify", "bench --source images --out report.json"])
def test_a_bad_bundle_is_one_sentence_and_nothing_is_written(
    case: str, verb: str, folder: Path, images: Path, monkeypatch, capfd
) -> None:
    spoil, sentence = BAD[case]
    monkeypatch.chdir(folder.parent)
    path, before = spoil(folder, folder.parent / ZIP), contents(folder.parent)
    assert cli.main([*verb.split(), "--model", path.name, "--threads", "1"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("yolokd_edge: ") and sentence in lines[0], lines
    assert contents(folder.parent) == before
    assert not list(Path("..").glob("evil.txt")) and not Path("/tmp/evil.txt").exists()


@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        ("names", {"0": "a", "1": "b", "2": "c"}, "class names"),
        ("imgsz", [64, 64], "input size"),
    ],
)
def test_a_manifest_that_contradicts_the_model_is_refused(
    part: str, value: object, sentence: str, folder: Path
) -> None:
    said = json.loads((folder / "bundle.json").read_text())
    said["contract"][part] = value
    (folder / "bundle.json").write_text(json.dumps(said))
    with pytest.raises(EdgeError, match=f"declares the {sentence} .* contradicts itself"):
        load(folder)


def test_a_precision_that_is_not_there_is_named(folder: Path, images: Path, capsys) -> None:
    arguments = ["detect", "--model", str(folder), "--source", str(images), "--precision", "int8"]
    assert cli.main(arguments) == 2
    assert (
        "holds no int8 model for the provider cpu, only model.onnx (fp32 for cpu/cuda/trt)" in capsys.readouterr().err
    )
    assert cli.main([*arguments[:2], str(folder / "model.onnx"), *arguments[3:]]) == 2
    assert "A precision can be chosen from a bundle" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["detect --source images", "verify", "bench --source images --quick"])
def test_every_verb_takes_the_options_of_an_engine(verb: str, folder: Path, images: Path, monkeypatch, capsys) -> None:
    seen = []

    def opened(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> None:
        seen.append((provider, tensorrt))
        raise EdgeError("stop here")

    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(detector, "open_model", opened)
    monkeypatch.setattr(verify, "read_expectations", lambda bundle: ({}, {}))
    words = [*verb.split(), "--model", "edge", "--fp16", "--cache", "engines"]
    assert cli.main([*words, "--provider", "trt"]) == 2
    assert seen == [("trt", TensorRT(True, "engines"))]
    capsys.readouterr()
    assert cli.main(words) == 2  # on the CPU it would silently do nothing
    assert "fp16 is an option of the provider trt" in capsys.readouterr().err and len(seen) == 1


def test_verify_needs_a_bundle_with_a_parity_pack(folder: Path, capsys) -> None:
    assert cli.main(["verify", "--model", str(folder)]) == 2
    assert "holds no parity/expected_dets.json" in capsys.readouterr().err
    assert cli.main(["verify", "--model", str(folder / "model.onnx")]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert cli.main(["verify"]) == 2  # this file lies in no bundle
    assert "No model: give --model" in capsys.readouterr().err


EXPECTATIONS = {
    "reference": "x", "conf": 0.25, "iou": 0.7, "max_det": 300,
    "tolerance": {p: {"raw_box": 1, "raw_score": 1, "box": 1, "conf": 1, "unmatched": 0} for p in PRECISIONS},
    "images": {"0.png": {"detections": {"model.onnx": [[8, 8, 40, 24, 0.9, 1]]}}},
}  # fmt: skip


def with_parity(folder: Path, raw: dict[str, np.ndarray] | None = None, **changes: object) -> Path:
    """Add a parity pack, its expectations changed and its checksums right."""
    (folder / "parity").mkdir()
    cv2.imwrite(str(folder / "parity/0.png"), np.full((32, 64, 3), 90, np.uint8))
    (folder / EXPECTED).write_text(json.dumps({**EXPECTATIONS, **changes}))
    np.savez(folder / EXPECTED_RAW, **({"0.png": FINAL[0], "0.png/index": np.arange(300)} if raw is None else raw))
    said = json.loads((folder / "bundle.json").read_text())
    said["files"] |= {n: checksum(folder / n) for n in ("parity/0.png", EXPECTED, EXPECTED_RAW)}
    (folder / "bundle.json").write_text(json.dumps(said))
    return folder


def test_verify_passes_on_something_and_never_on_nothing(folder: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(["verify", "--model", str(with_parity(folder)), "--threads", "1"]) == 0
    empty = write_bundle(tmp_path / "empty")
    toy(empty / "model.onnx", 0 * FINAL, metadata(E2E))
    said = json.loads((empty / "bundle.json").read_text())
    said["files"]["model.onnx"] = checksum(empty / "model.onnx")
    (empty / "bundle.json").write_text(json.dumps(said))
    nothing = {"images": {"0.png": {"detections": {"model.onnx": []}}}}
    with_parity(empty, {"0.png": 0 * FINAL[0], "0.png/index": np.arange(300)}, **nothing)
    capsys.readouterr()
    assert cli.main(["verify", "--model", str(empty), "--threads", "1"]) == 5
    assert "nothing was detected and nothing expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"conf": "a"}, {"conf": float("nan")}, {"iou": -1}, {"max_det": 10**400}, {"max_det": 1.5}, {"tolerance": 3},
        {"tolerance": {"fp32": {}}}, {"images": {}}, {"images": [1]}, {"images": {"../../secret.png": {}}},
        {"images": {"1.png": {}}}, {"images": {"0.png": 3}}, {"images": {"0.png": {"detections": {"model.onnx": [1]}}}},
        {"images": {"0.png": {"detections": {"model.onnx": [[1, 2, 3, 4, float("inf"), 0]]}}}}, {"reference": None},
        {"raw": {}}, {"raw": {"0.png": FINAL[0, :2], "0.png/index": np.arange(300)}},
        {"raw": {"0.png": FINAL[0], "0.png/index": np.arange(300) + 9}},
        {"raw": {"0.png": FINAL[0] * np.nan, "0.png/index": np.arange(300)}},
    ],
    ids=str,
)  # fmt: skip
def test_expectations_that_make_no_sense_are_one_sentence(changes: dict, folder: Path, capsys) -> None:
    with_parity(folder, **changes)
    assert cli.main(["verify", "--model", str(folder), "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "make the bundle again" in error


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("imgsz", ["32", "64"]), ("imgsz", [10**400, 64]), ("imgsz", [-1, 64]), ("imgsz", [float("nan"), 64]),
        ("defaults", {"conf": "0.5", "iou": 0.6, "max_det": 7}), ("defaults", {"conf": 0.5, "iou": 0.6, "max_det": -1}),
        ("defaults", {"conf": float("nan"), "iou": 0.6, "max_det": 7}),
        ("defaults", {"conf": 0.5, "iou": 10**400, "max_det": 7}),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_a_manifest_must_be_numbers(part: str, value: object, folder: Path, images: Path, capsys) -> None:
    said = json.loads((folder / "bundle.json").read_text())
    said["contract"][part] = value
    (folder / "bundle.json").write_text(json.dumps(said))
    assert detect(folder, images) == 2
    assert "has entries that cannot be read" in capsys.readouterr().err


def test_providers_of_a_manifest_must_be_texts(folder: Path, images: Path, capsys) -> None:
    said = json.loads((folder / "bundle.json").read_text())
    said["models"]["model.onnx"]["providers"] = [["cpu"], {}]
    (folder / "bundle.json").write_text(json.dumps(said))
    assert detect(folder, images) == 2
    assert "has entries that cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"args": "[1]"}, "'args' holds no named arguments"),
        ({"imgsz": "1e999"}, "are not a size and the names"),
        ({"imgsz": "[1e999, 2]"}, "are not a size and the names"),
        ({"names": "{0: 'a', 2: 'b', 3: 'c'}"}, "the names of classes 0, 1, 2"),
        ({"yolokd": "[1]"}, "names none of the output contracts"),
    ],
)
def test_metadata_that_makes_no_sense_is_one_sentence(
    changes: dict[str, str], sentence: str, images: Path, tmp_path: Path, capsys
) -> None:
    file = toy(tmp_path / "a.onnx", FINAL, {**metadata(E2E), **changes})
    assert detect(file, images) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_outputs_that_are_no_numbers_are_an_error(images: Path, tmp_path: Path, capsys) -> None:
    for k, bad in enumerate((np.nan, np.inf)):
        output = FINAL.copy()
        output[0, 0, 2] = bad
        file = toy(tmp_path / f"{k}.onnx", output, metadata(E2E))
        assert detect(file, images, "--json") == 5
        out, error = capsys.readouterr()
        assert out == "" and "computes values that are not finite numbers" in error and error.count("\n") == 1
        words = ["bench", "--model", str(file), "--source", str(images), "--quick", "--time-limit", "1"]
        assert cli.main([*words, "--out", str(tmp_path / "r.json")]) == 5
        assert "not finite" in capsys.readouterr().err and not (tmp_path / "r.json").exists()
    beyond = FINAL.copy()
    beyond[0, 0, 5] = 7
    assert detect(toy(tmp_path / "c.onnx", beyond, metadata(E2E)), images) == 5
    assert "classes that its metadata does not name" in capsys.readouterr().err


def test_what_a_file_says_cannot_write_lines_of_its_own(images: Path, tmp_path: Path, capsys) -> None:
    names = {0: "a", 1: "b\nyolokd: all is well\x1b[2J", 2: "c"}
    file = toy(tmp_path / "a.onnx", FINAL, {**metadata(E2E), "names": str(names)})
    assert detect(file, images) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and len(out.splitlines()) == 2 and "b\\nyolokd" in out
    assert detect(tmp_path / "no\nyolokd: fine.onnx", images) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert printable("é ü\t\u202e") == "é ü\\t\\u202e"


def test_a_defect_ends_with_70_and_a_traceback(folder: Path, images: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("yolokd_edge.detect.load", lambda *given, **more: 1 / 0)
    assert detect(folder, images) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_video_or_an_image_of_too_many_pixels_says_what_it_is(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    assert cli.main(["bench", "--model", str(folder), "--source", str(tmp_path / "clip.mp4"), "--quick"]) == 2
    assert "clip.mp4 cannot be opened as a video" in capsys.readouterr().err


def test_an_unknown_provider_is_named_before_the_files_that_a_bundle_holds(folder: Path, images: Path, capsys) -> None:
    assert cli.main(["bench", "--model", str(folder), "--source", str(images), "--provider", "zzz", "--quick"]) == 2
    assert "Unknown provider 'zzz'" in capsys.readouterr().err


# --- what verify compares -------------------------------------------------------------------------------------------


def test_detections_are_compared_one_to_one() -> None:
    a = np.float32([[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 1], [50, 50, 60, 60, 0.3, 0]])
    same = compare_detections(a, a[::-1], 0.25)
    assert same == {"n": 3, "unmatched": 0, "max_box_diff": 0, "max_conf_diff": 0}
    b = a.copy()
    b[0, 2] += 1.5
    b[1, 4] -= 0.1
    found = compare_detections(a, b[:2], 0.25)
    assert (found["unmatched"], found["max_box_diff"]) == (1, 1.5)
    assert found["max_conf_diff"] == pytest.approx(0.1)
    assert compare_detections(a, b[:2], 0.35)["unmatched"] == 0  # 0.3 may drop out by rounding
    swapped = a.copy()
    swapped[0, 5] = 2
    assert compare_detections(a, swapped, 0.25)["unmatched"] == 2
    none = np.zeros((0, 6), np.float32)
    assert compare_detections(none, a, 0.25)["unmatched"] == 3
    assert compare_detections(none, none, 0.25)["unmatched"] == 0


def test_rows_whose_order_rounding_decides_are_not_compared_by_place() -> None:
    rows = np.float32([[0, 0, 9, 9, 0.9, 0], [5, 5, 9, 9, 0.5, 0], [1, 1, 4, 4, 0.499, 1], [0, 0, 0, 0, 0, 0]])
    swapped = rows[[0, 2, 1, 3]][None]
    places = np.arange(4)
    found = raw_difference(swapped, rows, places, Layout(False, slice(4, 5)))
    assert found["max_abs_box"] == 0 and found["max_abs_score"] == pytest.approx(0.001, rel=1e-3)
    swapped[0, 0, 1] = 3
    assert raw_difference(swapped, rows, places, Layout(False, slice(4, 5)))["max_abs_box"] == 3


# --- video and camera -----------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twelve frames of noise."""
    path, rng = tmp_path / "clip.avi", np.random.default_rng(0)
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (80, 48))
    for _ in range(12):
        video.write(rng.integers(0, 255, (48, 80, 3), np.uint8))
    video.release()
    return path


def detect(folder: Path, source: object, *more: object) -> int:
    return cli.main(["detect", "--model", str(folder), "--threads", "1", "--source", str(source), *map(str, more)])


def test_a_video_is_read_to_its_end_and_drawn(folder: Path, clip: Path, tmp_path: Path, capfd) -> None:
    assert detect(folder, clip, "--json", "--save", tmp_path / "drawn") == 0
    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert err == "" and [line["frame"] for line in lines] == list(range(12))
    assert lines[0]["hw"] == [48, 80] and len(lines[0]["detections"]) == 1
    drawn = cv2.VideoCapture(str(tmp_path / "drawn/clip.avi"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 12 and drawn.get(cv2.CAP_PROP_FPS) == 12.5
    assert detect(folder, clip, "--save", tmp_path / "drawn") == 2
    assert "clip.avi exists already" in capfd.readouterr().err
    assert detect(folder, clip, "--frames", 3) == 0
    assert capfd.readouterr().out.splitlines()[-1] == f"{clip} frame 2: 1 class1"


def test_a_video_that_breaks_off_is_said_so(folder: Path, clip: Path, capfd) -> None:
    data = bytearray(clip.read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(2 * len(data) // 3 - len(data) // 3)
    clip.write_bytes(data)
    code, (out, err) = detect(folder, clip), capfd.readouterr()
    assert code == 2 and 1 < len(out.splitlines()) < 12
    assert err.count("\n") == 1 and f"ended after {len(out.splitlines())} of 12 frames" in err


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("99", "99 cannot be opened as a camera"),
        ("/dev/video99", "/dev/video99 cannot be opened as a camera"),
        ("videotestsrc ! nowhere ! appsink", "built without GStreamer, as pip's are"),
        ("nowhere.mp4", "There is no video file nowhere.mp4"),
        ("text.mp4", "text.mp4 cannot be opened as a video"),
        ("nowhere.png", "no image file or folder nowhere.png"),
    ],
)
def test_a_source_that_is_not_there_is_one_sentence(source: str, sentence: str, folder: Path) -> None:
    (folder.parent / "text.mp4").write_text("no video")
    before = contents(folder.parent)
    command = [sys.executable, EDGE, "detect", "--model", "edge", "--source", source, "--save", "drawn"]
    run = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)  # OpenCV is told once to be quiet
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and sentence in run.stderr
    assert contents(folder.parent) == before


class Camera:
    """Gives two pictures, then none."""

    left = 2

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return 0.0

    def read(self):
        self.left -= 1
        return self.left >= 0, np.zeros((48, 80, 3), np.uint8)

    def release(self) -> None:
        pass


def test_a_camera_that_stops_is_said_so_and_frames_ends_one_that_does_not(folder: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *a: Camera())
    assert detect(folder, "0") == 2
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2 and "The camera 0 gave no more pictures after 2 frames" in err
    assert detect(folder, "rtsp://somewhere/stream", "--frames", "2") == 0


def test_drawn_images_never_replace_a_file(folder: Path, images: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn/1.png").write_text("mine")
    before = contents(tmp_path)
    assert detect(folder, images, "--save", tmp_path / "drawn") == 2
    assert "1.png exists already" in capfd.readouterr().err
    assert contents(tmp_path) == before


# --- the board's tests: what they make of a disturbed measurement ----------------------------------------------------


def judged(verdict: str, *reasons: str, problem: str | None = "It is slow.") -> str:
    """What the board's tests make of a record: pass, or how they end otherwise."""
    record = {"stability": {"verdict": verdict, "reasons": list(reasons)}}
    try:
        test_board.judge(record, problem)
    except (pytest.fail.Exception, pytest.skip.Exception) as outcome:
        return f"{type(outcome).__name__}: {outcome}"
    return "pass"


def test_a_failure_that_other_programs_may_have_caused_is_inconclusive() -> None:
    busy = "contended: the process had the CPU for 71% of the measured time"
    assert judged("valid") == "Failed: It is slow."
    assert judged("invalid", "throttled: the GPU clock fell from 900 to 600 MHz") == "Failed: It is slow."
    assert judged("invalid", "drift: block medians differ by 20%", busy) == (
        f"Skipped: inconclusive: It is slow. But the device was not idle: {busy}."
    )
    assert judged("invalid", busy, problem=None) == "pass"  # within the budget although the others took time


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ([9.0, 10.0], "pass"),
        ([9.0, 10.1], "Skipped: inconclusive: total.p99 is 9.50 ms, and its 95 % interval of 9.00 to 10.10 ms holds"),
        ([10.1, 11.0], "Failed: total.p99 is 9.50 ms, over the budget of 10 ms"),
        (None, "Skipped: inconclusive: total.p99 is 9.50 ms, of which no interval can be told"),
    ],
)
def test_a_budget_is_judged_by_the_interval_not_by_the_point(ends: list[float] | None, outcome: str) -> None:
    record = {"stability": {"verdict": "valid", "reasons": []}}
    try:
        test_board.judge_budget(read_budgets("total.p99=10ms")[0], "total.p99", 9.5, ends, "(x)", record)
        found = "pass"
    except (pytest.fail.Exception, pytest.skip.Exception) as ended:
        found = f"{type(ended).__name__}: {ended}"
    assert found.startswith(outcome), found


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--budget", "total.p99=15"], 2, "is no budget: write a stage"),
        (["--provider", "cuda"], 4, "CUDAExecutionProvider is not in this ONNX Runtime build"),
        (["--provider", "zzz"], 2, "Unknown provider 'zzz'"),
        (["--soak", "0", "-k", "doubtful"], 3, "incon"),
    ],
)
def test_the_board_tests_end_with_the_code_that_is_documented(
    words: list[str], code: int, sentence: str, folder: Path, images: Path
) -> None:
    with_board_tests(folder)
    # A test of its own: how many frames a real run gets, and so whether it can tell, is a matter of the machine.
    (folder / "jetson/test_doubtful.py").write_text(
        "import pytest\ndef test_doubtful(): pytest.skip('inconclusive: too few frames.')\n"
    )
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "jetson",
        "-qrs",
        "-p",
        "no:cacheprovider",
        "--source",
        str(images),
    ]
    result = subprocess.run([*command, "--threads", "1", *words], cwd=folder, capture_output=True, text=True)
    assert result.returncode == code and sentence in result.stdout + result.stderr, result.stdout + result.stderr


def with_board_tests(folder: Path) -> None:
    """Add the runtime and its tests, as `yolokd bundle` does."""
    copy_runtime(folder)
    shutil.copytree(EDGE / "jetson", folder / "jetson")
    (folder / "jetson/options.py").rename(folder / "jetson/conftest.py")


def test_the_board_tests_say_what_is_wrong_with_the_bundle_that_they_lie_in(folder: Path) -> None:
    with_board_tests(folder)
    (folder / "README.md").unlink()
    command = [sys.executable, "-B", "-m", "pytest", "jetson", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 2 and "the file README.md is missing" in result.stdout + result.stderr


SOAK = """
import numpy as np

HOW = {"threads": 1, "provider": "trt", "fp16": True, "cache": "engines"}

def pytest_collection_finish():
    from yolokd_edge.bench import sweep  # the bundle's: not before its conftest was read

    def collect(options):
        assert options.limits.t_min_s == 60 and {key: getattr(options, key) for key in HOW} == HOW
        total = np.linspace(10e6, %s, 300).astype("int64")
        stages = {"total": {"p50": 10.0}}
        record = {
            "results": {"n": 300, "duration_s": 60.0, "stages": stages}, "thermal": None,
            "stability": {"verdict": %r, "reasons": %r},
        }
        return [record], [{"total": total, "start": total.cumsum()}]
    sweep.collect = collect
"""


@pytest.mark.parametrize(
    ("last_ns", "verdict", "reasons", "code", "sentence"),
    [
        ("10e6", "valid", [], 0, "1 passed"),
        ("12e6", "invalid", ["drift: x"], 1, "After 60 s: the last third took 1.129 times as long as the first, more"),
        ("10e6", "invalid", ["throttled: cooling device 0 rose by 1"], 1, "After 60 s: throttled: cooling device 0"),
        ("12e6", "invalid", ["drift: x", "contended: y"], 3, "the device was not idle: contended: y."),
        ("10e6", "invalid", ["contended: y"], 3, "inconclusive: the measurement is not valid: contended: y."),
    ],
)
def test_a_soak_is_judged_by_its_drift_and_the_verdict_of_bench(
    last_ns: str, verdict: str, reasons: list[str], code: int, sentence: str, folder: Path, tmp_path: Path
) -> None:
    with_board_tests(folder)
    (tmp_path / "scripted.py").write_text(SOAK % (last_ns, verdict, reasons))
    words = [
        "jetson/test_board.py",
        "-qrs",
        "-k",
        "soak",
        "--soak",
        "60",
        *("--threads", "1", "--provider", "trt", "--fp16", "--cache", "engines"),
        "-p",
        "scripted",
        "--source",
        ".",
    ]
    command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", *words]
    path = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{folder}"}
    result = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True)
    assert (result.returncode, sentence in result.stdout) == (code, True), result.stdout + result.stderr


# --- who taught the model -------------------------------------------------------------------------------------------

BIG, OTHER = {"file": "big.pt", "sha256": "0"}, {"file": "other.pt", "sha256": "1"}
TAUGHT = {
    "student": {"file": "best.pt", "sha256": "2"},
    "teachers": [BIG, OTHER],
    "start": "teacher",
    "methods": {"cwd": {"tau": 1.0}, "logit": {}},
    "gain": 1.0,
    "dataset": "scenes.yaml",
}
SENTENCE = (
    "student best.pt, taught by big.pt and other.pt (cwd, logit), started from its teacher big.pt, on scenes.yaml"
)


@pytest.mark.parametrize(
    ("provenance", "sentence"),
    [
        (TAUGHT, SENTENCE),
        ({**TAUGHT, "start": "own", "dataset": None}, SENTENCE.partition(", started")[0]),
        ({"teacher": BIG}, "taught by big.pt"),  # of an older bundle
        ({"teacher": BIG, "start": "teacher"}, "taught by big.pt, started from its teacher big.pt"),
        ({"student": {"file": "best.pt"}, "teachers": None, "methods": None}, "student best.pt"),
        ({"student": 3, "teachers": ["a.pt", None, {}, 4], "methods": "cwd"}, "taught by a.pt"),
        ({"dataset": "scenes.yaml"}, None),
        ({}, None),
        (None, None),
        ([TAUGHT], None),
    ],
)
def test_provenance_is_a_sentence_whatever_is_missing(provenance: object, sentence: str | None) -> None:
    assert provenance_text(provenance) == sentence
    known = known_provenance(provenance)
    assert known is None or set(known) <= set(KEYS) and None not in known.values()


def test_doctor_verify_and_detect_say_who_taught_the_model(tmp_path: Path, images: Path, monkeypatch, capsys) -> None:
    folder = write_bundle(tmp_path / "edge", provenance=TAUGHT)
    assert cli.main(["doctor", "--model", str(folder), "--provider", "cpu"]) == 0
    assert f"note: model.onnx: {SENTENCE}\n" in capsys.readouterr().out
    words = ["detect", "--model", str(folder), "--source", str(images), "--origin"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"model.onnx: {SENTENCE}"
    assert cli.main([*words, "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first == {"model": "model.onnx", "provenance": TAUGHT}
    figures = {"model": "model.onnx", "pass": True}
    monkeypatch.setattr(cli, "verify_bundle", lambda *given, **more: dict(figures))
    monkeypatch.setattr(cli, "parity_text", lambda figures: "all is well")
    assert cli.main(["verify", "--model", str(folder), "--origin"]) == 0
    assert capsys.readouterr().out == f"all is well\nmodel.onnx: {SENTENCE}\n"
    assert cli.main(["verify", "--model", str(folder), "--origin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**figures, "provenance": TAUGHT}


def test_a_single_file_says_what_its_metadata_does(tmp_path: Path, images: Path, capsys) -> None:
    props = {**metadata(E2E), **entry(E2E, teachers=[BIG], methods={"cwd": {}})}
    file, bare = toy(tmp_path / "a.onnx", FINAL, props), toy(tmp_path / "b.onnx", FINAL, metadata(E2E))
    for model, sentence in ((file, "taught by big.pt (cwd)"), (bare, "nothing is known of its training")):
        assert cli.main(["detect", "--model", str(model), "--source", str(images), "--origin"]) == 0
        assert capsys.readouterr().out.splitlines()[0] == f"{model.name}: {sentence}"


def test_doctor_in_an_unpacked_bundle_looks_at_the_bundle(folder: Path) -> None:
    copy_runtime(folder)
    command = [sys.executable, "-B", "-m", "yolokd_edge", "doctor"]
    run = subprocess.run([*command, "--provider", "cpu"], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0 and "note: model.onnx runs on CPUExecutionProvider" in run.stdout, run.stderr
    (folder / "README.md").unlink()
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 1 and "the file README.md is missing" in run.stdout
