"""What is seen of a data set: what Ultralytics skips, by itself; counts, classes and sizes of boxes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.cli import contents
from helpers.faulty import GOOD, data_set, label, picture
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

from yolokd.data.audit import Frame, look_through
from yolokd.data.labels import Form

FRAME = Frame(64)
ROWS = [
    GOOD, "", None, "0 0.5 0.5 0.2", "0 0.5 0.5 0.2 0.2 0.9", "2 0.5 0.5 0.2 0.2", "0.5 0.5 0.5 0.2 0.2",
    "0 5 0.5 0.2 0.2", "0 -0.5 0.5 0.2 0.2", "0 nan 0.5 0.2 0.2", "cup 0.5 0.5 0.2 0.2", "0 0.5 0.5 0 0.2",
    f"{GOOD}\n{GOOD}", "0 0.5 0.5 0.2\n0 0.5 0.5 0.2 0.2", "1 0.1 0.1 0.5 0.1 0.5 0.5",
    f"1 0.1 0.1 0.5 0.1 0.5 0.5\n{GOOD}",
]  # fmt: skip


@pytest.fixture
def broken(tmp_path):
    """YAML of a data set with every fault of a label, and images that cannot be read."""
    file = data_set(tmp_path, ROWS, [GOOD])
    images = tmp_path / "images" / "train"
    for name, content in (("empty.png", b""), ("text.jpg", b"no image"), ("half.jpg", None), ("open.jpg", None)):
        image = picture(images / name, seed=len(name))
        if content is not None:
            image.write_bytes(content)
        label(image, GOOD)
    whole = (images / "half.jpg").read_bytes()
    (images / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "open.jpg").write_bytes((images / "open.jpg").read_bytes() + b"more")
    picture(images / "tiny.png", size=(8, 8))
    (tmp_path / "labels" / "train" / "1.txt").write_bytes(b"\xff\xfe\x00")
    return file


def test_what_is_skipped_is_what_ultralytics_skips(broken):
    """And nothing is written."""
    data, before = check_det_dataset(str(broken)), contents(broken.parent)
    split, _ = look_through(data, ["train", "val"], Form.of(data, "detect"), FRAME, None)
    assert contents(broken.parent) == before
    dataset = YOLODataset(img_path=data["train"], data=data, task="detect", augment=False)
    assert [str(s.image) for s in split.used] == [str(v["im_file"]) for v in dataset.labels]
    for seen, taken in zip(split.used, dataset.labels, strict=True):
        np.testing.assert_allclose(seen.rows, np.concatenate((taken["cls"], taken["bboxes"]), 1))
    assert [s.image.name for s in split.seen if s.restored] == ["open.jpg"]
    assert contents(broken.parent) != before, "Ultralytics did write"


def test_why_an_image_is_skipped(broken):
    """In Ultralytics' words where the label is right; a fault of the label has our words."""
    data = check_det_dataset(str(broken))
    split, _ = look_through(data, ["train", "val"], Form.of(data, "detect"), FRAME, None)
    why = {s.image.name: s.skipped for s in split.seen if s.skipped}
    assert "<10 pixels" in why["tiny.png"] and str(split.seen[0].image.parent) not in why["tiny.png"]
    assert why["text.jpg"] == why["empty.png"] == "no picture in a format that Ultralytics reads"
    assert "truncated" in why["half.jpg"]
    faults = {s.image.name: list(s.faults) for s in split.seen if s.faults}
    assert faults == {
        "1.png": ["text"], "3.png": ["columns"], "4.png": ["columns"], "5.png": ["class"], "6.png": ["class"],
        "7.png": ["range"], "8.png": ["range"], "9.png": ["number"], "10.png": ["number"], "11.png": ["empty"],
        "12.png": ["twice"], "13.png": ["columns"],
    }  # fmt: skip


def test_counts_and_classes(tmp_path):
    rows = [f"{GOOD}\n1 0.2 0.2 0.1 0.1", "1 0.5 0.5 0.2 0.2", "", None, "9 0.5 0.5 0.2 0.2"]
    data = check_det_dataset(str(data_set(tmp_path, rows, [GOOD])))
    train, val = look_through(data, ["train", "val"], Form.of(data, "detect"), FRAME, None)
    assert train.counts() == {
        "images": 5, "looked_at": 5, "with_objects": 2, "without_objects": 2, "without_label_file": 1, "skipped": 1,
        "objects": 3,
    }  # fmt: skip
    assert train.histogram == {0: 1, 1: 2} and val.histogram == {0: 1}
    assert train.usable == 4


def test_some_images_stand_for_all(tmp_path):
    data = check_det_dataset(str(data_set(tmp_path, [GOOD, "9 0.5 0.5 0.2 0.2"] * 4, [GOOD])))
    train, _ = look_through(data, ["train", "val"], Form.of(data, "detect"), FRAME, 2)
    assert [s.image.stem for s in train.seen] == ["0", "4"] and (train.total, train.usable) == (8, 8)


def test_a_listed_image_that_is_not_there(tmp_path):
    file = data_set(tmp_path, [GOOD], [GOOD], train="list.txt")
    (tmp_path / "list.txt").write_text("./images/train/0.png\n./images/train/gone.png\n")
    data = check_det_dataset(str(file))
    train, _ = look_through(data, ["train", "val"], Form.of(data, "detect"), FRAME, None)
    assert [s.skipped for s in train.seen] == ["", "there is no such file"]


@pytest.mark.parametrize(
    ("frame", "sides"),
    [(Frame(128), [0.2 * 48 * 2, 0.25 * 64 * 2]), (Frame(128, stretched=True), [0.2 * 128, 0.25 * 128])],
)
def test_sides_of_boxes_in_pixels_of_the_training(frame, sides):
    """An image of 64 x 48: letterboxed to 128 pixels both its sides double; stretched both become 128."""
    rows = np.array([[0, 0.5, 0.5, 0.4, 0.2], [1, 0.5, 0.5, 0.25, 0.5]])
    np.testing.assert_allclose(frame.sides(rows, (48, 64)), sides)


def test_other_tasks(tmp_path):
    polygon = "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"
    points = "0 0.5 0.5 0.2 0.2 0.4 0.4 2"
    for task, row, about in (("segment", polygon, {}), ("obb", polygon, {}), ("pose", points, {"kpt_shape": [1, 3]})):
        data = check_det_dataset(str(data_set(tmp_path / task, [row, GOOD], [row], **about)))
        train, _ = look_through(data, ["train", "val"], Form.of(data, task), FRAME, None)
        assert [list(s.faults) for s in train.seen] == [[], ["columns"]]
        assert train.seen[0].rows.shape == (1, 5) and not train.seen[0].skipped
