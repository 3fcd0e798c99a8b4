"""Images without ground truth: the same ones whatever the machine, in the terms alone, and each counted."""

from __future__ import annotations

import copy
import random

import cv2
import numpy as np
import pytest
import torch
from helpers.cli import refusal
from helpers.models import NAMES, batch, build
from helpers.training import TINY, pico, rows
from helpers.views import build as method_of
from helpers.views import make_pair
from helpers.views import without_objects as bare
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER

from yolokd.cli import main
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.data.unlabeled import Images, Steps, Unlabeled, list_folder
from yolokd.detectors import read
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing
from yolokd.distill.trainer import KDMixin
from yolokd.methods import METHODS

STILL = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "fliplr": 0.0, "flipud": 0.0}
MOVED = {"hsv_h": 0.5, "hsv_s": 0.7, "hsv_v": 0.4, "fliplr": 0.5, "flipud": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven noisy images of other shapes, one of them in a folder below."""
    place, noise = tmp_path_factory.mktemp("unlabeled"), np.random.default_rng(0)
    (place / "below").mkdir()
    for i in range(7):
        image = noise.integers(0, 255, (40 + i, 60, 3), dtype=np.uint8)
        cv2.imwrite(str(place / ("below" if i == 6 else "") / f"{i}.png"), image)
    (place / "notes.txt").write_text("not an image")
    return place


def images(folder, changes=MOVED, size=64, channels=3, stretch=False, seed=0):
    return Images(list_folder(folder), size, channels, stretch, changes, seed)


def epochs(folder, numbers, workers=0, ratio=0.75, seed=0):
    """The images of every step of these epochs, of four steps of 4 labelled images."""
    unlabeled = Unlabeled(images(folder, seed=seed), Steps(7, [4, 4, 4, 2], ratio, seed), workers)
    found = []
    for epoch in numbers:
        unlabeled.start_epoch(epoch)
        found += [unlabeled.step(torch.zeros(1, 3, 64, 64)) for _ in range(4)]
    return found


def test_an_image_is_letterboxed_as_rgb(folder):
    file = list_folder(folder)[0]
    picture = cv2.imread(str(file))
    picture = cv2.resize(picture, (64, round(picture.shape[0] * 64 / 60)), interpolation=cv2.INTER_LINEAR)
    found = images(folder, STILL)[0, 0]
    assert found.shape == (3, 64, 64) and found.dtype == torch.uint8
    top = (64 - len(picture)) // 2
    inside = found[:, top : top + len(picture)].permute(1, 2, 0).numpy()
    assert np.array_equal(inside, picture[..., ::-1])
    assert (found[:, 0] == 114).all()


def test_stretched_and_gray(folder):
    assert (images(folder, STILL, stretch=True)[0, 0][:, 0] != 114).any()
    assert images(folder, STILL, channels=1)[0, 0].shape == (1, 64, 64)
    assert images(folder, STILL, channels=5)[0, 0] is None


def test_changes_depend_on_the_draw_alone(folder):
    """Other random numbers of the process stay as they are, or the student alone would be another one."""
    data, state = images(folder), (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    draws = [data[0, d] for d in range(20)]
    assert random.getstate() == state[0] and np.random.get_state()[1].tolist() == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    random.random(), np.random.random()
    assert all(torch.equal(data[0, d], draw) for d, draw in enumerate(draws))
    assert not torch.equal(images(folder, seed=1)[0, 3], draws[3])
    still = images(folder, {**STILL, "fliplr": 0.5, "flipud": 0.5})
    plain = images(folder, STILL)[0, 0]
    flips = {tuple(axes): plain.flip(axes) if axes else plain for axes in ([], [1], [2], [1, 2])}
    seen = {name for d in range(40) for name, flipped in flips.items() if torch.equal(still[0, d], flipped)}
    assert seen == set(flips)


def test_every_image_comes_before_any_comes_again():
    steps = Steps(7, [4, 4, 4, 2], 0.75, seed=0)
    assert steps.counts == [3, 3, 3, 1]
    order = []
    for steps.epoch in range(7):
        order += [place for step in steps for place in step]
    indices, draws = zip(*order, strict=True)
    assert list(draws) == list(range(70))
    assert all(sorted(indices[i : i + 7]) == list(range(7)) for i in range(0, 70, 7))
    assert len({indices[i : i + 7] for i in range(0, 70, 7)}) > 5, "in another order each time"


@pytest.mark.parametrize(("ratio", "counts"), [(1, [4, 4, 2]), (0.1, [0, 0, 1]), (2.5, [10, 10, 5])])
def test_the_ratio_holds_over_an_epoch(ratio, counts):
    assert Steps(7, [4, 4, 2], ratio, 0).counts == counts


def test_ranks_share_the_images():
    alone = [place for step in Steps(7, [4, 4], 1, 0) for place in step]
    ranks = [[place for step in Steps(7, [2, 2], 1, 0, rank, 2) for place in step] for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == sorted(alone)


def test_the_same_images_with_workers_and_after_an_interruption(folder):
    state = torch.get_rng_state()
    whole = epochs(folder, [0, 1])
    assert torch.equal(torch.get_rng_state(), state)
    for other in (epochs(folder, [0, 1], workers=2), epochs(folder, [0]) + epochs(folder, [1])):
        assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    assert [len(x) for x in whole] == [3, 3, 3, 1] * 2
    assert not torch.equal(whole[0], whole[4]) and not torch.equal(whole[0], epochs(folder, [0], seed=1)[0])


def test_a_step_has_the_size_of_its_labelled_images(folder):
    unlabeled = Unlabeled(images(folder), Steps(7, [4, 4, 4], 0.25, 0), 0)
    unlabeled.start_epoch(0)
    shapes = [tuple(unlabeled.step(torch.zeros(4, 3, h, w)).shape) for h, w in ((96, 64), (32, 32), (64, 64))]
    assert shapes == [(1, 3, s, s) for s in (96, 32, 64)]


def test_what_cannot_be_read_is_left_out_and_counted(folder, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    cv2.imwrite(str(tmp_path / "whole.png"), np.zeros((8, 8, 3), np.uint8))
    unlabeled = Unlabeled(images(tmp_path), Steps(2, [4, 4], 1, 0), 0)
    unlabeled.start_epoch(0)
    assert [len(unlabeled.step(torch.zeros(1, 3, 64, 64))) for _ in range(2)] == [2, 2]
    assert unlabeled.drawn == 8


# In the loss


def distiller(method: str, student: str | None = None) -> Distiller:
    family = pico("yolov8").removesuffix(".yaml")
    reader = read(build(student or family, 0, torch.float32))
    other = read(build(family, 1, torch.float32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = plan(reader, other, DistillOptions((), 2.0, **asked_methods(method, {})), NAMES)
    return Distiller(reader, [Pairing(reader, made, torch.device("cpu"))]).train()


@pytest.mark.parametrize(("student", "method"), [(None, "pkd"), ("rtdetr-2-20-32", "match")])
def test_every_image_counts_the_same_and_the_own_loss_sees_none(student, method):
    """5 unlabelled images beside 2 labelled ones are 5/7 of the term, which weighs as it does without them."""
    data, more = batch(2), torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    model, parts = distiller(method, student), []
    copied = copy.deepcopy(model.module)
    torch.manual_seed(0)  # denoising queries
    own = copied(dict(data))[0].reshape(-1)
    name = next(iter(model.gains))
    model.pairings[0].register_forward_hook(lambda m, args, out: parts.append((len(args[2]["img"]), out[name].item())))
    torch.manual_seed(0)
    loss, items = model({**data, "unlabeled": more})
    assert torch.equal(loss[:-1], own)
    (two, labelled), (five, unlabelled) = parts
    assert (two, five) == (2, 5) and labelled != pytest.approx(unlabelled, rel=1e-4)
    assert items[name].item() == pytest.approx(2.0 * (2 * labelled + 5 * unlabelled) / 7, rel=1e-5)
    assert loss[-1].item() == pytest.approx(items[name].item() * (2 if student is None else 1), rel=1e-5)
    assert model.images == {"labelled": 2, "unlabelled": 5}
    model.start_epoch(1, 2)
    assert model.images == {"labelled": 0, "unlabelled": 0}


def test_unlabelled_images_teach_the_student():
    """In train mode, as what they are taught by is; a step whose labelled images are alone has another gradient."""
    grads, passes = [], []
    for extra in ({}, {"unlabeled": torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(9))}):
        model = distiller("pkd")
        loss, _ = model({**batch(2), **extra})
        loss[-1].backward()
        norm = next(m for m in model.module.modules() if isinstance(m, torch.nn.BatchNorm2d))
        passes.append(norm.num_batches_tracked.item())
        grads.append(next(model.module.parameters()).grad)
    assert passes[1] == passes[0] + 1, "a pass of their own"
    assert not torch.allclose(*grads)


def test_a_method_that_needs_ground_truth_is_left_out_for_them():
    """FGD and PKD: only PKD sees the unlabelled images."""
    model, calls = distiller("fgd,pkd"), {"fgd_loss": [], "pkd_loss": []}
    for name, method in model.pairings[0].methods.items():
        method.register_forward_pre_hook(lambda m, args, n=name: calls[n].append(len(args[2]["img"])))
    data = batch(2)
    _, alone = distiller("fgd,pkd")(dict(data))
    _, items = model({**data, "unlabeled": torch.rand(3, 3, 64, 64)})
    assert calls == {"fgd_loss": [2], "pkd_loss": [2, 3]}
    torch.testing.assert_close(items["fgd_loss"], alone["fgd_loss"])


@pytest.mark.parametrize("name", METHODS)
def test_methods_say_whether_they_need_ground_truth(name):
    """One that does not is the same with and without objects, or at least teaches something without."""
    heads = METHODS[name].heads[0]
    pair = make_pair(heads=heads)
    values = []
    for given in (pair.batch, bare(pair.batch)):
        method = method_of(name, pair)  # MGD counts its draws
        values.append(method(pair.student, pair.teacher, given).item())
    with_truth, without = values
    if METHODS[name].truth:
        assert with_truth != without
    else:
        assert without > 0 and (with_truth == without or name in {"roi", "detr_feat"})  # also by the teacher's boxes


# Through the command


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch, scenes, teacher):
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        return refusal(capsys, tmp_path, "train", "model=yolo11n.yaml", f"teacher={teacher}", f"data={scenes}", *argv)

    return run


def test_bad_folders_and_ratios(refused, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("b.jpg", "a.png"):
        (tmp_path / "broken" / name).write_text("no image")
    assert "unlabeled=gone is not a folder" in refused("unlabeled=gone")
    assert "unlabeled=empty holds no image file" in refused("unlabeled=empty")
    assert "a.png is the first" in refused("unlabeled=broken")
    assert "unlabeled_ratio=-1 is not a number" in refused(f"unlabeled={folder}", "unlabeled_ratio=-1")
    assert "give their folder" in refused("unlabeled_ratio=2")
    assert "has no ground truth" in refused(f"unlabeled={folder}", "method=fgd,ld")
    assert "is for several" in refused("teachers=best")
    assert "teachers=worst is not one of average, best" in refused("teachers=worst")


@pytest.mark.slow
def test_a_run_counts_its_images(scenes, teacher, folder, tmp_path, monkeypatch):
    """Multi-scale, a method that needs ground truth beside one that does not, and one image that is broken."""
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lambda line, *args: said.append(str(line)))
    given = {**TINY, "data": scenes, "project": tmp_path, "name": "run", "model": pico("yolo26"), "teacher": teacher}
    given |= {"method": "pkd,logit,fgd", "unlabeled": folder, "unlabeled_ratio": 0.5, "multi_scale": 0.5}
    assert main(["train", *(f"{k}={v}" for k, v in given.items())]) == 0
    counts = [line for line in said if "labelled" in line]
    assert counts == [f"Epoch {e}: 24 labelled and 12 unlabelled images" for e in (1, 2)]
    table = rows(tmp_path / "run")
    assert [(row["images/labelled"], row["images/unlabelled"]) for row in table] == [("24", "12")] * 2
    assert all(0 < float(row[f"train/{t}_loss"]) < float("inf") for row in table for t in ("pkd", "logit", "fgd"))
    assert not list(folder.glob("*.cache"))


def test_autobatch_leaves_room_for_them():
    """It fills the memory with labelled images; unlabelled ones come on top."""

    class Base(BaseTrainer):
        def auto_batch(self):
            return 15

    class Trainer(KDMixin, Base):
        def __init__(self, **given):
            self.distillation = DistillOptions((), **given)

    assert Trainer(unlabeled_ratio=1.0).auto_batch() == 7 and Trainer().auto_batch() == 15
