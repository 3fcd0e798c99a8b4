"""Stored teacher responses: the same images come back, what was stored is what was said, and nothing stale is read."""

from __future__ import annotations

import copy
import csv
import multiprocessing
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.models import build, images
from helpers.training import TINY
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.utils import DEFAULT_CFG, LOGGER

from yolokd.config import options
from yolokd.config.options import CacheOptions, DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.data.fixed_views import FixedViewsDataset, RoundRobinSampler, fingerprint, iter_transforms
from yolokd.demo.scenes import compose
from yolokd.detectors import read
from yolokd.distill import response_cache
from yolokd.distill.applicability import plan
from yolokd.distill.response_cache import Cache, Grid, Store, layout, make_room, open_all
from yolokd.distill.teacher import Teacher
from yolokd.distill.trainer import KDTrainer
from yolokd.distill.training import train
from yolokd.errors import UsageError
from yolokd.methods import ops
from yolokd.views import View

CPU = torch.device("cpu")
STRIDES = (8, 16, 32)


@pytest.fixture
def dataset(scenes):
    """Function: augmentations -> the scenes as Ultralytics augments them, of which each image has three views."""

    def make(seed=0, **augmentations):
        data = check_det_dataset(str(scenes))
        args = get_cfg(DEFAULT_CFG, {"imgsz": 64, "mixup": 0.5, "degrees": 10.0, **augmentations})
        return FixedViewsDataset(build_yolo_dataset(args, data["train"], 8, data), 3, seed)

    return make


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in ("img", "cls", "bboxes"))


def test_a_view_is_the_same_whatever_came_before(dataset):
    one, other = dataset(), dataset(cache="ram")
    first = one[29]
    for i in (3, 50, 12):
        other[i]
    random.seed(7)
    np.random.seed(7)
    streams = random.getstate(), np.random.get_state()[1].tolist()
    assert same(other[29], first) and first["view"] == 29
    assert (random.getstate(), np.random.get_state()[1].tolist()) == streams
    assert not same(one[5], first)  # another view of image 5
    assert not same(dataset(seed=1)[29], first)


def test_without_mosaic_the_views_are_others(dataset):
    one = dataset()
    before = one[4]
    one.close_mosaic(copy.copy(get_cfg(DEFAULT_CFG)))
    after = one[4]
    assert after["view"] == before["view"] + 3 * len(one) and not same(before, after)
    assert not any(getattr(t, "buffer_enabled", False) for t in iter_transforms(one.transforms))


def test_a_stream_of_its_own_is_seeded_too(dataset):
    one, seeds = dataset(), []
    one.dataset.transforms.append(lambda item: item)
    stream = SimpleNamespace(set_random_seed=seeds.append)
    one.dataset.transforms.transforms[-1].transform = stream
    one._prepare()
    for i in (4, 5, 4):
        one[i]
    assert seeds[0] == seeds[2] != seeds[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_epochs_see_the_same_views(dataset, workers):
    views = dataset()
    loader = build_dataloader(views, 8, workers, shuffle=True)
    batches = loader.batch_sampler.sampler
    batches.sampler = RoundRobinSampler(batches.sampler, len(views), views.count)
    loader.reset()
    epochs = [[batch for batch in loader] for _ in range(4)]
    loader.close()
    numbers = [sorted(n for batch in epoch for n in batch["view"]) for epoch in epochs]
    assert numbers[:3] == [list(range(24 * v, 24 * (v + 1))) for v in range(3)] and numbers[3] == numbers[0]
    again = dataset(cache="ram")
    for batch in (epochs[0][1], epochs[3][2]):
        assert torch.equal(batch["img"], torch.stack([again[n]["img"] for n in batch["view"]]))


def test_the_fingerprint_knows_images_labels_and_augmentations(tmp_path):
    yaml_file = compose(tmp_path / "scenes", train=4, val=2, imgsz=64, seed=3)

    def of(build=build_yolo_dataset, **changes):
        data = check_det_dataset(str(yaml_file))
        args = get_cfg(DEFAULT_CFG, {"imgsz": 64, **changes})
        return fingerprint(FixedViewsDataset(build(args, data["train"], 8, data), 3, 0), "more")

    def of_rtdetr(args, path, batch, data):
        """It stretches images to the square where a YOLO's are padded."""
        return RTDETRDataset(
            img_path=path, imgsz=args.imgsz, batch_size=batch, augment=True, hyp=args, rect=False, data=data,
            task="detect", classes=None, cache=None, single_cls=False, prefix="", fraction=1.0,
        )  # fmt: skip

    first = of()
    assert of(epochs=7, lr0=0.1) == first
    changed = [of(mosaic=0.5), of(hsv_h=0.3), of(scale=0.4), of(copy_paste=0.1), of(fliplr=0.0), of(imgsz=96)]
    changed.append(of(of_rtdetr))
    label = next((tmp_path / "scenes").rglob("*/train/*.txt"))
    label.write_text("0 0.5 0.5 0.25 0.25\n")
    next(label.parent.parent.glob("*.cache")).unlink()
    changed.append(of())
    picture = next(f for f in (tmp_path / "scenes" / "images" / "train").iterdir())
    picture.write_bytes(picture.read_bytes() + b"\0")
    changed.append(of())
    assert len({first, *changed}) == 10


def response(classes=6, batch=2, imgsz=64, seed=0):
    """A view as a trained teacher's: few high scores, many low ones."""
    draw = torch.Generator().manual_seed(seed)
    count = sum(response_cache.sizes(STRIDES, imgsz))
    logits = torch.randn(batch, count, classes, generator=draw) * 2 - 6
    logits[:, ::9, 1] += 6
    corner = torch.rand(batch, count, 2, generator=draw) * imgsz
    return View(STRIDES, logits=logits, boxes=torch.cat((corner - 9, corner + 13), -1))


@pytest.mark.parametrize("classes", [3, 20])
def test_what_is_stored_is_what_was_said(classes):
    view, grid = response(classes), Grid(STRIDES, 64, CPU)
    records = grid.records({"one2many": view}, layout(STRIDES, 64, classes, 1, 20))
    back = grid.views(records, ("one2many",))["one2many"]
    points = torch.from_numpy(records["points"][:, 0].astype(np.int64))
    best, places = response_cache.rows(view.logits, points).topk(min(classes, response_cache.CLASSES))
    assert torch.allclose(response_cache.rows(back.logits, points).gather(2, places), best, rtol=1e-3, atol=1e-3)
    assert torch.allclose(response_cache.rows(back.boxes, points), response_cache.rows(view.boxes, points), atol=0.3)
    least = response_cache.rows(view.logits, points).amax(-1).amin(-1)
    others = torch.ones(points.shape[0], view.logits.shape[1], dtype=torch.bool).scatter(1, points, False)
    assert (torch.where(others, view.logits.amax(-1), -99).amax(-1) <= least).all()
    # what is left out keeps its sum, and with it the term its value but for rounding
    assert torch.allclose(back.logits.sigmoid().sum(1), view.logits.sigmoid().sum(1), rtol=5e-3)


def test_boxes_far_from_zero_keep_their_place():
    """Half precision of a coordinate near 1280 would be a pixel."""
    view, grid = response(imgsz=1280), Grid(STRIDES, 1280, CPU)
    centres, pixels = grid.centres, grid.pixels
    view = View(
        STRIDES,
        logits=view.logits,
        boxes=torch.cat((centres - pixels, centres + 1.7 * pixels), -1)[None].repeat(2, 1, 1),
    )
    back = grid.views(grid.records({"b": view}, layout(STRIDES, 1280, 6, 1, 50)), ("b",))["b"]
    assert torch.allclose(back.boxes, view.boxes, atol=0.03)


@pytest.mark.parametrize("family", ["yolo11n", "yolo26n"])
def test_anchor_points_are_the_teachers(family):
    """Boxes of a head's own, at other sides of the image: its points lie where the grid says."""
    reader = read(build(family, dtype=torch.float32))
    teacher = Teacher(reader, response_cache.NEEDS, reader.branches, CPU)
    shown = teacher(images(height=96, width=96, dtype=torch.float32))(STRIDES)
    grid = Grid(STRIDES, 96, CPU)
    count = sum(response_cache.sizes(STRIDES, 96))
    back = grid.views(grid.records(shown, layout(STRIDES, 96, 5, len(shown), count)), list(shown))
    assert list(back) == list(reader.branches)
    for branch, view in shown.items():
        assert torch.allclose(back[branch].boxes, view.boxes, atol=0.2)
        coarse = grid.at(back[branch], (16, 32))
        assert torch.equal(coarse.logits, back[branch].logits[:, 144:]) and coarse.strides == (16, 32)


def record(kind, seed=0):
    """A record of random bytes."""
    found = np.frombuffer(np.random.default_rng(seed).bytes(kind.itemsize), kind)[0].copy()
    found["check"] = 0
    return found


def test_a_store_gives_back_whole_records_alone(tmp_path):
    kind = layout(STRIDES, 64, 6, 1, 20)
    store = Store(tmp_path / "folder" / "a.bin", kind, 10)
    assert store.read(3) is None
    store.write(3, record(kind))
    assert (
        Store(store_file := tmp_path / "folder" / "a.bin", kind, 10).read(3).tobytes()[:-4]
        == record(kind).tobytes()[:-4]
    )
    assert store.read(2) is None and store.read(4) is None and store.read(11) is None
    with store_file.open("r+b") as file:  # half of it never reached the disk
        file.seek(3 * kind.itemsize + kind.itemsize // 2)
        file.write(bytes(kind.itemsize // 2 - 4))
    assert store.read(3) is None
    store.write(3, record(kind, 1))
    assert store.read(3).tobytes()[:-4] == record(kind, 1).tobytes()[:-4]


def write_for_ever(file, kind, ready):
    store = Store(file, kind, 50)
    while True:
        for i in range(50):
            store.write(i, record(kind, i))
        ready.set()


def test_a_writer_may_be_killed(tmp_path):
    file, kind, apart = tmp_path / "a.bin", layout(STRIDES, 640, 80, 2, 600), multiprocessing.get_context("fork")
    ready = apart.Event()
    process = apart.Process(target=write_for_ever, args=(file, kind, ready))
    process.start()
    assert ready.wait(300)
    process.kill()
    process.join()
    store = Store(file, kind, 50)
    found = [store.read(i) for i in range(50)]
    assert sum(r is not None for r in found) >= 49  # all but the one being written
    assert all(r is None or r.tobytes()[:-4] == record(kind, i).tobytes()[:-4] for i, r in enumerate(found))


def test_a_full_disk_ends_storing_and_nothing_else(tmp_path, caplog):
    kind = layout(STRIDES, 64, 6, 1, 20)
    store = Store(tmp_path / "a.bin", kind, 10)
    full = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115  # the store keeps it
    store.file, whole = full, store.file
    LOGGER.addHandler(caplog.handler)
    store.write(1, record(kind))
    store.file = whole
    store.write(2, record(kind))
    LOGGER.removeHandler(caplog.handler)
    assert store.read(1) is None and store.read(2) is None
    assert caplog.text.count("No more teacher responses are stored") == 1
    full.close()


class StandIn:
    """A teacher whose answer depends on the images, and which notes how many it saw."""

    reader = SimpleNamespace(strides=STRIDES, spec=SimpleNamespace(name="big", classes=6))
    scale = 1.0

    def __init__(self, called):
        self.called = called

    def __call__(self, x):
        self.called.append(len(x))
        parts = [response(seed=int(image.sum())) for image in x]
        logits, boxes = (torch.cat([getattr(p, field)[:1] for p in parts]) for field in ("logits", "boxes"))
        return lambda strides: {"one2many": View(STRIDES, logits=logits, boxes=boxes)}


def test_a_view_is_asked_for_once(tmp_path):
    called: list[int] = []
    some = torch.arange(4.0)[:, None, None, None].expand(4, 3, 64, 64)
    for stored in (False, True):
        store = Store(tmp_path / "a.bin", layout(STRIDES, 64, 6, 1, 20), 10)
        answers = Cache(StandIn(called), ("one2many",), store, 64, CPU)
        first = answers(some[:3], [5, 0, 7])(STRIDES)["one2many"]
        assert called == [3] and (answers.asked, answers.ran) == (3, 0 if stored else 3)
    more = answers(some[[3, 0]], [2, 5])(STRIDES)["one2many"]
    assert (
        called == [3, 1] and torch.equal(more.logits[1], first.logits[0]) and torch.equal(more.boxes[1], first.boxes[0])
    )
    fresh = StandIn([])(some[3:])(STRIDES)["one2many"]
    assert torch.allclose(ops.confidence(more.logits[:1]).amax(), ops.confidence(fresh.logits).amax(), atol=1e-3)


def test_boxes_are_stored_in_full_precision_whatever_the_teacher_runs_in(tmp_path):
    """A box of 600 pixels decoded in bfloat16 is off by up to four of them."""
    reader = read(build("yolo11n", dtype=torch.float32))
    teacher, x = Teacher(reader, response_cache.NEEDS, ("one2many",), CPU), images(2, 640, 640, dtype=torch.float32)
    points = sum((640 // s) ** 2 for s in STRIDES)
    store = Store(tmp_path / "a.bin", layout(STRIDES, 640, reader.spec.classes, 1, points), 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stored = Cache(teacher, ("one2many",), store, 640, CPU)(x, [0, 1])(STRIDES)["one2many"].boxes
        shown = teacher(x)
        with torch.autocast("cpu", enabled=False):
            said = shown(STRIDES)["one2many"].boxes
        rounded = teacher(x)(STRIDES)["one2many"].boxes
    assert (rounded - said).abs().max() > 1 > 0.2 > (stored - said).abs().max()


def opened(folder, views="a", file="b", limit=1e9, called=None):
    some = torch.zeros(2, 3, 64, 64)
    return open_all(
        [(StandIn([] if called is None else called), ("one2many",), file)], folder, views, 10, lambda: some, limit
    )


def test_what_a_response_depends_on_names_its_file(tmp_path, monkeypatch):
    called: list[int] = []
    opened(tmp_path, called=called)
    opened(tmp_path, called=called)
    assert called == [2]  # how many points to store is known for a file that is there
    assert len(list(tmp_path.iterdir())) == 1
    opened(tmp_path, views="other")
    opened(tmp_path, file="other")
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(response_cache, "SCORE", 0.5)
    opened(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_cache_keeps_to_its_limit(tmp_path):
    with pytest.raises(UsageError, match=r"needs .* GB for 10 views, .* cache_limit is 1e-06 GB: raise it, or lower"):
        opened(tmp_path / "new", limit=1e3)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="cannot write"):
        (tmp_path / "file").touch()
        Store(tmp_path / "file" / "a.bin", layout(STRIDES, 64, 6, 1, 20), 1)


def test_the_longest_unused_make_room(tmp_path):
    files = [tmp_path / f"{name}.bin" for name in "abcd"]
    for i, file in enumerate(files):
        file.write_bytes(bytes(100))
        os.utime(file, (1000 + i, 1000 + i))
    make_room(tmp_path, files[:1], 100, 250)
    assert [f.exists() for f in files] == [True, False, False, True]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"cache": "teacher", "multi_scale": 0.5}, "multi_scale=0.5"),
        ({"cache": "teacher", "rect": True}, "rect=True"),
        ({"cache": "teacher,tape"}, "teacher,ram or teacher,disk"),
        ({"cache": "teacher", "cache_views": 0}, "cache_views=0"),
        ({"cache": "teacher", "cache_limit": -1}, "cache_limit=-1"),
        ({"cache": "ram", "cache_views": 2}, "cache_views=2 is about"),
    ],
)
def test_what_cannot_be_stored_is_refused(teacher, arguments, sentence):
    with pytest.raises(UsageError, match=sentence):
        options.fold({"teacher": str(teacher), **arguments})


def test_ultralytics_own_cache_may_go_along(teacher, scenes):
    def fold(**given):
        folded = options.fold({"teacher": str(teacher), **given})
        return folded["cache"], folded["kd"].get("cache")

    assert fold(cache="teacher,ram", cache_views=3) == ("ram", {"views": 3, "limit": 10.0})
    assert fold(cache="disk,teacher", cache_limit=2) == ("disk", {"views": 5, "limit": 2.0})
    assert fold(cache="teacher") == (False, {"views": 5, "limit": 10.0})
    assert fold(cache="ram") == ("ram", None)
    assert fold(cache="teacher", kd=0) == (False, None), "a student alone sees its images as without a teacher"
    with pytest.raises(UsageError, match="resumed run"):
        options.fold({"resume": True, "cache": "teacher"})
    with pytest.raises(UsageError, match="never come back the same"):
        options.fold({"teacher": str(teacher), "cache": "teacher", "unlabeled": str(scenes.parent / "images" / "val")})


def test_methods_that_read_more_are_refused_or_left_out():
    student, teacher = read(build("yolo11n")), read(build("yolo11n", seed=1))
    names = dict(enumerate(student.model.names.values()))
    stored = {"teacher": (), "cache": CacheOptions(2, 1.0)}
    with pytest.raises(UsageError, match="method pkd reads the teacher's neck, and cache=teacher stores"):
        plan(student, teacher, DistillOptions(**stored, **asked_methods("pkd,logit", {})), names)
    found = plan(student, teacher, DistillOptions(**stored, **asked_methods("default", {})), names)
    assert list(found.terms) == ["logit_loss", "bckdb_loss"] and "pkd" in found.refused[0]
    detr = read(build("rtdetr-2-20-32"))
    with pytest.raises(UsageError, match="anchor points"):
        plan(student, detr, DistillOptions(**stored, **asked_methods("match", {})), names)


def epochs_of(caplog):
    """(read, computed) responses by epoch."""
    records = {id(r): r for r in caplog.records}.values()  # one may come over two loggers
    lines = [r.getMessage() for r in records if "teacher responses read" in r.getMessage()]
    return [tuple(int(w) for w in line.split() if w.isdigit()) for line in lines]


@pytest.mark.slow
def test_from_the_second_epoch_on_no_teacher_runs(teacher, tmp_path, caplog, monkeypatch):
    data = compose(tmp_path / "scenes", train=16, val=8, imgsz=64, seed=3)
    arguments = {
        **TINY, "data": str(data), "teacher": str(teacher), "cache": "teacher,ram", "cache_views": 1, "epochs": 3,
        "close_mosaic": 1, "model": str(teacher.parent / "student.pt"), "init": "own", "project": str(tmp_path),
    }  # fmt: skip
    LOGGER.addHandler(caplog.handler)
    cold = train(**arguments, name="cold").trainer
    assert epochs_of(caplog) == [(0, 16), (16, 0), (0, 16)]  # the last without mosaic
    assert "at most" in caplog.text and "Left out: method pkd" in caplog.text
    caplog.clear()
    warm = train(**arguments, name="warm").trainer
    assert epochs_of(caplog) == [(16, 0)] * 3
    for a, b in zip(cold.ema.ema.state_dict().values(), warm.ema.ema.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    LOGGER.removeHandler(caplog.handler)
    # without the cache the same views give nearly the same loss
    monkeypatch.setattr(KDTrainer, "_open_caches", lambda self: [])
    plain = train(**arguments, name="plain").trainer
    for trainer in (cold, plain):
        with (trainer.save_dir / "results.csv").open() as file:
            trainer.table = list(csv.DictReader(file))
    for name in ("logit_loss", "bckdb_loss"):
        a, b = (float(t.table[0][f"train/{name}"]) for t in (cold, plain))
        assert a == pytest.approx(b, rel=0.03)
    with (cold.save_dir / "args.yaml").open() as file:
        assert yaml.safe_load(file)["kd"]["cache"] == {"views": 1, "limit": 10.0}
