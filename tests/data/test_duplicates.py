"""Images that come twice, and labels without an image."""

from __future__ import annotations

import shutil
from pathlib import Path

from helpers.faulty import GOOD, data_set, label, picture

from yolokd.data import duplicates


def test_equal_content_is_found_and_only_files_of_equal_size_are_read(tmp_path, monkeypatch):
    a, b = picture(tmp_path / "a.png", 1), picture(tmp_path / "b.png", 2)
    copy = Path(shutil.copy(a, tmp_path / "copy.png"))
    other = tmp_path / "other.png"
    other.write_bytes(bytes(reversed(a.read_bytes())))  # of equal size
    large = tmp_path / "large.png"
    large.write_bytes(b.read_bytes() + a.read_bytes())
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self.name) or real(self))
    assert duplicates.equal_files([a, b, copy, other, large, tmp_path / "gone.png"]) == [[a, copy]]
    assert "large.png" not in read and {"a.png", "copy.png", "other.png"} <= {*read}


def test_a_leak_is_equal_content_or_the_same_file_in_both_splits(tmp_path):
    a, b, c = (picture(tmp_path / f"{i}.png", i) for i in range(3))
    copy = Path(shutil.copy(a, tmp_path / "copy.png"))
    twin = Path(shutil.copy(c, tmp_path / "twin.png"))
    assert duplicates.leaks([a, b], [copy, b, c, twin]) == [(copy, a), (b, b)]
    assert duplicates.leaks([a, copy], [b]) == []


def test_images_that_share_a_label(tmp_path):
    images = [tmp_path / "images" / name for name in ("a.png", "a.jpg", "b.png")]
    assert duplicates.sharing_labels([*images, images[2]]) == [images[:2]]


def test_labels_without_an_image(tmp_path):
    data_set(tmp_path, [GOOD, GOOD], [GOOD])
    images = sorted((tmp_path / "images" / "train").iterdir())
    lost = label(tmp_path / "images" / "train" / "lost.png", GOOD)
    assert duplicates.orphans(images[:1]) == [lost], "an image that no list names has its label rightly"
    beside = picture(tmp_path / "flat" / "a.png")
    (tmp_path / "flat" / "notes.txt").write_text("none")
    assert duplicates.orphans([beside]) == []
