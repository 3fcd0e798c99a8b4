"""One reader of splits: the images that Ultralytics itself reads, in its order, however the split is given."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset

from yolokd.data.splits import describe_labels, find_data, read_data, split_images
from yolokd.data.unlabeled import list_folder
from yolokd.errors import UsageError
from yolokd.onnx import parity
from yolokd.onnx.export import training_data


@pytest.fixture(scope="module")
def shared(scenes, tmp_path_factory) -> Path:
    """Folder with the validation's images in two folders, subfolders, hidden files, other suffixes, and lists."""
    root = tmp_path_factory.mktemp("splits")
    images = sorted((scenes.parent / "images" / "val").rglob("*.*"))
    for k, image in enumerate(images):
        target = root / ("one" if k % 2 else "two/below") / f"{k}{image.suffix.upper() if k == 3 else image.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    (root / "one" / "notes.txt").write_text("none")
    shutil.copy(images[0], root / "one" / ".hidden.jpg")
    inside = [p for p in sorted(root.rglob("*.*")) if p.suffix != ".txt" and not p.name.startswith(".")]
    (root / "relative.txt").write_text("\n".join(f"./{p.relative_to(root)}" for p in inside) + "\n\n")
    mark = "\ufeff" if "utf-8-sig" in inspect.getsource(YOLODataset.get_img_files) else ""  # from 8.4.183 on
    (root / "absolute.txt").write_text(mark + "\n".join(map(str, inside)), encoding="utf-8")
    return root


@pytest.mark.parametrize("given", ["one", ["one", "two"], "relative.txt", "absolute.txt", ["relative.txt", "one"], "."])
def test_a_split_is_what_ultralytics_reads(given, shared):
    file = shared / "data.yaml"
    file.write_text(f"path: {shared}\ntrain: one\nval: {given}\nnames: [thing]\n")
    data = check_det_dataset(str(file))
    stub = object.__new__(YOLODataset)
    stub.prefix, stub.fraction = "", 1.0
    assert [str(p) for p in split_images(data, "val")] == stub.get_img_files(data["val"])
    own = [p for p in parity.real_images(data) if not parity.is_stock(p)]
    assert own == split_images(data, "val")[:8], "an export is proven on the data's own images"
    assert training_data({"train_args": {"data": str(file)}})["val"] == data["val"]


def test_a_folder_without_labels_follows_the_same_rules(shared):
    assert list_folder(shared) == sorted(split_images({"val": str(shared)}, "val"))
    assert all(p.suffix[1:].lower() in IMG_FORMATS for p in list_folder(shared))


def test_a_split_without_images_is_refused(shared, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, said in (("empty", "holds no image"), ("gone", "does not exist"), ([], "holds no image")):
        places = str(tmp_path / given) if given else given
        with pytest.raises(UsageError, match=said):
            split_images({"val": places, "yaml_file": "mine.yaml"}, "val")


def test_labels_beside_their_images_are_counted_and_named(tmp_path):
    """Ultralytics reads those in labels/ only, and takes the other images for empty ones."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = []
    for i, place in enumerate(("labels", "images", "images", "")):
        if place:
            (tmp_path / place / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2")
        labels.append({"im_file": str(tmp_path / "images" / f"{i}.png"), "cls": [0] if place == "labels" else []})
    dataset = SimpleNamespace(labels=labels, label_files=["x"] * 5)
    said, warning = describe_labels(dataset)
    assert said.startswith("1 training images have objects, 3 have none, 1 is skipped")
    beside, right = (tmp_path / folder / "1.txt" for folder in ("images", "labels"))
    assert warning.startswith("2 images count") and f"such as {beside}: it is read from {right}" in warning
    assert describe_labels(SimpleNamespace(labels=labels[:1], label_files=["x"])) == (
        "1 training images have objects, 0 have none",
        None,
    )


@pytest.mark.parametrize("count", [2**31, 10**400, "1e10"])
def test_more_classes_than_any_memory_names_are_refused(count, tmp_path):
    """Found by fuzzing: Ultralytics makes a name for each."""
    (tmp_path / "d.yaml").write_text(f"train: .\nval: .\nnc: {count}\n")
    for read in (find_data, lambda file: read_data({"data": file})):
        with pytest.raises(UsageError, match="more than 100,000 classes"):
            read(tmp_path / "d.yaml")
