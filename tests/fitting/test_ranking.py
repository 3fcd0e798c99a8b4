"""The ranking: a network that can hold the teacher gets its loss, a narrower one a higher one, every time the same."""

from __future__ import annotations

import math

import pytest
import torch

from yolokd.detectors import opening
from yolokd.errors import UsageError
from yolokd.fitting import ranking
from yolokd.fitting.ranking import Sample, rank
from yolokd.fitting.request import read_request
from yolokd.init.race import detection_loss


@pytest.fixture(scope="module")
def request_of(teacher, scenes, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "USER_CONFIG_DIR", tmp_path_factory.mktemp("config"))
        yield read_request(
            teacher, scenes, "infer.p50=5ms", "here", None, None, [0.25, 0.0625], [0.5], [64], 1.0,
            tmp_path_factory.mktemp("fit") / "out", None, None, {"epochs": 1},
        )  # fmt: skip


@pytest.fixture(scope="module")
def sample(request_of):
    return Sample(request_of.data, request_of.arguments, 64, torch.device("cpu"))


def test_images_to_judge_by_are_none_of_those_to_solve_on(sample):
    assert len(sample.held_out) == 12 and len(sample.seen) == 12
    assert not set(sample.held_out) & set(sample.seen)
    images = sample.images()
    assert images.shape == (12, 3, 64, 64) and 0 <= images.min() and 0.5 < images.max() <= 1


def test_what_can_hold_more_of_the_teacher_is_ranked_better(request_of, sample, monkeypatch):
    monkeypatch.setattr(ranking, "step_seconds", lambda *_: 1.0)
    as_teacher, narrow = request_of.candidates
    found = {c: rank(request_of.ready(c), sample) for c in (as_teacher, narrow)}
    teacher = request_of.ready(narrow).plans[0].teacher.model
    teacher.args = sample.settings
    own = sum(detection_loss(teacher, batch) for batch in sample.judges()) / len(sample.judges())
    assert found[as_teacher].loss == pytest.approx(own, rel=0.03), "a network of its size can hold all of it"
    assert found[narrow].loss > 1.2 * own
    assert rank(request_of.ready(narrow), sample).loss == pytest.approx(found[narrow].loss, rel=1e-4)


def test_a_start_without_a_finite_loss_comes_last(request_of, sample, monkeypatch):
    monkeypatch.setattr("yolokd.init.transfer.solve", lambda *_: {"teacher": "what was solved is not finite"})
    found = rank(request_of.ready(request_of.candidates[1]), sample)
    assert found.loss == math.inf and found.step > 0 and found.seconds > 0


def test_one_image_is_too_few(request_of, scenes, tmp_path):
    (tmp_path / "one.txt").write_text(f"{sorted((scenes.parent / 'images/train').iterdir())[0]}\n")
    with pytest.raises(UsageError, match="one training image"):
        data = {**request_of.data, "train": str(tmp_path / "one.txt")}
        Sample(data, request_of.arguments, 64, torch.device("cpu"))
