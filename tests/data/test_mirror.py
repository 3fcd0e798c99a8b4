"""A mirror: Ultralytics reads the same from it, and writes into it alone."""

from __future__ import annotations

from pathlib import Path

import yaml
from helpers.cli import contents
from helpers.faulty import GOOD, data_set, picture
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

from yolokd.data import mirror
from yolokd.data.splits import split_images


def test_what_ultralytics_writes_falls_into_the_mirror(tmp_path):
    """The label cache, and a JPEG with bytes behind its end, which it writes anew."""
    file = data_set(tmp_path / "data", [GOOD, "", None], [GOOD], kpt_shape=[1, 2])
    broken = picture(tmp_path / "data" / "images" / "train" / "jpeg.jpg")
    broken.write_bytes(broken.read_bytes() + b"more")
    before = contents(tmp_path / "data")
    data = check_det_dataset(str(file))
    (tmp_path / "mirror").mkdir()
    splits = {name: split_images(data, name) for name in ("train", "val")}
    mirrored = check_det_dataset(str(mirror.mirrored_yaml(data, splits, tmp_path / "mirror")))
    dataset = YOLODataset(img_path=mirrored["train"], data=mirrored, task="detect", augment=False)
    assert [len(label["cls"]) for label in dataset.labels] == [1, 0, 0, 0]
    assert mirrored["names"] == data["names"] and mirrored["kpt_shape"] == [1, 2]
    assert Path(tmp_path / "mirror" / "train" / "labels.cache").is_file()
    assert contents(tmp_path / "data") == before


def test_without_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    source = picture(tmp_path / "a.png")
    target = mirror.link(source, tmp_path / "b.png")
    assert target.read_bytes() == source.read_bytes() and not target.is_symlink()


def test_images_are_taken_evenly():
    images = [Path(f"{i}.png") for i in range(10)]
    assert [p.stem for p in mirror.spread(images, 4)] == ["0", "2", "5", "7"]
    assert mirror.spread(images, 20) == images and mirror.spread([], 3) == []


def test_a_mirrored_yaml_names_only_the_mirror(tmp_path):
    data = check_det_dataset(str(data_set(tmp_path / "data", [GOOD], [GOOD], test="images/val")))
    (tmp_path / "mirror").mkdir()
    file = mirror.mirrored_yaml(data, {"val": split_images(data, "val")}, tmp_path / "mirror")
    content = yaml.safe_load(file.read_text())
    assert content.keys() & {*mirror.PLACES} == {"path", "val"} and str(tmp_path / "data") not in file.read_text()
