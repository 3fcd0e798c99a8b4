"""`yolokd export`: a file is kept only if it computes what its checkpoint computes, and says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers.cli import contents, refusal
from onnx import numpy_helper
from ultralytics import YOLO

import yolokd
from yolokd import cli, compat
from yolokd.errors import UsageError
from yolokd.onnx import export as verb
from yolokd.onnx import formats, parity
from yolokd_edge.bench.facts import parity_facts
from yolokd_edge.boxes import match_detections
from yolokd_edge.contract import E2E, NMS, RAW
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_image


@pytest.fixture(scope="module")
def exported(tmp_path_factory, teacher) -> Path:
    """The bundled teacher with the default contract, for an input that is not square."""
    return yolokd.export(teacher, tmp_path_factory.mktemp("exported") / "teacher.onnx", imgsz=[96, 160])


@pytest.fixture(scope="module")
def with_nms(tmp_path_factory, teacher) -> Path:
    """The bundled teacher with thresholds of its own in the graph."""
    file = tmp_path_factory.mktemp("with_nms") / "teacher.onnx"
    return yolokd.export(teacher, file, contract="nms", imgsz=160, conf=0.1, max_det=3, simplify=False)


@pytest.fixture
def instead(monkeypatch, tmp_path_factory):
    """Function: let the exporter give this file, which saves seconds; returns what it will be asked for."""

    def replace(file: Path) -> dict:
        asked = {}

        def copy(student, form, arguments):
            asked.update(arguments)
            return Path(shutil.copy(file, tmp_path_factory.mktemp("copy")))

        monkeypatch.setattr(formats, "write", copy)
        return asked

    return replace


@pytest.fixture(scope="module")
def dual(tmp_path_factory, untrained) -> Path:
    """A YOLO26 that detects: without training, but with live features and boxes of positive size."""
    torch.manual_seed(0)
    student = YOLO(untrained("yolo26n"))
    model = student.model.float().train()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        model(torch.rand(8, 3, 64, 64))
    for branch, std, bias in (("cv2", 0.02, 2.0), ("cv3", 0.05, -4.0)):
        for tower in (t for name in (branch, f"one2one_{branch}") for t in getattr(model.model[-1], name)):
            tower[-1].weight.data.normal_(0, std)
            tower[-1].bias.data.fill_(bias)
    file = tmp_path_factory.mktemp("dual") / "dual.pt"
    student.save(file)
    return file


def entry(file: Path) -> dict:
    """The metadata entry "yolokd" of a file that onnx accepts."""
    model = onnx.load(file)
    onnx.checker.check_model(model)
    return json.loads({p.key: p.value for p in model.metadata_props}["yolokd"])


def damage(file: Path) -> None:
    """Change the last convolution's bias by a little."""
    model = onnx.load(file)
    biases = [i for i in model.graph.initializer if i.name.endswith("bias") and len(i.dims) == 1]
    for bias in biases:
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.05), bias.name))
    assert biases
    onnx.save(model, file)


def test_the_file_is_proven_and_says_what_it_is(exported, teacher):
    made = entry(exported)
    assert made["schema"] == "yolokd.export/1" and made["yolokd_version"] == yolokd.__version__
    assert made["output_contract"] == Detector(exported).contract.output == RAW
    assert made.keys() >= {"teacher", "methods", "gain", "dataset", "accuracy", "parity"}
    figures = made["parity"]
    assert figures["pass"] and figures["n_images"] >= 2 and figures["dets"]["n"] >= 5
    assert figures["dets"]["unmatched"] == 0 and figures["dets"]["f1_iou50"] == 1
    assert figures["dets"]["max_box_diff"] <= figures["tolerance"]["box"]
    assert figures["dets"]["max_conf_diff"] <= figures["tolerance"]["conf"]
    assert figures["raw"]["max_abs_box"] <= figures["tolerance"]["raw_box"]
    assert figures["raw"]["max_abs_score"] <= figures["tolerance"]["raw_score"]
    assert figures["raw"]["cos"] > 0.9999 and figures["reference"].startswith("teacher.pt")


def test_images_to_compare_on_are_colour_and_not_square(scenes):
    """Grey or square ones would hide a swapped channel or a wrong letterbox."""
    frames = [read_image(p) for p in parity.real_images(None)]
    assert any(f.shape[0] > f.shape[1] for f in frames) and any(f.shape[0] < f.shape[1] for f in frames)
    assert all(np.abs(f[..., 0].astype(int) - f[..., 2]).mean() > 5 for f in frames)
    folder = scenes.parent / "images" / "val"
    assert {p.parent for p in parity.real_images({"val": str(folder)})} == {parity.real_images(None)[0].parent, folder}


def test_rounding_that_tips_nms_is_no_difference(teacher, exported, monkeypatch):
    """Of two boxes at the overlap limit the last digit decides which goes: equal predictions must be judged equal."""
    infer, moved = Detector.infer, np.random.default_rng(0)

    def rounded(self, blob):
        out = infer(self, blob)
        return out + moved.uniform(-1, 1, out.shape).astype(np.float32) * np.array([[5e-3]] * 4 + [[1e-5]] * 10)

    monkeypatch.setattr(Detector, "infer", rounded)
    found = parity.compare(teacher, exported, parity.real_images(None), {"conf": 1e-4})
    assert found["pass"] and found["dets"]["unmatched"] == 0 and found["dets"]["n"] > 100
    assert 1e-3 < found["raw"]["max_abs_box"] < 1e-2


def test_images_of_a_nested_split_and_without_damaged_ones(tmp_path):
    """Ultralytics looks into folders below, and passes over what cannot be decoded."""
    (tmp_path / "valid" / "images").mkdir(parents=True)
    bus = parity.real_images(None)[0]
    good = tmp_path / "valid" / "images" / f"b{bus.suffix}"
    good.write_bytes(bus.read_bytes())
    (tmp_path / "valid" / "images" / "a.jpg").write_bytes(b"cut short")
    (tmp_path / "empty").mkdir()
    assert parity.real_images({"val": str(tmp_path / "valid")}) == [*parity.real_images(None), good]
    assert parity.real_images({"val": str(tmp_path / "empty")}) == parity.real_images(None)


def test_provenance_and_accuracy_travel_from_the_checkpoint(teacher, tmp_path):
    made_by = {
        "teacher": {"file": "big.pt", "sha256": "0"},
        "methods": {"pkd": {"gain": 1.0}},
        "gain": 2.0,
        "dataset": "scenes.yaml",
        "accuracy": {"dataset": "scenes.yaml", "map50": 0.5, "end2end": False, "imgsz": 160},
    }
    torch.save({**torch.load(teacher, weights_only=False), "yolokd": made_by}, tmp_path / "best.pt")
    assert cli.main(["export", f"model={tmp_path / 'best.pt'}", "imgsz=160"]) == 0
    made = entry(tmp_path / "best.onnx")
    assert {k: made[k] for k in made_by} == made_by and made["parity"]["reference"].startswith("best.pt")
    for contract, hw, why in (
        (E2E, (160, 160), "measured on the raw head, not on the NMS-free one"),
        (RAW, (320, 320), "measured at another size"),
        (RAW, (160, 96), "measured at another size"),
        (NMS, (160, 160), "measured at a confidence of 0.001, and the file knows none below its own"),
    ):
        assert verb.describe(made_by, contract, hw)["accuracy"] is None, why
    assert verb.describe(made_by, RAW, (160, 160))["accuracy"] == made_by["accuracy"]
    assert verb.describe({}, RAW, (160, 160))["accuracy"] is None
    missing = {}
    assert parity_facts(Detector(tmp_path / "best.onnx").contract, missing)["pass"] and not missing


def test_the_size_is_that_of_the_training_by_default(teacher, exported, instead, tmp_path):
    """The bundled teacher was trained at 160 px."""
    asked = instead(exported)
    yolokd.export(teacher, tmp_path / "new" / "x.onnx", opset=17)
    assert (
        asked == {**compat.head_arguments("raw"), "imgsz": 160, "opset": 17} and (tmp_path / "new" / "x.onnx").is_file()
    )


def test_thresholds_in_the_graph_are_those_of_the_comparison(with_nms, teacher):
    made = entry(with_nms)
    assert made["output_contract"] == Detector(with_nms).contract.output == NMS
    assert made["parity"]["pass"] and 0 < made["parity"]["dets"]["n"] <= 6 and made["parity"]["raw"] is None
    assert not parity.compare(teacher, with_nms, parity.real_images(None), {"conf": 0.05})["pass"]


def test_the_nms_free_head_is_compared_by_its_rows(dual, tmp_path):
    made = entry(yolokd.export(dual, tmp_path / "x.onnx", contract="e2e", imgsz=64))
    rows = made["parity"]["rows"]
    assert made["output_contract"] == E2E and made["parity"]["pass"]
    assert rows["n"] > 50 and rows["max_abs_box"] < 0.1 and rows["max_abs_score"] < 1e-3
    detector = Detector(tmp_path / "x.onnx", conf=0.05)
    assert len(detector.detect(read_image(parity.real_images(None)[0]))) > 10

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "row_difference", lambda a, b: {"n": 9, "max_abs_box": 0.11, "max_abs_score": 0.0})
        assert not parity.compare(dual, tmp_path / "x.onnx", parity.real_images(None))["pass"]
    damage(tmp_path / "x.onnx")
    worse = parity.compare(dual, tmp_path / "x.onnx", parity.real_images(None))
    assert not worse["pass"] and worse["rows"]["max_abs_score"] > worse["tolerance"]["raw_score"]


def test_nothing_to_compare_is_no_proof(teacher, with_nms, instead, tmp_path, capsys):
    """Without any detection a file with NMS shows nothing: neither a pass nor a difference."""
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((40, 60, 3), 114, np.uint8))
    instead(with_nms)
    given = [f"model={teacher}", "contract=nms", f"out={tmp_path / 'x.onnx'}", f"source={tmp_path / 'grey.png'}"]
    said = refusal(capsys, tmp_path, "export", *given)
    assert "detects nothing" in said and "source=" in said


def test_a_file_that_differs_is_not_kept(teacher, exported, instead, tmp_path, tmp_path_factory, capsys):
    """Exit code 5, and what was there before stays."""
    damaged = Path(shutil.copy(exported, tmp_path_factory.mktemp("damaged")))
    damage(damaged)
    instead(damaged)
    (tmp_path / "x.onnx").write_text("mine")
    before = contents(tmp_path)
    assert cli.main(["export", f"model={teacher}", f"out={tmp_path / 'x.onnx'}", "exist_ok=True"]) == 5
    error = capsys.readouterr().err
    assert error.startswith("yolokd: ") and error.count("\n") == 1 and "not kept" in error
    assert contents(tmp_path) == before


def test_another_contract_than_asked_for_is_refused(teacher, with_nms, instead, tmp_path, capsys):
    instead(with_nms)
    said = refusal(capsys, tmp_path, "export", f"model={teacher}", f"out={tmp_path / 'x.onnx'}")
    assert "contract=raw was asked for" in said


def test_every_difference_fails(exported, teacher, tmp_path):
    """A channel swap, another checkpoint, and a metadata slip that leaves the network as it is."""
    images = parity.real_images(None)
    assert parity.compare(teacher, exported, images)["pass"]
    other = YOLO(teacher)
    torch.manual_seed(0)
    for p in other.model.model[-1].parameters():
        p.data += 1e-3 * torch.randn_like(p)
    other.save(tmp_path / "other.pt")
    assert not parity.compare(tmp_path / "other.pt", exported, images)["pass"]

    class Swapped(Detector):
        def preprocess(self, frame):
            return super().preprocess(np.ascontiguousarray(frame[..., ::-1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "Detector", Swapped)
        assert not parity.compare(teacher, exported, images)["pass"]


@pytest.mark.parametrize(("box", "score", "passes"), [(0.09, 9e-4, True), (0.11, 0.0, False), (0.0, 1.1e-3, False)])
def test_the_whole_output_counts_where_nothing_is_detected(
    box, score, passes, exported, teacher, tmp_path, monkeypatch
):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((40, 60, 3), 114, np.uint8))
    monkeypatch.setattr(
        parity, "_raw_difference", lambda *outputs: {"max_abs_box": box, "max_abs_score": score, "cos": 1.0}
    )
    figures = parity.compare(teacher, exported, [tmp_path / "grey.png"])
    assert figures["dets"]["n"] == 0 and figures["pass"] is passes


def test_boxes_are_matched_one_to_one_by_class_and_overlap():
    a = np.array([[0, 0, 10, 10, 0.9, 1], [0, 0, 10, 10, 0.8, 2], [50, 50, 60, 50, 0.1, 0]], float)
    b = np.array([[0, 0, 10, 11, 0.9, 1], [0, 0, 10, 10, 0.9, 1], [50, 50, 60, 50, 0.1, 0]], float)
    assert sorted((i, j) for i, j, _ in match_detections(a, b)) == [(0, 1), (2, 2)], "an empty box equals itself"
    assert match_detections(a[:0], b) == match_detections(a, b[:0]) == []


def test_rows_of_equal_score_may_come_in_any_order():
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [rng.uniform(0, 64, (8, 4)), np.array([[9, 8, 7, 7, 7, 7, 1, 1]]).T / 10, np.zeros((8, 1))], 1
    )
    swapped = rows[[0, 1, 5, 4, 3, 2, 7, 6]]
    assert parity.row_difference(rows[None], swapped[None]) == {"n": 6, "max_abs_box": 0, "max_abs_score": 0}
    swapped[2, 0] += 3
    assert parity.row_difference(rows[None], swapped[None])["max_abs_box"] == pytest.approx(3)
    swapped[2, 0] -= 3
    swapped[0, 5] = 1  # another class
    assert parity.row_difference(rows[None], swapped[None])["max_abs_box"] > 3


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("model=gone.pt", "model=gone.pt is not a checkpoint"),
        ("model=5", "model=5 is not a checkpoint"),
        ("model=cut.pt", "model=cut.pt is not a checkpoint"),
        ("model=text.pt", "model=text.pt is not a checkpoint"),
        ("model=mine.onnx", "model=mine.onnx is not a checkpoint"),
        ("out=mine.onnx", "mine.onnx exists already"),
        ("out=x.pt", "does not end in .onnx"),
        ("out=5", "does not end in .onnx"),
        ("out=text.pt/x.onnx", "cannot be written"),
        ("contract=foo", "contract=foo is unknown; known are raw, e2e, nms"),
        ("contract=5", "contract=5 is unknown"),
        ("contract=e2e", "needs an NMS-free head"),
        ("format=engine", "does not end in .engine"),
        ("dynamic=True", "one fixed shape"),
        ("half=True", "yolokd bundle fp16=True"),
        ("quantize=8", "trained with quantize=8 becomes an INT8 file without it"),
        ("batch=4", "one image at a time"),
        ("nms=True", "contract=nms"),
        ("conf=0.5", "conf=0.5 has no place"),
        ("opst=12", "'opst', did you mean 'opset'"),
        ("epochs=3", "unknown option 'epochs'"),
        ("opset=abc", "opset=abc"),
        ("opset=3", "opset>=9"),
        ("imgsz=abc", "imgsz=abc"),
        ("device=banana", "device=banana"),
        ("source=nowhere", "nowhere"),
        ("source=text.pt", "text.pt"),
        ("exist_ok=no", "exist_ok=no is neither"),
        ("imgsz", "'imgsz' is not of the form"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(argument, named, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.onnx").write_text("mine")
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "cut.pt").write_bytes(teacher.read_bytes()[:300_000])
    given = {"model": teacher, "out": "new/x.onnx", "imgsz": 64}
    given.pop(argument.partition("=")[0], None)
    if argument == "exist_ok=no":
        given["out"] = "mine.onnx"
    assert named in refusal(capsys, tmp_path, "export", *(f"{k}={v}" for k, v in given.items()), argument)


def test_other_models_are_refused_before_the_export(tmp_path, capsys):
    YOLO("yolo11n-cls.yaml").save(tmp_path / "cls.pt")
    assert "task classify" in refusal(capsys, tmp_path, "export", f"model={tmp_path / 'cls.pt'}")
    assert "no model" in refusal(capsys, tmp_path, "export")


def test_the_python_function_says_the_same(tmp_path):
    with pytest.raises(UsageError, match="is not a checkpoint"):
        yolokd.export(tmp_path / "gone.pt")


def test_a_proof_on_stock_photographs_alone_is_a_warning(teacher: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    said: list[str] = []
    monkeypatch.setattr(verb.LOGGER, "warning", lambda text, *more: said.append(str(text)))
    monkeypatch.setattr(verb, "training_data", lambda checkpoint: None)
    yolokd.export(teacher, tmp_path / "a.onnx", imgsz=160)
    assert any("was proven on 2 stock photographs only" in text for text in said), said
