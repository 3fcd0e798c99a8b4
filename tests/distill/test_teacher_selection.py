"""Each image under the teacher that knows it best: the loss that chooses, and terms over the chosen images only."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.models import NAMES, batch, build
from helpers.training import TINY, pico, rows
from helpers.views import build as method_of
from helpers.views import change, make_pair, objects, tensors
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from yolokd.cli import main
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import read
from yolokd.detectors.class_map import ClassMap
from yolokd.distill import teacher_selection
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing
from yolokd.views import FIELDS, View


def view(*detections: tuple[float, float, float, float, int, float], classes: int = 2) -> View:
    """One image's detections x1 y1 x2 y2 class score, a padding one last."""
    logits, boxes = torch.full((1, len(detections) + 1, classes), -20.0), torch.zeros(1, len(detections) + 1, 4)
    for n, (*box, k, score) in enumerate(detections):
        boxes[0, n], logits[0, n, k] = torch.tensor(box), torch.tensor(score).logit()
    return View((8,), logits=logits, boxes=boxes)


def image(*true: tuple[float, float, float, float, int]) -> dict:
    """A batch of one image of 64 px with objects x1 y1 x2 y2 class."""
    rows = torch.tensor([t[:4] for t in true]).reshape(-1, 4) / 64
    boxes = torch.cat(((rows[:, :2] + rows[:, 2:]) / 2, rows[:, 2:] - rows[:, :2]), 1)
    cls = torch.tensor([t[4] for t in true]).reshape(-1, 1).float()
    return {"img": torch.zeros(1, 3, 64, 64), "cls": cls, "bboxes": boxes, "batch_idx": torch.zeros(len(true))}


A, B, HALF_OF_A = (0, 0, 32, 32), (32, 32, 64, 64), (0, 0, 32, 16)


@pytest.mark.parametrize(
    ("detections", "true", "loss"),
    [
        ([(*A, 0, 0.9)], [(*A, 0)], 0.1 + 0.0),  # missed by a tenth, and nothing seen that is not there
        ([(*HALF_OF_A, 0, 0.8)], [(*A, 0)], 0.6 + 0.4),  # half of the box
        ([(*A, 1, 0.8)], [(*A, 0)], 1 + 0.8),  # the wrong class
        ([], [(*A, 0), (*B, 1)], 2),
        ([(*A, 0, 0.9), (*B, 1, 0.3)], [(*A, 0)], 0.1 + 0.3),  # one too many
        ([(*A, 0, 0.9), (*B, 1, 0.05)], [(*A, 0)], 0.1),  # too unsure to count
        ([(*A, 0, 0.9), (*HALF_OF_A, 0, 0.5)], [(*A, 0)], 0.1 + 0.5),  # twice the same object
        ([(*B, 0, 0.7)], [], 0.7),  # nothing is there
    ],
)
@pytest.mark.parametrize("dense", [False, True])
def test_the_loss_counts_what_is_missed_and_what_is_false(detections, true, loss, dense):
    assert teacher_selection.losses(view(*detections), dense, None, image(*true)).item() == pytest.approx(
        loss, abs=1e-4
    )


def test_one_box_is_one_object():
    """A box over two of the same class is found for one of them; a dense head's many boxes on an object are one."""
    near = (0, 0, 32, 30)
    two = teacher_selection.losses(view((*A, 0, 0.9)), False, None, image((*A, 0), (*near, 0)))
    assert two.item() == pytest.approx(0.1 + 1, abs=1e-4)
    crowd = view((*A, 0, 0.9), (*near, 0, 0.8), (*near, 0, 0.7))
    assert teacher_selection.losses(crowd, True, None, image((*A, 0))).item() == pytest.approx(0.1, abs=1e-4)
    assert teacher_selection.losses(crowd, False, None, image((*A, 0))).item() == pytest.approx(1.6, abs=1e-4)


def test_classes_go_through_the_map():
    """A class that the teacher does not know is missed; one that the data does not know is no false detection."""
    shared = ClassMap([1], [[0, 2]])  # the data's 1 is the teacher's 0 and 2
    seen = view((*A, 2, 0.9), (*B, 1, 0.8), classes=3)
    assert teacher_selection.losses(seen, False, shared, image((*A, 1))).item() == pytest.approx(0.1, abs=1e-4)
    assert teacher_selection.losses(seen, False, shared, image((*A, 1), (*B, 0))).item() == pytest.approx(1.1, abs=1e-4)
    assert teacher_selection.losses(seen, False, ClassMap([], []), image((*A, 1), (*B, 0))).item() == 2


def test_images_do_not_mix():
    pair = make_pair(batch=3, heads="set/set")
    together = teacher_selection.losses(pair.teacher, False, None, pair.batch)
    for i in range(3):
        own = torch.tensor([i])
        part = (
            teacher_selection.view_of_images(pair.teacher, own, 3),
            False,
            None,
            teacher_selection.batch_of_images(pair.batch, own),
        )
        torch.testing.assert_close(teacher_selection.losses(*part), together[own])
    assert together.unique().numel() == 3


@pytest.mark.parametrize("heads", ["dense/dense", "set/set"])
def test_a_part_of_a_view_is_what_the_part_would_have_shown(heads):
    """Every field, the objects of the images, and the decoder on the right images' memory."""
    own = torch.tensor([2, 0])
    pair = make_pair(batch=3, heads=heads)
    part = teacher_selection.view_of_images(pair.student, own, 3)
    for field in FIELDS:
        whole = tensors(pair.student, field)
        assert all(torch.equal(a, b[own]) for a, b in zip(tensors(part, field), whole, strict=True))
    batch_part = teacher_selection.batch_of_images(pair.batch, own)
    before, after = objects(pair.batch), objects(batch_part)
    assert [sum(boxes, []) for boxes in after] == [pytest.approx(sum(before[i], [])) for i in (2, 0)]
    if part.decode is not None:
        queries = pair.student.content, pair.student.references
        whole, got = pair.student.decode(*queries), part.decode(*(q[own] for q in queries))
        for name, layers in whole.items():
            for a, b in zip(got[name], layers, strict=True):
                torch.testing.assert_close(a, b[own])


def test_a_method_sees_the_same_in_a_part():
    """CrossKD runs the teacher's head on the student's towers: both must be of the same images."""
    own, pair = torch.tensor([1]), make_pair(batch=2)
    method = method_of("crosskd", pair)
    part, cut = teacher_selection.batch_of_images(pair.batch, own), pair.batch["batch_idx"] == 1
    by_hand = {"img": pair.batch["img"][1:], "cls": pair.batch["cls"][cut], "bboxes": pair.batch["bboxes"][cut]}
    got = method(*(teacher_selection.view_of_images(v, own, 2) for v in (pair.student, pair.teacher)), part)
    expected = method(
        *(change(v, lambda x: x[1:]) for v in (pair.student, pair.teacher)), {**by_hand, "batch_idx": torch.zeros(1)}
    )
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    assert got.item() != pytest.approx(method(pair.student, pair.teacher, pair.batch).item(), rel=1e-3)


def distiller(best: bool, method: str = "bckd_box") -> Distiller:
    family = pico("yolov8").removesuffix(".yaml")
    student = read(build(family, 0, torch.float32))
    pairings = []
    for seed in (1, 2):
        made = plan(
            student,
            read(build(family, seed, torch.float32)),
            DistillOptions((), 2.0, **asked_methods(method, {})),
            NAMES,
        )
        pairings.append(Pairing(student, made, torch.device("cpu"), best))
    return Distiller(student, pairings, best=best).train()


def test_a_term_is_the_mean_over_images_of_their_best_teacher(monkeypatch):
    """One image under the first teacher, three under the second: each pairing weighs by its share."""
    data, own = batch(4), [torch.tensor([2]), torch.tensor([0, 1, 3])]
    model = distiller(best=True)
    monkeypatch.setattr(teacher_selection, "images_of_best", lambda losses: own)
    parts = {}

    def spy(i):
        def hook(module, args, out):
            parts[i] = (args[2]["img"], out["bckdb_loss"])

        return hook

    for i, pairing in enumerate(model.pairings):
        pairing.register_forward_hook(spy(i))
    _, items = model(data)
    assert all(torch.equal(parts[i][0], data["img"][own[i]]) for i in (0, 1))
    expected = 2.0 * (0.25 * parts[0][1] + 0.75 * parts[1][1])
    assert items["bckdb_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert parts[0][1].item() != pytest.approx(parts[1][1].item(), rel=1e-3)
    assert model.taught == [1, 3]
    model.start_epoch(1, 2)
    assert model.taught == [0, 0]


def test_a_teacher_without_images_takes_no_part(monkeypatch):
    monkeypatch.setattr(teacher_selection, "images_of_best", lambda losses: [torch.arange(4), torch.arange(0)])
    best, average = distiller(best=True), distiller(best=False)
    alone = Distiller(average.reader, [average.pairings[0]]).train()
    assert best(batch(4))[1]["bckdb_loss"].item() == pytest.approx(alone(batch(4))[1]["bckdb_loss"].item(), rel=1e-6)
    assert best.taught == [4, 0]


def test_average_is_the_mean_over_teachers():
    average = distiller(best=False)
    each = [Distiller(average.reader, [p]).train()(batch(4))[1]["bckdb_loss"].item() for p in average.pairings]
    assert average(batch(4))[1]["bckdb_loss"].item() == pytest.approx(sum(each) / 2, rel=1e-6)


def test_the_teacher_that_knows_the_image_is_chosen():
    """Through the teachers' own heads: one whose boxes and classes are those of the ground truth wins every image."""
    model, data = distiller(best=True, method="pkd"), batch(2)
    view = next(iter(model.pairings[1].teacher(data["img"])((8, 16, 32)).values()))
    place = view.logits.amax(-1).argmax(-1)
    best = view.boxes[torch.arange(2), place] / 64
    sides = (best[:, 2:] - best[:, :2]).clamp(min=0.05)
    data |= {
        "bboxes": torch.cat(((best[:, :2] + best[:, 2:]) / 2, sides), 1),
        "cls": view.logits[torch.arange(2), place].argmax(-1, keepdim=True).float(),
        "batch_idx": torch.arange(2.0),
    }
    losses = [p.loss(p.teacher(data["img"]), data) for p in model.pairings]
    expected = torch.stack(losses).argmin(0)
    model(data)
    assert model.taught == [(expected == i).sum().item() for i in (0, 1)]
    assert losses[1].isfinite().all() and (losses[0] != losses[1]).all()


@pytest.mark.slow
def test_best_of_two_families_through_the_command(scenes, teacher, tmp_path, monkeypatch):
    """A trained YOLO11 beside an untrained RT-DETR of half its classes: most images go to the one that sees."""
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lambda line, *args: said.append(str(line)))
    other = build("rtdetr-2-20-32", 0, torch.float32)
    other.names, other.task = {k: YOLO(teacher).names[9 - k] for k in range(5)}, "detect"
    torch.save({"model": other, "train_args": {}}, tmp_path / "other.pt")
    given = {**TINY, "epochs": 2, "data": scenes, "project": tmp_path, "name": "run", "model": pico("yolov8")}
    given |= {"teacher": f"{tmp_path / 'other.pt'},{teacher}", "teachers": "best", "method": "pkd,match"}
    assert main(["train", *(f"{k}={v}" for k, v in given.items())]) == 0
    counts = [[int(n) for n in re.findall(r"the best teacher of (\d+)", line)] for line in said]
    assert len(counts := [c for c in counts if c]) == 2
    assert all(first + second == 24 and second > 12 for first, second in counts)
    table = rows(tmp_path / "run")
    assert all(float(row["train/pkd_loss"]) > 0 and float(row["train/match_loss"]) > 0 for row in table)
