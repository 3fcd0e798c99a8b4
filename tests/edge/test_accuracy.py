"""`yolokd_edge val`: the same accuracy as Ultralytics' validator, on the device and with numpy alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from helpers.edge import export, measured
from ultralytics import YOLO

from yolokd.data import splits
from yolokd.data.splits import find_data
from yolokd.demo.scenes import compose
from yolokd_edge import accuracy, cli, ground_truth
from yolokd_edge.accuracy_record import SCHEMA, matching, model_sum
from yolokd_edge.common import EdgeError
from yolokd_edge.detector import Detector
from yolokd_edge.ground_truth import label_file, objects
from yolokd_edge.load import command


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """YAML of 24 validation scenes, some cut so that they are not square."""
    import cv2

    file = compose(tmp_path_factory.mktemp("data") / "scenes", train=1, val=24, imgsz=160, seed=4)
    for k, image in enumerate(sorted((file.parent / "images" / "val").glob("*.jpg"))):
        if k % 5 == 4:
            cv2.imwrite(str(image), cv2.resize(cv2.imread(str(image)), (333 + k, 251)))
        elif k % 3:
            height, width = cv2.imread(str(image)).shape[:2]
            size = (width * 2, height) if k % 3 == 1 else (width, height * 3 // 2)
            cv2.imwrite(str(image), cv2.resize(cv2.imread(str(image)), size))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory, teacher) -> Path:
    return export(teacher, tmp_path_factory.mktemp("onnx") / "teacher.onnx", imgsz=160)


def run(capsys, *words: object) -> str:
    assert cli.main(["val", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    assert cli.main(["val", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yolokd_edge: ") and len(error.splitlines()) == 1
    return error


def test_the_figures_are_those_of_ultralytics_validator(model, data, tmp_path, capsys):
    """Overall and of every class, on images of several shapes."""
    ours = json.loads(run(capsys, "--model", model, "--data", data, "--json"))
    theirs = YOLO(model, task="detect").val(
        data=str(data), imgsz=160, rect=False, batch=1, device="cpu", workers=0, plots=False, project=str(tmp_path)
    )
    assert theirs.box.map50 > 0.3
    assert ours["accuracy"]["map50"] == pytest.approx(theirs.box.map50, abs=1e-3)
    assert ours["accuracy"]["map50_95"] == pytest.approx(theirs.box.map, abs=1e-3)
    for k, place in enumerate(theirs.box.ap_class_index):
        own = ours["classes"][theirs.names[int(place)]]
        assert (own["map50"], own["map50_95"]) == pytest.approx((theirs.box.ap50[k], theirs.box.ap[k]), abs=3e-3)


def test_an_output_with_nms_inside_is_measured_as_it_is(data, tmp_path, untrained, teacher, capsys):
    file = export(teacher, tmp_path / "nms.onnx", imgsz=160, nms=True, conf=0.001)
    raw = export(teacher, tmp_path / "raw.onnx", imgsz=160)
    inside, outside = (json.loads(run(capsys, "--model", f, "--data", data, "--json"))["accuracy"] for f in (file, raw))
    assert 0.3 < inside["map50"] < outside["map50"] + 0.005, "inside the file each box has its best class alone"


def test_a_table_and_a_record_that_bench_takes(model, data, tmp_path, capsys):
    """The accuracy that this device has, not what the file says of another."""
    out = tmp_path / "accuracy.json"
    said = run(capsys, "--model", model, "--data", data, "--out", out)
    assert "mAP50-95" in said and "ankle-boot" in said and "\nsmall" in said
    record = json.loads(out.read_text())
    images = data.parent / "images" / "val"
    (report,) = measured([model], images, quick=True, time_limit=0.3, accuracy=[str(out)])
    assert report["accuracy"]["map50"] == record["accuracy"]["map50"]
    assert report["accuracy"]["source"] == "yolokd_edge val on CPUExecutionProvider"
    out.write_text(json.dumps({**record, "provider": "CUDAExecutionProvider"}))
    (report,) = measured([model], images, quick=True, time_limit=0.3, accuracy=str(out))
    assert report["accuracy"] is None and "records of val" in json.dumps(report)
    assert "exists already" in refused(capsys, "--model", model, "--data", data, "--out", out)
    with pytest.raises(EdgeError, match="no record of"):
        measured([model], images, accuracy=[str(data)])


def test_folders_lists_and_other_orders_of_classes_are_one_data_set(model, data, tmp_path, capsys):
    names = Detector(model, threads=1).names
    images = data.parent / "images" / "val"
    whole = ground_truth.read(data, "val", names)
    assert ground_truth.read(images, "val", names).images == whole.images
    content = find_data(data)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, whole.images)))
    file = tmp_path / "turned.yaml"
    turned = dict(enumerate(reversed([names[k] for k in sorted(names)])))
    file.write_text(yaml.safe_dump({"path": str(content["path"]), "val": str(listed), "names": turned}))
    other = ground_truth.read(file, "val", names)
    assert other.images == whole.images and other.classes == {k: len(names) - 1 - k for k in names}
    beside = tmp_path / "beside"
    beside.mkdir()
    for path in (whole.images[0], label_file(whole.images[0])):
        shutil.copy(path, beside)
    (image,) = ground_truth.read(beside, "val", names).images
    assert np.array_equal(
        objects(image, (160, 160), whole.classes)[0], objects(whole.images[0], (160, 160), whole.classes)[0]
    )


def test_images_in_folders_inside_count_as_in_a_training(tmp_path):
    """A folder had only its own images measured, and a YAML left out what a link leads to."""
    names = {0: "bag"}
    for place in ("images/val", "images/val/a b", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.jpg").touch()
    (tmp_path / "images/val/._x.jpg").touch()  # what a Mac leaves beside a file
    (tmp_path / "images/val/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "labels/val").mkdir(parents=True)
    (tmp_path / "labels/val/x.txt").touch()
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "images/val", "val": "images/val", "names": names}))
    expected = sorted(map(str, splits.split_images(find_data(file), "val")))
    assert len(expected) == 3
    for place in (file, tmp_path / "images/val"):
        assert sorted(map(str, ground_truth.read(place, "val", names).images)) == expected


@pytest.mark.parametrize("words", [["val", "--data", "x", "--model", "m"], ["throughput", "--random", "--model", "m"]])
def test_a_record_is_kept_where_the_reader_of_the_output_has_gone(words, tmp_path, monkeypatch):
    """`val --out record.json | head -3` measured for minutes, ended with 0 and left no file, with Python unbuffered."""
    monkeypatch.chdir(tmp_path)
    for name in ("load", "measure", "as_text"):
        monkeypatch.setattr(accuracy, name, lambda *_, **__: SimpleNamespace(names={}))
    monkeypatch.setattr(ground_truth, "read", lambda *_: None)
    monkeypatch.setattr(accuracy, "write", lambda record, out: out.write_text("kept"))
    for name in ("measure_load", "as_text", "check_served"):
        monkeypatch.setattr(command, name, lambda *_: None)
    monkeypatch.setattr(command, "write", lambda record, out: Path(out).write_text("kept"))

    def gone(*text, **options):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert cli.main([*words, "--out", "record.json"]) == 0
    assert Path("record.json").read_text() == "kept"


def test_polygons_are_their_boxes_and_doubles_count_once(tmp_path):
    image = tmp_path / "a.jpg"
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.3 0.2 0.3 0.6\n1 0.5 0.5 0.2 0.4\n")
    boxes, classes, _ = objects(image, (100, 200), {0: 5, 1: 4})
    assert classes.tolist() == [4, 5]
    assert boxes == pytest.approx(np.array([[80, 30, 120, 70], [20, 20, 60, 60]]))
    boxes, classes, _ = objects(tmp_path / "none.jpg", (10, 10), {})
    assert boxes.shape == (0, 4) and not len(classes)


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 0.2", "x 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 nan", "0 50 50 20 20", "9 0.5 0.5 0.1 0.1", "0.5 " * 5],
)
def test_a_label_that_is_none_is_refused_with_its_line(line, tmp_path):
    (tmp_path / "a.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(EdgeError, match=r"a\.txt, line 2"):
        objects(tmp_path / "a.jpg", (10, 10), {0: 0})


def test_bad_data_is_one_sentence(model, data, tmp_path, monkeypatch, capsys):
    empty, broken, foreign = (tmp_path / name for name in ("empty", "broken.yaml", "foreign.yaml"))
    empty.mkdir()
    broken.write_text("val: [")
    foreign.write_text(yaml.safe_dump({"path": str(data.parent), "val": "images/val", "names": ["zebra"]}))
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    shutil.copy(next((data.parent / "images/val").glob("*.jpg")), unlabelled)
    for given, said in (
        (["gone.yaml"], "no data set gone.yaml"),
        ([empty], "holds no image"),
        ([broken], "cannot be read as YAML"),
        ([foreign], "class zebra, which the model does not know"),
        ([data, "--split", "test"], "has no test: it has train, val"),
        ([unlabelled], "has labels"),
        ([data.parent], "give one of"),
    ):
        assert said in refused(capsys, "--model", model, "--data", *given)
    for file in (label_file(p) for p in unlabelled.glob("*.jpg")):
        file.write_text("")
    assert "no object" in refused(capsys, "--model", model, "--data", unlabelled)
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert "needs PyYAML" in refused(capsys, "--model", model, "--data", data)


@pytest.mark.parametrize(("content", "said"), [(b"\n \n", "is empty"), (b"\xff\xfe\x00", "cannot be read as a list")])
def test_a_list_that_names_no_image_is_one_sentence(content, said, data, model, tmp_path, capsys):
    (tmp_path / "list.txt").write_bytes(content)
    file = tmp_path / "listed.yaml"
    file.write_text(yaml.safe_dump({"val": "list.txt", "names": find_data(data)["names"]}))
    assert said in refused(capsys, "--model", model, "--data", file)


def test_a_record_that_cannot_be_written_loses_no_figure(model, data, tmp_path, monkeypatch, capsys):
    """A file that appears while the images are looked at stays as it is."""
    out = tmp_path / "accuracy.json"
    monkeypatch.setattr("yolokd_edge.accuracy.check_out", lambda name: out)
    out.write_text("mine")
    assert cli.main(["val", "--model", str(model), "--data", str(data), "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert "mAP50-95" in shown.out and "cannot be written" in shown.err and out.read_text() == "mine"


def test_the_record_of_a_model_is_found_by_its_bytes(model, tmp_path):
    record = {
        "schema": SCHEMA,
        "model": {"sha256": model_sum(model)},
        "accuracy": {"map50": 0.5},
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps({**record, "provider": "X"}))
    assert matching([str(file)], model, "X") == {"map50": 0.5}
    assert matching([str(file)], model, "Y") is None and matching([], model, "X") is None


def test_a_file_without_a_fixed_size_is_run_at_the_size_asked_for(data, tmp_path, teacher, capsys):
    """By val, detect and profile alike; a file with a fixed one says what to do."""
    file = export(teacher, tmp_path / "dynamic.onnx", imgsz=160, dynamic=True)
    large, small = (
        json.loads(run(capsys, "--model", file, "--data", data, "--json", "--imgsz", side))["accuracy"]["map50"]
        for side in ("160", "64x96")
    )
    assert large > 0.3 > small
    image = next((data.parent / "images" / "val").glob("*.jpg"))
    for verb in ("detect", "profile"):
        assert cli.main([verb, "--model", str(file), "--source", str(image), "--imgsz", "96"]) == 0
    assert cli.main(["detect", "--model", str(file), "--source", str(image), "--imgsz", "100"]) == 2
    assert "multiples of 32" in capsys.readouterr().err
    for wrong in ("0", "x", "3x3x3", "99999"):
        with pytest.raises(SystemExit):
            cli.main(["detect", "--model", str(file), "--source", str(image), "--imgsz", wrong])
    assert "is not a size such as 320" in capsys.readouterr().err


def test_a_fixed_size_stays(model, data, capsys):
    assert "fixed input of 160x160" in refused(capsys, "--model", model, "--data", data, "--imgsz", "96")
