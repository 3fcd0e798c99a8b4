"""Other ways to choose channels: copied weights are the teacher's, drawn ones follow the seed, and both are worse."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import NAMES, build, images
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils import DEFAULT_CFG

from yolokd.config import options
from yolokd.config.options import DistillOptions
from yolokd.detectors import read
from yolokd.detectors.class_map import match_classes
from yolokd.detectors.opening import open_teacher
from yolokd.errors import UsageError
from yolokd.init import transfer
from yolokd.init.channel_choice import ChannelChoice, evenly
from yolokd.init.layer_pairs import bare, layer_pairs
from yolokd.init.teacher_statistics import raw_outputs


def narrow(family: str, width: float = 0.125, names: dict[int, str] = NAMES) -> DetectionModel:
    layout = yaml_model_load(f"{family}.yaml")
    depth, _, most = layout["scales"][layout["scale"]]
    layout["scales"] = {layout["scale"]: [depth, width, most]}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = DetectionModel(layout, nc=len(names), verbose=False).eval()
    model.names, model.args = names, DEFAULT_CFG
    return model


def started(family: str, choice: ChannelChoice, classes=None, **of_student) -> tuple[DetectionModel, DetectionModel]:
    student, teacher = narrow(family, **of_student), build(family, dtype=torch.float32)
    with torch.random.fork_rng():
        x = images(8, 64, 64, dtype=torch.float32)
        transfer.start("teacher", read(student), read(teacher), x, classes, choice=choice)
    return student, teacher


def test_every_kth_channel():
    assert evenly(16, 8).tolist() == list(range(0, 16, 2))
    assert evenly(10, 4).tolist() == [0, 2, 5, 7]
    copied = ChannelChoice("copied").channels("a layer", torch.eye(4), torch.eye(4), 6)
    assert copied.tolist() == [0, 1, 2, 3, -1, -1], "a wider student has channels of its own"


def test_drawn_channels_follow_the_seed_and_the_layer():
    def drawn(seed: int, name: str) -> list[int]:
        return ChannelChoice("random", seed).channels(name, torch.eye(64), torch.eye(64), 32).tolist()

    assert drawn(0, "a") == drawn(0, "a") == sorted(drawn(0, "a")) and len(set(drawn(0, "a"))) == 32
    assert drawn(0, "a") != drawn(1, "a") and drawn(0, "a") != drawn(0, "b")


@pytest.mark.parametrize("family", ["yolo11n", pytest.param("yolov8n", marks=pytest.mark.slow)])
def test_copied_weights_are_the_teachers_between_the_channels_that_are_kept(family):
    student, teacher = started(family, ChannelChoice("copied"))
    stem, second = (m.conv.weight for m in teacher.model[:2])
    assert torch.equal(student.model[0].conv.weight, stem[::2])
    assert torch.equal(student.model[1].conv.weight, second[::2, ::2])
    assert torch.equal(student.model[1].bn.bias, teacher.model[1].bn.bias[::2])
    pairs = layer_pairs(student, teacher)
    for p in pairs:
        mine, theirs = bare(p.student).weight, bare(p.teacher).weight
        assert torch.isin(mine, theirs).all(), f"{p.name}: every weight is one of the teacher's"
    last = next(p for p in pairs if p.kind == "box")
    assert torch.equal(last.student.bias, last.teacher.bias)


def test_a_student_of_the_teachers_size_is_its_copy():
    student, teacher = started("yolo11n", ChannelChoice("copied"), width=0.25)
    for p in layer_pairs(student, teacher):
        assert torch.equal(bare(p.student).weight, bare(p.teacher).weight), p.name


def test_copied_scores_are_those_of_the_shared_classes():
    names = {0: "class 3", 1: "another"}
    classes = match_classes(names, NAMES, None)
    student, teacher = started("yolo11n", ChannelChoice("copied"), classes, width=0.25, names=names)
    mine, theirs = (model.model[-1].cv3[0][-1] for model in (student, teacher))
    assert torch.equal(mine.weight[0], theirs.weight[3]) and torch.equal(mine.bias[:1], theirs.bias[3:4])
    assert not torch.isin(mine.weight[1], theirs.weight).any(), "the other class keeps its own"


def test_solved_channels_come_nearest_to_a_trained_teacher(teacher, scenes):
    photos = sorted((scenes.parent / "images" / "train").iterdir())
    x = torch.from_numpy(np.stack([cv2.imread(str(p))[..., ::-1] for p in photos])).permute(0, 3, 1, 2).float() / 255
    known = open_teacher(str(teacher)).float()

    def error(how: str) -> float:
        student = narrow("yolo11n", names=known.names)
        with torch.random.fork_rng():
            transfer.start("teacher", read(student), read(known), x[:16], choice=ChannelChoice(how))
        with torch.no_grad(), raw_outputs(student), raw_outputs(known):
            mine, theirs = (model(x[16:])["scores"] for model in (student, known))
        return float(F.binary_cross_entropy_with_logits(mine, theirs.sigmoid()))

    solved, drawn, copied = (error(how) for how in ("solved", "random", "copied"))
    assert solved < drawn < copied


def test_the_option_travels_and_nonsense_is_refused(teacher):
    given = {"teacher": str(teacher), "model": "yolo11n.yaml"}
    folded = options.fold({**given, "init": "teacher", "init.channels": "random"})
    assert DistillOptions.of(folded).init_channels == "random"
    assert "init_channels" not in options.fold(given)["kd"]
    with pytest.raises(UsageError, match="init.channels=best is not one of solved, copied, random"):
        options.fold({**given, "init.channels": "best"})
    with pytest.raises(UsageError, match="init.channels=copied is about a start from the teacher"):
        options.fold({**given, "init": "own", "init.channels": "copied"})
    rtdetr = read(build("rtdetr-2-20-32", dtype=torch.float32))
    with pytest.raises(UsageError, match="init.channels=copied is for YOLOs"):
        transfer.start("teacher", rtdetr, rtdetr, images(2), choice=ChannelChoice("copied"))
