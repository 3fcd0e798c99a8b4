"""What is said of a data set: each fault as a sentence of the right level with the files' names."""

from __future__ import annotations

import shutil

import pytest
from helpers.faulty import GOOD, data_set, label, picture
from ultralytics.data.utils import check_det_dataset

from yolokd.data.audit import Frame, look_through
from yolokd.data.findings import Finding
from yolokd.data.labels import Form
from yolokd.data.verdict import findings, summary

BOTH = f"{GOOD}\n1 0.5 0.5 0.4 0.4"
POLYGON = "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"


def said(file, task="detect", imgsz=64, most=None) -> list[str]:
    data = check_det_dataset(str(file))
    form = Form.of(data, task)
    splits = look_through(data, ["train", "val"], form, Frame(imgsz), most)
    return [str(f) for f in findings(splits, data["names"], form, 8, imgsz)]


def one(sentences: list[str], *parts: str) -> str:
    """The one sentence that has all the parts."""
    (found,) = [s for s in sentences if all(part in s for part in parts)]
    return found


def test_nothing_is_said_of_a_good_data_set(tmp_path):
    assert said(data_set(tmp_path, [BOTH, BOTH, ""], [BOTH])) == []


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("0 0.5 0.5 0.2", ("with a wrong number of columns", "(line 1: 4 columns)", "write 5 columns")),
        ("2 0.5 0.5 0.2 0.2", ("class that the data does not have", "(line 1: class 2)", "numbers from 0 to 1")),
        ("0 5 0.5 0.2 0.2", ("with coordinates outside 0 to 1", "(line 1: 5)", "divide them")),
        ("0 nan 0.5 0.2 0.2", ("with values that are no finite numbers", "(line 1: nan)")),
    ],
)
def test_faulty_rows_are_warnings_that_name_the_first_files(tmp_path, row, parts):
    sentence = one(said(data_set(tmp_path, [BOTH] + [row] * 5, [BOTH])), *parts)
    assert sentence.startswith("warning: train: 5 label files with ")
    assert "labels/train/1.txt" in sentence and "3.txt" in sentence and "4.txt" not in sentence
    assert "and 2 more; 5 images will be skipped: " in sentence


def test_boxes_without_a_size_are_not_skipped(tmp_path):
    sentence = one(said(data_set(tmp_path, [BOTH, f"{BOTH}\n0 0.5 0.5 0 0.2"], [BOTH])), "without width or height")
    assert "skipped" not in sentence


def test_rows_given_twice_are_a_note(tmp_path):
    sentence = one(said(data_set(tmp_path, [BOTH, f"{BOTH}\n{GOOD}"], [BOTH])), "with a row more than once")
    assert sentence.startswith("note: train: 1 label file ")


@pytest.mark.parametrize(("missing", "level"), [(1, "note"), (3, "warning")])
def test_images_without_a_label_file(tmp_path, missing, level):
    """Up to a tenth they are taken for images without objects; of more the labels are probably missing."""
    sentence = one(said(data_set(tmp_path, [BOTH] * 10 + [None] * missing, [BOTH])), "without a label file")
    assert sentence.startswith(f"{level}: train: {missing} image") and f"of {10 + missing} without" in sentence


def test_labels_beside_their_images(tmp_path):
    file = data_set(tmp_path, [BOTH, None], [BOTH])
    (tmp_path / "images" / "train" / "1.txt").write_text(BOTH)
    sentences = said(file)
    assert "labels/train/1.txt, move them there" in one(sentences, "1 label file beside the images")
    assert not [s for s in sentences if "without a label file" in s]


def test_images_that_cannot_be_read(tmp_path):
    file = data_set(tmp_path, [BOTH], [BOTH])
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / "train" / name).write_bytes(b"no image")
        label(tmp_path / "images" / "train" / name, BOTH)
    sentence = one(said(file), "images will be skipped, ")
    assert sentence.startswith("warning: train: 2 images") and "a.png (no picture in a format" in sentence
    whole = picture(tmp_path / "images" / "train" / "c.jpg")
    whole.write_bytes(whole.read_bytes() + b"more")
    label(whole, BOTH)
    assert "a training rewrites such files" in one(said(file), "1 JPEG with a damaged end", "c.jpg")


def test_a_split_without_an_object(tmp_path):
    assert "no image has an object" in one(said(data_set(tmp_path / "a", ["", ""], [BOTH])), "problem: train: ")
    assert "no image has an object" in one(said(data_set(tmp_path / "b", [BOTH], [""])), "warning: val: no image")
    bad = data_set(tmp_path / "c", ["0 1"], [BOTH])
    assert "no image can be used" in one(said(bad), "problem: train: ")


def test_boxes_where_polygons_must_be(tmp_path):
    """Ultralytics refuses such a data set, after it made its folder."""
    file = data_set(tmp_path, [POLYGON, GOOD], [POLYGON])
    for task, columns in (("segment", "an odd number of columns"), ("obb", "write 9 columns")):
        assert columns in one(said(file, task), "problem: train: 1 label file with boxes")
    assert not [s for s in said(file) if "boxes" in s]


def test_a_leak_and_copies(tmp_path):
    file = data_set(tmp_path, [BOTH, BOTH], [BOTH, BOTH])
    train, val = tmp_path / "images" / "train", tmp_path / "images" / "val"
    shutil.copy(train / "0.png", val / "1.png")
    shutil.copy(train / "0.png", train / "1.png")
    sentences = said(file)
    leak = one(sentences, "warning: 1 validation image of 2 among the training's too")
    assert f"{val / '1.png'} = {train / '0.png'}" in leak
    assert f"{train / '0.png'} = {train / '1.png'}" in one(sentences, "note: train: 1 image more than once")


def test_labels_of_several_images_or_of_none(tmp_path):
    file = data_set(tmp_path, [BOTH], [BOTH])
    picture(tmp_path / "images" / "train" / "0.jpg", 5)
    label(tmp_path / "images" / "train" / "gone.png", BOTH)
    sentences = said(file)
    assert "0.jpg and " in one(sentences, "warning: 1 label file of several images")
    assert "gone.txt" in one(sentences, "warning: 1 label file without an image")


def test_classes_without_an_object(tmp_path):
    """Of the training a warning; nothing is said where only some images were looked at."""
    file = data_set(tmp_path, [GOOD, GOOD], [GOOD])
    sentences = said(file)
    assert one(sentences, "train: no object of 1 class, pen").startswith("warning")
    assert one(sentences, "val: no object of 1 class, pen").startswith("note")
    assert not [s for s in said(file, most=1) if "train: no object" in s]


@pytest.mark.parametrize(("small", "share", "level"), [(1, "5.0%", "note"), (2, "10.0%", "warning")])
def test_boxes_under_a_stride(tmp_path, small, share, level):
    """7 of 64 pixels against a stride of 8."""
    rows = ["0 0.5 0.5 0.5 0.14583"] * small  # of 48 pixels of height
    sentences = said(data_set(tmp_path, ["1 0.5 0.5 0.4 0.4"] * (20 - small) + rows, [BOTH]))
    assert one(sentences, f"{share} of the training's boxes", "under 8 px", "imgsz=64").startswith(level)
    sentences = said(data_set(tmp_path / "b", ["1 0.5 0.5 0.4 0.4"] * 18 + rows, [BOTH]), imgsz=128)
    assert not [s for s in sentences if "of the training's boxes" in s]


def test_the_numbers(tmp_path):
    data = check_det_dataset(str(data_set(tmp_path, [BOTH, GOOD], [GOOD])))
    splits = look_through(data, ["train", "val"], Form.of(data, "detect"), Frame(64), None)
    numbers = summary(splits, data["names"], 10)
    assert numbers["train"]["classes"] == {"cup": 2, "pen": 1} and numbers["val"]["classes"] == {"cup": 1, "pen": 0}
    assert numbers["train"]["small_boxes"] == pytest.approx(2 / 3), "9.6 pixels, 9.6 and 19.2"


def test_names_of_files_cannot_write_to_the_terminal():
    assert str(Finding("note", "a\nyolokd: b")) == "note: a\\nyolokd: b"
