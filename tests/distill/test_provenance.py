"""How a student was made travels whole, from the training to the manifest of the bundle on the board."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile

import pytest
from helpers.training import TINY, read

import yolokd
from yolokd.detectors.opening import read_checkpoint
from yolokd.distill.provenance import Provenance
from yolokd.onnx import metadata
from yolokd.onnx.export import describe

TEACHERS = ({"file": "a.pt", "sha256": "0"}, {"file": "b.pt", "sha256": "1"})


def test_nothing_is_lost_on_the_way():
    made_by = Provenance("1", TEACHERS, {"pkd": {"gain": 1.0}}, 2.0, "teacher", "/home/me/mine.yaml", "mine.yaml", None)
    assert Provenance.from_dict(made_by.to_dict()) == made_by
    assert made_by.to_dict()["teacher"] == TEACHERS[0], "readers of the first format find the first teacher"
    described = describe(made_by.to_dict(), "raw", (64, 64))
    on_the_board = Provenance.from_dict(described)
    assert on_the_board.teachers == TEACHERS and on_the_board.start == "teacher"
    assert "/home/me" not in json.dumps(described)


def test_what_the_first_format_and_a_stranger_say():
    old = Provenance.from_dict({"teacher": TEACHERS[0], "gain": 1.0})
    assert old.teachers == TEACHERS[:1] and old.start is None
    assert Provenance.of_checkpoint({}) == Provenance() and Provenance().without_paths()["teacher"] is None


@pytest.mark.slow
def test_two_teachers_and_the_start_reach_the_board(teacher, scenes, tmp_path):
    """A student with two teachers, started from the first one's weights."""
    second = shutil.copy(teacher, tmp_path / "second.pt")
    run = yolokd.train(
        model=teacher, teacher=[teacher, second], init="teacher", method="logit", data=scenes,
        **{**TINY, "epochs": 1, "project": str(tmp_path / "runs"), "report": False},
    )  # fmt: skip
    sums = [
        {"file": f, "sha256": hashlib.sha256(teacher.read_bytes()).hexdigest()} for f in ("teacher.pt", "second.pt")
    ]
    signed = read(run.trainer.best)["yolokd"]
    file = yolokd.export(run.trainer.best, imgsz=64, source=scenes.parent / "images" / "val")
    described = metadata.description(metadata.read(file))
    packed = yolokd.bundle(run.trainer.best, imgsz=64, fp16=True, data=scenes, source=scenes.parent / "images" / "val")
    with zipfile.ZipFile(packed) as archive:
        manifest = json.loads(archive.read("bundle.json"))
        (tmp_path / "twin.onnx").write_bytes(archive.read("model_fp16.onnx"))
    twin = metadata.description(metadata.read(tmp_path / "twin.onnx"))
    for entry in (signed, described, twin, manifest["provenance"]):
        assert entry["teachers"] == sums and entry["teacher"] == sums[0] and entry["start"] == "teacher"
    _, checkpoint = read_checkpoint(run.trainer.last, "model")
    assert Provenance.of_checkpoint(checkpoint).teachers == tuple(sums)
