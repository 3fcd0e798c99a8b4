"""Terms that lose weight as the student catches up with its teacher, by scores on the validation split."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.distillers import SIZE, make
from helpers.models import batch
from helpers.training import TINY, pico, rows
from torch import Tensor
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from yolokd.detectors.class_map import ClassMap
from yolokd.distill import fading
from yolokd.distill.fading import Fading, shared_ap, teacher_metric, weight
from yolokd.distill.trainer import KDTrainer
from yolokd.views import View


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (0.0, 0.6, 1.0),  # it has not scored yet
        (0.2, 0.6, 1.0),
        (0.3, 0.6, 1.0),  # half of it
        (0.45, 0.6, 0.5),
        (0.54, 0.6, 0.2),
        (0.6, 0.6, 0.0),
        (0.7, 0.6, 0.0),
        (0.1, 0.0, 0.0),  # a teacher that detects nothing
        (0.0, 0.0, 1.0),
        (0.7, math.nan, 1.0),  # not known
    ],
)
def test_the_weight_falls_over_the_upper_half_of_the_teachers_score(student, teacher, expected):
    assert weight(student, teacher) == pytest.approx(expected, abs=1e-9)


def test_the_students_score_is_the_mean_of_its_last_epochs_and_survives_an_interruption():
    """One epoch that scores high by chance on few images must not end the teaching."""
    state = Fading([0.5, math.nan])
    assert state.weights() == [1.0, 1.0]
    for score in (0.1, 0.45, 0.48, 0.51):
        state.note([score, score])
    state.note([math.nan, math.nan])  # an epoch without a score
    assert state.mean(0) == pytest.approx(0.48)
    assert state.weights() == pytest.approx([0.08, 1.0])
    again = Fading.of_state(state.state())
    assert again.weights() == pytest.approx(state.weights())
    again.note([0.51, 0.51])
    assert again.mean(0) == pytest.approx(0.5)
    assert Fading.of_state(Fading([0.5]).state()).weights() == [1.0], "before the first epoch ended"


def test_a_teacher_without_a_class_of_the_data_does_not_keep_the_other_one_from_fading():
    state = Fading([math.nan, 0.3])
    for _ in range(2):
        state.note([math.nan, 0.3])
    assert state.weights() == [1.0, 0.0] == Fading.of_state(state.state()).weights()


def test_terms_weigh_what_is_set_and_the_students_own_loss_does_not_change():
    full, part = make(), make()
    part.weights = [0.25]
    loss, items = full(batch(SIZE))
    less, less_items = part(batch(SIZE))
    torch.testing.assert_close(less, loss * torch.tensor([1, 1, 1, 0.25, 0.25]))
    assert less_items["pkd_loss"] == pytest.approx(items["pkd_loss"].item() / 4)


def test_a_teacher_whose_terms_weigh_nothing_is_not_run():
    distiller = make()
    distiller.weights = [0.0]
    object.__setattr__(distiller.pairings[0], "teacher", None)
    expected = copy.deepcopy(distiller.module)(batch(SIZE))[0]
    loss, items = distiller(batch(SIZE))
    assert torch.equal(loss[:3], expected)
    assert items["pkd_loss"] == items["logit_loss"] == 0


def test_of_two_teachers_the_overtaken_one_is_left_out_of_the_mean():
    """The other one then teaches alone, in full."""
    alone, both = make(), make()
    both.pairings.append(make("yolo11n", "yolov8n").pairings[0])
    both.weights = [1.0, 0.0]
    object.__setattr__(both.pairings[1], "teacher", None)
    torch.testing.assert_close(both(batch(SIZE))[0], alone(batch(SIZE))[0])


# --- scores ---------------------------------------------------------------------------------------------------------


class Told:
    """A teacher that answers with the boxes of the images that it is shown, which it was told."""

    def __init__(self, batches: list[dict[str, Any]], classes: int, change: int = 0) -> None:
        self.reader = SimpleNamespace(strides=(8, 16, 32), spec=SimpleNamespace(provides=fading.NEEDS, name="told"))
        self.fields, self.batches, self.classes, self.change = fading.NEEDS, iter(batches), classes, change

    def __call__(self, images: Tensor) -> Any:
        told, side = next(self.batches), torch.tensor([images.shape[3], images.shape[2]]).repeat(2)
        logits, boxes = torch.full((len(images), 60, self.classes), -9.0), torch.zeros(len(images), 60, 4)
        for i in range(len(images)):
            here = told["batch_idx"] == i
            centre, size = (told["bboxes"][here] * side).split(2, -1)
            count = int(here.sum())
            boxes[i, :count] = torch.cat((centre - size / 2, centre + size / 2), -1)
            logits[i, torch.arange(count), told["cls"][here].flatten().long() + self.change] = 5.0
        return lambda strides: {"one2many": View(strides, logits=logits, boxes=boxes)}


@pytest.fixture(scope="module")
def trainer(scenes, tmp_path_factory) -> Any:
    """Set up as for a training, with its validation images."""
    where = tmp_path_factory.mktemp("runs")
    made = YOLO(pico("yolo11")).task_map["detect"]["trainer"](
        overrides={**TINY, "model": pico("yolo11"), "data": str(scenes), "project": str(where)}
    )
    made._setup_train()
    made.validator.device = made.device
    return made


def metric(trainer: Any, classes: ClassMap | None = None, names: int = 10, change: int = 0) -> Any:
    told = [copy.deepcopy(b) for b in trainer.test_loader]
    pairing: Any = SimpleNamespace(teacher=Told(told, names, change), classes=classes)
    assert fading.can_score(pairing, "detect")
    box = teacher_metric(trainer, pairing)
    return box, shared_ap(box, pairing)


def test_a_teacher_that_is_always_right_scores_all_there_is(trainer):
    _, (map50, score) = metric(trainer)
    assert map50 == pytest.approx(0.995, abs=1e-6)  # what Ultralytics' interpolation gives at most
    assert score == pytest.approx(0.995, abs=1e-6)


def test_a_teacher_with_one_class_more_is_scored_by_class_not_by_index(trainer):
    shifted = ClassMap(list(range(10)), [[k + 1] for k in range(10)])
    assert metric(trainer, shifted, 11, 1)[1][1] == pytest.approx(0.995, abs=1e-6)
    assert metric(trainer, None, 11, 1)[1][1] == pytest.approx(0, abs=1e-6)


def test_classes_that_the_teacher_does_not_know_do_not_count(trainer):
    few = ClassMap([0, 3], [[0], [3]])
    box, (_, score) = metric(trainer, few)
    assert score == pytest.approx(0.995, abs=1e-6)
    assert float(box.all_ap.mean()) < 0.5, "over all classes it would look bad"
    none: Any = SimpleNamespace(classes=ClassMap([], []))
    assert all(math.isnan(x) for x in shared_ap(box, none))


def test_upright_boxes_are_not_scored_against_rotated_ones(trainer):
    """Ultralytics' metric of boxes ends in an assertion there, so that a detector could not teach an obb model."""
    told: Any = SimpleNamespace(teacher=Told([], 10, 0), classes=None)
    where = SimpleNamespace(
        args=SimpleNamespace(val=True, task="obb"), distiller=SimpleNamespace(pairings=[told]),
        distillation=SimpleNamespace(of_student=()),
    )  # fmt: skip
    assert math.isnan(fading.FadingMixin.score_teachers(where).teachers[0])


# --- the trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_says_its_scores_fades_and_remembers_both(scenes, teacher, tmp_path, caplog, monkeypatch):
    """The teacher's score is that of Ultralytics' own validation of its file."""
    monkeypatch.setattr(LOGGER, "propagate", True)
    noted: list[Any] = []
    monkeypatch.setattr(Fading, "note", lambda self, scores: noted.append(scores))
    monkeypatch.setattr(fading, "weight", lambda student, score: 0.5 if len(noted) == 1 else float(not noted))
    student = YOLO(teacher)  # scores from the first epoch on
    with caplog.at_level(logging.INFO, LOGGER.name):
        student.train(
            trainer=KDTrainer, teacher=teacher, data=scenes, project=tmp_path, name="run", method="logit",
            **{**TINY, "epochs": 3, "lr0": 1e-6},
        )  # fmt: skip
    terms = [float(row["train/logit_loss"]) for row in rows(tmp_path / "run")]
    assert terms[0] > 0 and terms[1] > 0 and terms[2] == 0
    own = YOLO(teacher).val(data=scenes, imgsz=64, batch=16, workers=0, plots=False, device="cpu", project=tmp_path)
    said = f"mAP50 {own.box.map50:.1%}, mAP50-95 {own.box.map:.1%}"
    assert own.box.map > 0.1 and f"on the validation split: {said}" in caplog.text
    assert "weigh 0.50 from here" in caplog.text and "weigh 0.00 from here" in caplog.text
    assert len(noted) == 3, "after every epoch, not the final validation"
    assert noted[0] == [pytest.approx(float(rows(tmp_path / "run")[0]["metrics/mAP50-95(B)"]), abs=1e-5)]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{"fade": False}, {"val": False}])
def test_without_fading_or_validation_nothing_is_scored_before(arguments, scenes, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(fading, "teacher_metric", None)  # calling it fails
    monkeypatch.setattr(fading, "weight", lambda student, score: 1.0 if math.isnan(score) else None)
    student = YOLO(pico("yolo11"))
    student.train(
        trainer=KDTrainer, teacher=teacher, data=scenes, project=tmp_path, name="run", method="pkd", **TINY, **arguments
    )
    assert all(float(row["train/pkd_loss"]) > 0 for row in rows(Path(tmp_path / "run")))
