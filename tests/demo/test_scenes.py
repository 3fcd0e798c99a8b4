"""The demo's scenes: reproducible, labelled tightly, split by product, and never written over a user's files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolokd.demo import scenes


def contents(folder: Path) -> dict[str, bytes]:
    """Every image and label file under a data set's folder; its YAML is left out because it names the folder."""
    files = (p for p in sorted(folder.rglob("*")) if p.suffix in {".jpg", ".txt"})
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def boxes(folder: Path, split: str, i: int) -> np.ndarray:
    """One scene's labels, (M, 5): class, centre, width, height."""
    lines = (folder / "labels" / split / f"{i:05d}.txt").read_text().splitlines()
    return np.array([line.split() for line in lines], float).reshape(-1, 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set's YAML."""
    return scenes.compose(tmp_path_factory.mktemp("data") / "demo", train=30, val=10, seed=3)


def test_same_arguments_give_same_bytes(data: Path, tmp_path: Path) -> None:
    again = scenes.compose(tmp_path / "again", train=30, val=10, seed=3)
    assert len(contents(data.parent)) == 2 * (30 + 10)
    assert contents(again.parent) == contents(data.parent)
    once = again.read_bytes()
    for path in sorted(again.parent.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    scenes.compose(tmp_path / "again", train=1, val=1)
    assert again.read_bytes() == once  # in the same place the YAML is the same as well


def test_another_seed_gives_other_scenes_and_fewer_are_the_first_of_more(data: Path, tmp_path: Path) -> None:
    scenes.compose(tmp_path / "fewer", train=2, val=2, seed=3)
    scenes.compose(tmp_path / "other", train=2, val=2, seed=4)
    fewer, other, more = contents(tmp_path / "fewer"), contents(tmp_path / "other"), contents(data.parent)
    assert fewer.items() <= more.items()
    assert not fewer.items() & other.items()
    assert len(set(fewer.values())) == len(fewer)  # no scene twice, neither within a split nor across them


@pytest.mark.parametrize("size", [96, 160, 320])
def test_labels_lie_in_the_image_and_are_5_pixels_or_more(size: int, tmp_path: Path) -> None:
    folder = scenes.compose(tmp_path / "demo", train=30, val=10, imgsz=size).parent
    rows = np.concatenate([boxes(folder, s, i) for s, n in (("train", 30), ("val", 10)) for i in range(n)])
    centre, side = rows[:, 1:3], rows[:, 3:5]
    assert len(rows) > 40 * 3
    assert set(rows[:, 0]) == set(range(len(scenes.CLASSES)))
    assert (centre - side / 2 >= -1e-6).all() and (centre + side / 2 <= 1 + 1e-6).all()
    assert (side * size >= 5 - 1e-3).all()
    assert cv2.imread(str(folder / "images/val/00009.jpg")).shape == (size, size, 3)


def test_ultralytics_accepts_the_yaml_from_another_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("ultralytics.data.utils")
    monkeypatch.setattr(utils, "check_font", lambda _: None)  # it would download one
    monkeypatch.chdir(tmp_path)
    checked = utils.check_det_dataset(str(data), autodownload=False)
    assert [checked["names"][i] for i in range(checked["nc"])] == list(scenes.CLASSES)
    assert Path(checked["val"]) == data.parent.resolve() / "images" / "val"


def test_a_relative_folder_becomes_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = scenes.compose(Path("a folder, named: ünlike # others"), train=1, val=1)
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert loaded["path"] == str(tmp_path.resolve() / "a folder, named: ünlike # others")
    assert loaded["names"] == dict(enumerate(scenes.CLASSES))


def test_teacher_and_scenes_name_the_same_classes() -> None:
    yolo = pytest.importorskip("ultralytics").YOLO
    assert yolo(scenes.SPRITES.with_name("teacher.pt")).names == dict(enumerate(scenes.CLASSES))


def test_bundled_products_are_all_different() -> None:
    sprites = scenes.read_sprites()
    assert sprites.shape == (10, 250, 28, 28)
    assert len({crop.tobytes() for crop in sprites.reshape(-1, 28 * 28)}) == 2500


def test_split_shares_no_product() -> None:
    number = np.arange(2500, dtype=np.uint16).reshape(10, 250, 1, 1)
    halves = scenes.split(np.broadcast_to(number, (10, 250, 28, 28)))  # crops that spell their number
    train, val = (set(np.unique(halves[name]).tolist()) for name in ("train", "val"))
    assert (len(train), len(val)) == (2000, 500)
    assert train.isdisjoint(val)


@pytest.mark.parametrize(("split", "blank"), [("train", slice(0, 200)), ("val", slice(200, 250))])
def test_a_split_shows_only_its_own_products(
    split: str, blank: slice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products wiped from the sheet leave their own split without objects, and the other one full of them."""
    sprites = scenes.read_sprites()
    sprites[:, blank] = 0
    monkeypatch.setattr(scenes, "read_sprites", lambda: sprites)
    folder = scenes.compose(tmp_path / "demo", train=20, val=20, imgsz=96).parent
    counts = {name: [len(boxes(folder, name, i)) for i in range(20)] for name in ("train", "val")}
    other = {"train": "val", "val": "train"}[split]
    assert sum(counts[split]) == 0
    assert min(counts[other]) > 0


def test_splits_share_no_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "read_sprites", lambda: np.zeros((10, 250, 28, 28), np.uint8))
    scenes.compose(tmp_path / "demo", train=5, val=5)
    images = [data for name, data in contents(tmp_path / "demo").items() if name.endswith(".jpg")]
    assert len(set(images)) == 10


def test_a_class_is_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = np.broadcast_to(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), (10, 7, 28, 28))
    rng = np.random.default_rng(0)
    drawn = [scenes.draw(rng, crops) for _ in range(300)]
    assert all((crop == cls).all() for cls, crop in drawn)
    assert {cls for cls, _ in drawn} == set(range(10))


@pytest.mark.parametrize("scale", [0.55, 1.0, 2.6])
def test_box_covers_the_pasted_pixels(scale: float) -> None:
    crop = scenes.read_sprites()[7, 0]
    for angle in range(-25, 26, 10):
        canvas = np.full((160, 160, 3), 1000, np.float32)  # a ground that no product's colour reaches
        box = scenes.paste(np.random.default_rng(0), canvas, crop, scale, np.array([70.0, 90.0]), angle, 1.0)
        changed = np.argwhere((canvas != 1000).any(2))[:, ::-1]
        assert box is not None
        np.testing.assert_allclose(box, [*changed.min(0), *(changed.max(0) + 1)], atol=1.01 if scale < 2 else 2.01)


def test_next_to_nothing_has_no_box_and_leaves_no_trace() -> None:
    canvas = np.full((160, 160, 3), 1000, np.float32)
    crop = scenes.read_sprites()[0, 0]
    assert scenes.paste(np.random.default_rng(0), canvas, crop, 0.55, np.array([-20.0, 80.0]), 0.0, 1.0) is None
    assert (canvas == 1000).all()


def test_written_labels_are_tight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On white without fragments, what is not white lies in the labelled boxes and reaches their four sides."""
    sprites = np.zeros((10, 250, 28, 28), np.uint8)
    sprites[..., 4:24, 8:20] = 128  # mid-grey, so that its inverse is not white either
    monkeypatch.setattr(scenes, "read_sprites", lambda: sprites)
    monkeypatch.setattr(scenes, "background", lambda rng, size: np.full((size, size, 3), 300, np.float32))
    monkeypatch.setattr(scenes, "add_fragments", lambda rng, image, pool: None)
    folder = scenes.compose(tmp_path / "demo", train=20, val=1).parent
    found = 0
    for i in range(20):
        drawn = cv2.imread(str(folder / f"images/train/{i:05d}.jpg")).min(2) < 200
        outside = drawn.copy()
        for _, x, y, w, h in boxes(folder, "train", i) * 160:
            x1, y1, x2, y2 = (round(v) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
            strips = (
                drawn[y1:y2, x1 : x1 + 2],
                drawn[y1:y2, x2 - 2 : x2],
                drawn[y1 : y1 + 2, x1:x2],
                drawn[y2 - 2 : y2, x1:x2],
            )
            assert all(strip.any() for strip in strips)
            outside[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = False
            found += 1
        # at the border a slice too narrow for a label may remain
        assert not outside[6:-6, 6:-6].any()
    assert found > 60


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder; delete it or name another"):
        scenes.compose(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="not an empty folder"):
        scenes.compose(tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    assert scenes.compose(tmp_path, train=1, val=1).parent == tmp_path


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"imgsz": 16}, {"seed": -1}])
def test_wrong_numbers_are_refused_before_anything_is_written(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*set"):
        scenes.compose(tmp_path / "demo", **wrong)
    assert not (tmp_path / "demo").exists()
