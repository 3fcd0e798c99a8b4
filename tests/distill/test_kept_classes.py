"""A whole training with Ultralytics' classes=[0,3], which keeps the labels of these classes only."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from helpers.training import TINY, pico, read, rows
from ultralytics.utils import LOGGER

import yolokd
from yolokd.methods.logit import Logit

KEPT = [0, 3]


@pytest.fixture
def log():
    """The lines of the log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


@pytest.mark.slow
def test_the_kept_classes_are_taught_and_no_other(scenes, teacher, tmp_path, monkeypatch, log):
    """By the labels and by the terms; and the log counts what is left of images and classes, each once."""
    compared = []
    real = Logit.forward

    def forward(self, student, teacher, batch):
        compared.append((student.logits.shape[-1], teacher.logits.shape[-1]))
        return real(self, student, teacher, batch)

    monkeypatch.setattr(Logit, "forward", forward)
    teacher = Path(shutil.copy(teacher, tmp_path / "big\x1b[2J\n.pt"))
    given = {**TINY, "epochs": 1, "data": str(scenes), "project": str(tmp_path), "classes": KEPT, "init": "own"}
    given["report"] = False
    student = yolokd.train(model=pico("yolo11"), teacher=str(teacher), method="logit", **given)
    trainer = student.trainer
    assert compared and set(compared) == {(2, 2)}, "the terms were to compare the kept classes"
    (pairing,) = trainer.distiller.pairings
    assert pairing.classes.student.tolist() == KEPT
    dataset = trainer.train_loader.dataset
    images = [set(label["cls"].flatten().astype(int).tolist()) for label in dataset.labels]
    assert all(found <= set(KEPT) for found in images)
    with_objects = sum(map(bool, images))
    assert 0 < with_objects < len(images), "some image was to lose all its objects, or the counts say nothing"
    said = [line for line in log if line.startswith("Labels: ")]
    assert said == [f"Labels: {with_objects} training images have objects, {len(images) - with_objects} have none."]
    assert not [line for line in log if line.startswith("Check: train has")]
    validated = [set(label["cls"].flatten().astype(int).tolist()) for label in trainer.test_loader.dataset.labels]
    (line,) = [line for line in log if line.startswith("Check: val has")]
    assert f": {sum(map(bool, validated))} with objects, {sum(not v for v in validated)} without" in line
    assert "Classes: all 2 classes that classes= keeps are taught by big\\x1b[2J\\n.pt" in log
    ours = [line for line in log if line.startswith(("Check: ", "Distilling ", "Classes: ", "Labels: "))]
    assert len(ours) >= 5 and all(map(str.isprintable, ours)), "a file's name was to do nothing to a terminal"
    assert float(rows(trainer.save_dir)[0]["train/logit_loss"]) > 0
    assert len(read(trainer.best)["model"].names) == 10, "the student keeps all its classes"
    assert torch.isfinite(torch.tensor(trainer.metrics["metrics/mAP50(B)"]))
