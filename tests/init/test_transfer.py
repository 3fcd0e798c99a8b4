"""The student started from its teacher: what must come out exactly, what is left alone, and the trainer."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.models import NAMES, build, images
from helpers.training import ASSETS, TINY
from torch import nn
from ultralytics.data.base import BaseDataset
from ultralytics.nn.modules.block import A2C2f
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils import DEFAULT_CFG

from yolokd.detectors import read
from yolokd.detectors.class_map import match_classes
from yolokd.detectors.yolo import YoloReader
from yolokd.distill import starting
from yolokd.distill.trainer import KDTrainer
from yolokd.errors import UsageError
from yolokd.init import least_squares, teacher_statistics, transfer
from yolokd.init.channel_map import ChannelTracker, channels, index, mark
from yolokd.init.layer_fitter import LayerFitter, distributions, expected_sides
from yolokd.init.layer_pairs import bare, iter_layer_pairs, layer_pairs, sums
from yolokd.init.teacher_statistics import TeacherStatistics, raw_outputs

HALF = {"yolo11n": (0.5, 0.125), "yolo26n": (0.5, 0.125), "yolov8n": (0.33, 0.125), "yolov10n": (0.33, 0.125)}
HALF |= {"yolo12s": (0.5, 0.25), "yolov5n": (0.33, 0.125)}


def student_of(family: str, depth: float, width: float, dtype: torch.dtype = torch.float64) -> DetectionModel:
    """An untrained model of the family with these factors."""
    layout = yaml_model_load(f"{family}.yaml")
    layout["scales"] = {layout["scale"]: [depth, width, 1024]}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = DetectionModel(layout, nc=len(NAMES), verbose=False).to(dtype).eval()
    model.names, model.args = NAMES, DEFAULT_CFG
    return model


def deaden(student: DetectionModel, teacher: DetectionModel) -> None:
    """Make the teacher's last channels constantly 0, as many as the student's lack, so that it computes what a narrower
    network can."""
    for p in layer_pairs(student, teacher):
        if p.last:
            continue
        parts = 2 if p.kind == "split" else 1
        kept, has = bare(p.student).out_channels // parts, bare(p.teacher).out_channels // parts
        rows = torch.arange(has * parts) % has >= kept
        p.teacher.bn.weight.data[rows] = p.teacher.bn.bias.data[rows] = 0


def raw(model: DetectionModel, x: torch.Tensor) -> list[torch.Tensor]:
    with raw_outputs(model), torch.no_grad():
        out = model(x)
    branches = out.values() if "one2many" in out else [out]
    return [branch[key] for branch in branches for key in ("boxes", "scores")]


def start_from(
    student: DetectionModel, teacher: DetectionModel, x: torch.Tensor, how: str = "teacher"
) -> dict[str, transfer.State]:
    with torch.random.fork_rng():
        return transfer.start(how, YoloReader(student), YoloReader(teacher), x)


@pytest.mark.parametrize(
    "family", ["yolo11n", *(pytest.param(f, marks=pytest.mark.slow) for f in HALF if f != "yolo11n")]
)
def test_a_teacher_that_a_narrower_network_can_be_is_reproduced(family, monkeypatch):
    monkeypatch.setattr(least_squares, "RIDGE", 1e-10)
    monkeypatch.setattr(teacher_statistics, "POINTS", 2**12)
    student, teacher = student_of(family, *HALF[family]), build(family)
    deaden(student, teacher)
    before, x = copy.deepcopy(teacher.state_dict()), images(8, 64, 64)
    assert list(start_from(student, teacher, x)) == ["teacher"]
    for found, expected in zip(raw(student, x[:7]), raw(teacher, x[:7]), strict=True):
        error = (found - expected).square().mean() / expected.var()
        assert float(error) < 1e-3, family
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def answers(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """All raw outputs of a head for another task, in order."""
    with raw_outputs(model), torch.no_grad():
        out = model(x)
    found = []
    for branch in [out] if "boxes" in out else out.values():
        for key, value in sorted(branch.items()):
            value = value[0] if isinstance(value, tuple) else value
            found += [value] if key != "feats" and isinstance(value, torch.Tensor) else []
    return found


TASKS = ["yolo11n-seg", "yolov8n-pose", "yolo11n-obb", "yolo26n-seg", "yolo26n-pose", "yolo26n-obb"]


@pytest.mark.parametrize("family", [*TASKS[:3], *(pytest.param(f, marks=pytest.mark.slow) for f in TASKS[3:])])
def test_other_tasks_start_from_their_teacher_too(family):
    """Whatever the head answers comes nearer to the teacher's answer, masks, keypoints and angles included."""
    student, teacher = (build(family, seed=s, dtype=torch.float32) for s in (0, 1))
    own, x = copy.deepcopy(student.state_dict()), images(8, 64, 64, dtype=torch.float32)
    target, before = answers(teacher, x), answers(student, x)
    with torch.random.fork_rng():
        transfer.start("teacher", read(student), read(teacher), x)
    after = answers(student, x)
    assert len(target) == len(before) == len(after) >= 3
    for found, old, wanted in zip(after, before, target, strict=True):
        assert float((found - wanted).square().mean()) < 0.5 * float((old - wanted).square().mean())
    towers = [k for k in own if ".cv4" in k and k.endswith(".weight")]
    assert towers and not any(torch.equal(own[k], student.state_dict()[k]) for k in towers)


def test_a_detector_starts_from_a_teacher_for_another_task_but_not_from_one_of_rotated_boxes():
    student = read(build("yolo11n"))
    assert list(transfer.candidates("auto", student, read(build("yolo11n-seg", seed=1)))) == ["head", "neck", "teacher"]
    assert not transfer.candidates("auto", student, read(build("yolo11n-obb", seed=1)))
    with pytest.raises(UsageError, match="init=neck: the layers of .* .none has a partner in"):
        transfer.candidates("neck", student, read(build("yolo11n-obb", seed=1)))


def test_heads_with_other_keypoints_have_no_keypoint_pair():
    student, teacher = build("yolov8n-pose"), build("yolov8n-pose", seed=1)
    assert any(p.kind == "value" for p in layer_pairs(student, teacher))
    teacher.model[-1].kpt_shape = (2, 2)
    assert not any(".cv4" in p.name for p in layer_pairs(student, teacher))


@pytest.mark.parametrize("family", HALF)
def test_every_convolution_of_a_family_has_its_partner(family):
    student, teacher = student_of(family, *HALF[family]), student_of(family, 0.5, 2 * HALF[family][1])
    matched = {id(bare(p.student)) for p in layer_pairs(student, teacher)}
    missing = [n for n, m in student.named_modules() if isinstance(m, nn.Conv2d) and id(m) not in matched]
    assert all(name.endswith("dfl.conv") for name in missing), missing


@pytest.mark.slow
@pytest.mark.parametrize(("mine", "theirs"), [("yolo26n", "yolo11n"), ("yolov8n", "yolo11s"), ("yolo11n", "yolov8n")])
def test_another_family_teaches_as_far_as_its_blocks_go(mine, theirs):
    student, teacher = build(mine, dtype=torch.float32), build(theirs, seed=1, dtype=torch.float32)
    before, x = copy.deepcopy(student.state_dict()), images(8, 64, 64, dtype=torch.float32)
    apart = [float((a - b).square().mean()) for a, b in zip(raw(student, x)[1::2], raw(teacher, x)[1::2], strict=False)]
    start_from(student, teacher, x)
    closer = [
        float((a - b).square().mean()) for a, b in zip(raw(student, x)[1::2], raw(teacher, x)[1::2], strict=False)
    ]
    assert closer[0] < apart[0] / 2
    assert all(torch.isfinite(v).all() for v in student.state_dict().values())
    paired = {p.name for p in layer_pairs(student, teacher)}
    convolutions = {n.removesuffix(".conv") for n, m in student.named_modules() if isinstance(m, nn.Conv2d)}
    alone = {n for n in convolutions - paired if "dfl" not in n}
    assert alone  # the families differ
    for name in alone:
        weights = [k for k in before if k.startswith(f"{name}.") and k.endswith("weight")]
        assert weights and all(torch.equal(before[k], student.state_dict()[k]) for k in weights), name


def test_classes_are_inherited_by_name_and_new_ones_left_alone():
    student, teacher = student_of("yolo11n", 0.5, 0.125, torch.float32), build("yolo11n", dtype=torch.float32)
    last = [tower[-1] for tower in student.model[-1].cv3]
    before, x = [conv.weight.clone() for conv in last], images(4, 64, 64, dtype=torch.float32)
    names = {0: "class 3", 1: "unheard of", 2: "class 0", 3: "class 1", 4: "class 2"}
    transfer.start("teacher", YoloReader(student), YoloReader(teacher), x, match_classes(names, NAMES, None))
    for conv, old in zip(last, before, strict=True):
        assert torch.equal(conv.weight[1], old[1]) and not torch.equal(conv.weight[0], old[0])
    mine, theirs = raw(student, x)[1], raw(teacher, x)[1]
    right = (mine[:, 0] - theirs[:, 3]).square().mean()
    assert all(right < (mine[:, 0] - theirs[:, k]).square().mean() for k in (0, 1, 2, 4))


def test_auto_solves_every_start_and_leaves_the_student_as_it_was():
    student, teacher = student_of("yolo11n", 0.5, 0.125, torch.float32), build("yolo11n", dtype=torch.float32)
    own, x = copy.deepcopy(student.state_dict()), images(4, 64, 64, dtype=torch.float32)
    found = start_from(student, teacher, x, "auto")
    assert list(found) == ["own", "head", "neck", "teacher"]
    assert all(torch.equal(v, own[k]) and torch.equal(v, found["own"][k]) for k, v in student.state_dict().items())
    for how in ("head", "neck", "teacher"):
        student.load_state_dict(own)
        assert list(start_from(student, teacher, x, how)) == [how]
        assert all(torch.equal(v, found[how][k]) for k, v in student.state_dict().items())


def test_neck_keeps_the_weights_of_the_students_backbone_and_solves_the_rest(monkeypatch):
    """The predictions come nearer to the teacher's, though the first layers are the student's own."""
    monkeypatch.setattr(teacher_statistics, "POINTS", 2**12)
    student, teacher, x = student_of("yolo11n", *HALF["yolo11n"]), build("yolo11n"), images(8, 64, 64)
    own, target = copy.deepcopy(student.state_dict()), raw(teacher, x)
    far = [float((a - b).square().mean()) for a, b in zip(raw(student, x), target, strict=True)]
    start_from(student, teacher, x, "neck")
    backbone = len(student.yaml["backbone"])
    for key, value in student.state_dict().items():
        layer, counted = int(key.split(".")[1]), "running_" in key or "num_batches" in key
        if layer < backbone and not counted:
            assert torch.equal(value, own[key]), key
    changed = {int(k.split(".")[1]) for k, v in student.state_dict().items() if not torch.equal(v, own[k])}
    assert max(changed) == len(student.model) - 1 and len([i for i in changed if i >= backbone]) > 4
    near = [float((a - b).square().mean()) for a, b in zip(raw(student, x), target, strict=True)]
    assert all(a < b for a, b in zip(near, far, strict=True))


def test_follow_knows_channels_through_joining_splitting_adding_and_pooling():
    x, y = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4)
    mark(x, ((torch.tensor([1, 3]), 4),))
    mark(y, ((torch.tensor([0, -1, 5]), 6),))
    with ChannelTracker():
        joined = torch.cat([x, y], 1)
        left, right = joined.split([2, 3], 1)
        pooled = nn.functional.max_pool2d(left + torch.rand(1, 2, 4, 4), 2)
        odd = joined.split([1, 4], 1)[1]
        unknown = torch.cat([x, torch.rand(1, 1, 4, 4)], 1)
        filtered = nn.functional.conv2d(x, torch.rand(2, 2, 1, 1))
    assert index(channels(joined)).tolist() == [1, 3, 4, -1, 9]
    assert index(channels(pooled)).tolist() == [1, 3] and index(channels(right)).tolist() == [0, -1, 5]
    assert channels(odd) is channels(unknown) is channels(filtered) is None


@pytest.fixture
def set_up(scenes, tmp_path):
    """A trainer as it is when the student has been started, by init=."""

    def make(init: str | None, **more) -> KDTrainer:
        given = {**TINY, "model": str(ASSETS / "student.pt"), "teacher": str(ASSETS / "teacher.pt"), **more}
        given |= {"data": str(scenes), "project": str(tmp_path), "method": "logit", **({"init": init} if init else {})}
        trainer = KDTrainer(overrides=given)
        trainer.setup_model()
        trainer.set_model_attributes()
        return trainer

    return make


def test_the_trainer_starts_the_student_and_leaves_every_random_stream(set_up):
    def streams() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    set_up("own")  # older versions draw while they read labels for the first time
    own = set_up("own")
    expected = streams()
    inherited = set_up("auto")
    assert streams() == expected
    assert (own.args.kd["start"], inherited.args.kd["start"]) == ("own", "teacher")
    weights = [t.model.module.model[0].conv.weight for t in (own, inherited)]
    assert not torch.equal(*weights)
    assert all(p.requires_grad for n, p in inherited.model.module.named_parameters() if "dfl" not in n)


@pytest.mark.parametrize("imgsz", [100, [100, 70]])
def test_a_side_that_is_no_multiple_of_the_stride_is_made_one(set_up, imgsz):
    """Ultralytics does so only after the student has been started: images of 100 pixels fit no pyramid."""
    trainer = set_up("teacher", imgsz=imgsz, **({"teacher_imgsz": 128} if imgsz == 100 else {}))
    assert trainer.args.imgsz == 128 and trainer.args.kd["start"] == "teacher"
    assert trainer.distiller.pairings[0].teacher.scale == 1


def test_large_images_are_fewer():
    assert [transfer.images_for(side) for side in (160, 640, 1280)] == [512, 32, 16]


@pytest.mark.parametrize("more", [{}, {"method": "logit", "cache": "teacher"}, {"mixup": 1.0}])
def test_what_starts_are_judged_by_shares_no_photograph_with_what_they_learn_from(set_up, monkeypatch, more):
    """Mosaic mixes four photographs, by default of those that were loaded last."""
    trainer, loaded = set_up("own", **more), []
    load = BaseDataset.load_image
    monkeypatch.setattr(BaseDataset, "load_image", lambda self, i, **k: loaded.append(i) or load(self, i, **k))
    fitted = (trainer._some_images(64), set(loaded))[1]
    learnt, judged = [], []

    def race(learner, starts, batches, unseen, steps, rate, frozen):
        for group, make in ((learnt, batches), (judged, unseen), (learnt, batches)):
            loaded.clear()
            group.append(torch.cat([batch["img"] for batch in make()]))
            group.append(set(loaded))
        return {name: float(name != "neck") for name in starts}, (starts["neck"], learner.methods.state_dict())

    monkeypatch.setattr(starting, "race", race)
    own = trainer.distiller.module.state_dict()
    other = {key: value + 1 for key, value in own.items()}
    assert trainer._choose_start({"own": own, "neck": other}) == "neck"
    assert all(torch.equal(v, other[k]) for k, v in trainer.distiller.module.state_dict().items())
    assert torch.equal(learnt[0], learnt[2]), "every start sees the same images"
    assert not (fitted | learnt[1]) & judged[1] and len(learnt[1]) > len(judged[1]) > 1
    assert len(judged[0]) == 64


def test_too_little_memory_leaves_a_start_out_and_says_so(monkeypatch):
    student, teacher = student_of("yolo11n", 0.5, 0.125, torch.float32), build("yolo11n", dtype=torch.float32)
    own, said = copy.deepcopy(student.state_dict()), []

    def fail(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transfer.LOGGER, "warning", said.append)
    x = images(4, 64, 64, dtype=torch.float32)
    monkeypatch.setattr(transfer, "TeacherStatistics", fail)
    assert list(start_from(student, teacher, x, "auto")) == ["own"]
    assert len(said) == 3 and all("too little memory" in one for one in said)
    assert all(torch.equal(v, own[k]) for k, v in student.state_dict().items())
    with pytest.raises(UsageError, match="init=teacher: .* memory"):
        start_from(student, teacher, x)


def test_too_little_memory_for_the_race_keeps_the_own_start_and_says_so(set_up, monkeypatch):
    trainer, said = set_up("own"), []

    def fail(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(starting, "race", fail)
    monkeypatch.setattr(starting.LOGGER, "warning", said.append)
    assert trainer._choose_start({"own": {}, "teacher": {}}) == "own"
    assert "too little memory to try" in said[0]


def test_a_filter_of_zeros_in_the_teacher_leaves_the_student_finite():
    student, teacher = student_of("yolo11n", 0.5, 0.25, torch.float32), build("yolo11n", dtype=torch.float32)
    teacher.model[-1].cv2[0][0].conv.weight.data[3] = 0  # pruned, and kept: the student's tower is as wide
    start_from(student, teacher, images(8, 64, 64, dtype=torch.float32))
    assert all(torch.isfinite(v).all() for v in student.state_dict().values())


def test_distances_become_distributions_that_mean_them():
    sides = torch.rand(50, 4, dtype=torch.float64) * 14 + 0.5
    found = expected_sides(distributions(sides, 16))
    torch.testing.assert_close(found, sides, atol=0.03, rtol=0)
    torch.testing.assert_close(
        expected_sides(distributions(torch.tensor([[-1.0, 0.0, 15.0, 40.0]]), 16)),
        torch.tensor([[0.0, 0.0, 15.0, 15.0]]), atol=0.15, rtol=0,
    )  # fmt: skip


@pytest.mark.slow
def test_a_student_of_distributions_learns_boxes_from_a_teacher_of_distances():
    student, teacher = build("yolo11n", dtype=torch.float32), build("yolo26n", seed=1, dtype=torch.float32)
    x = images(8, 64, 64, dtype=torch.float32)

    def apart() -> float:
        mine, theirs = raw(student, x)[0], raw(teacher, x)[0]
        points = expected_sides(mine.mT.flatten(0, 1)).clamp(0, 15)
        return float((points - theirs.mT.flatten(0, 1).clamp(0, 15)).square().mean())

    before = apart()
    start_from(student, teacher, x)
    assert apart() < before / 2


@pytest.mark.slow
def test_two_convolutions_that_are_added_put_out_the_same_channels():
    """YOLOv9's re-parametrised convolutions: a 3x3 and a 1x1."""
    student, teacher = (YoloReader(build(f, dtype=torch.float32)) for f in ("yolov9t", "yolov9s"))
    x = images(4, 64, 64, dtype=torch.float32)
    matched = transfer.candidates("teacher", student, teacher)["teacher"]
    fitter = LayerFitter(student.model, matched, TeacherStatistics(teacher, matched, x), None)
    fitter.fit(x)
    added = list(sums(student.model))
    assert len(added) > 10 and all(first in fitter.chosen for first, _ in added)
    assert all(torch.equal(index(fitter.chosen[a]), index(fitter.chosen[b])) for a, b in added)


def test_a_share_of_a_residual_that_is_learned_is_left_alone():
    """YOLO12's larger scales add gamma times the last convolution's output to the input."""
    with_share, without = (A2C2f(64, 64, 1, True, 1, residual).eval() for residual in (True, False))
    for student, teacher in ((with_share, without), (without, with_share), (with_share, with_share)):
        assert {p.name for p in iter_layer_pairs(student, teacher, "x")} & {"x.cv1", "x.cv2"} == {"x.cv1"}
    assert "x.cv2" in {p.name for p in iter_layer_pairs(without, without, "x")}


def test_kd_0_is_the_student_alone_and_so_starts_as_it_is(set_up):
    assert set_up(None, kd=0).args.kd["start"] == "own"
    assert set_up(None).args.kd["init"] == "auto"


def test_frozen_layers_leave_the_starts_that_do_not_touch_them(set_up, monkeypatch):
    tried = []

    def race(learner, starts, batches, unseen, steps, rate, frozen):
        tried.append((set(starts), frozen))
        return {name: float(name != "neck") for name in starts}, (starts["neck"], learner.methods.state_dict())

    monkeypatch.setattr(starting, "race", race)
    assert set_up("auto", freeze=[23]).args.kd["start"] == "own" and not tried
    trainer = set_up("auto", freeze=2)
    assert trainer.args.kd["start"] == "neck" and tried == [({"own", "head", "neck"}, frozenset({0, 1}))]
    before = set_up("own").distiller.module.state_dict()
    layers = {
        int(k.split(".")[1]) for k, v in trainer.distiller.module.state_dict().items() if not torch.equal(v, before[k])
    }
    assert not layers & {0, 1} and {2, 23} <= layers  # of layer 2, the statistics
    with pytest.raises(UsageError, match="init=teacher: .*one of them is frozen.* a smaller freeze="):
        set_up("teacher", freeze=2)


def test_starts_that_solve_no_more_than_another_are_left_out(monkeypatch):
    student, teacher = student_of("yolo11n", 0.5, 0.125, torch.float32), build("yolo11n", dtype=torch.float32)
    assert list(transfer.candidates("auto", read(student), read(teacher))) == ["head", "neck", "teacher"]
    monkeypatch.setattr(transfer, "layer_pairs", lambda *models: [p for p in layer_pairs(*models) if p.last])
    assert list(transfer.candidates("auto", read(student), read(teacher))) == ["head"]
    own, x = copy.deepcopy(student.state_dict()), images(4, 64, 64, dtype=torch.float32)
    assert list(start_from(student, teacher, x, "auto")) == ["own", "head"]
    assert all(torch.equal(v, own[k]) for k, v in student.state_dict().items())


def test_init_must_be_one_of_five(set_up):
    with pytest.raises(UsageError, match="init=best is not one of auto, own, head, neck, teacher"):
        set_up("best")


def test_the_order_of_pairs_does_not_depend_on_the_process():
    """Python orders a set of names anew in every process; what is drawn for a layer must not."""
    code = (
        "from yolokd.detectors.opening import open_student\n"
        "from yolokd.init.layer_pairs import layer_pairs\n"
        "a, b = (open_student(f'{n}.yaml').model for n in ('yolo11n', 'yolo11s'))\n"
        "print([p.name for p in layer_pairs(a, b)])"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for seed in ("0", "1", "2")
    }
    assert len(orders) == 1


def test_fitting_the_head_alone_leaves_the_other_weights(monkeypatch):
    """Only last convolutions and batch norm statistics change, for which the
    predictions come nearer to the teacher's."""
    monkeypatch.setattr(teacher_statistics, "POINTS", 2**12)
    student, teacher, x = student_of("yolo11n", *HALF["yolo11n"]), build("yolo11n"), images(8, 64, 64)
    before, target = copy.deepcopy(student.state_dict()), raw(teacher, x)
    far = [float((a - b).square().mean()) for a, b in zip(raw(student, x), target, strict=True)]
    assert transfer.fit_head(YoloReader(student), YoloReader(teacher), x)
    names = {id(m): name for name, m in student.named_modules()}
    last = {f"{names[id(p.student)]}." for p in layer_pairs(student, teacher) if p.last}
    changed = {k for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    assert last and all("running_" in k or any(k.startswith(name) for name in last) for k in changed)
    assert {k.rpartition(".")[0] + "." for k in changed if "running_" not in k} == last
    near = [float((a - b).square().mean()) for a, b in zip(raw(student, x), target, strict=True)]
    assert all(a < b for a, b in zip(near, far, strict=True))


def test_a_head_without_a_partner_is_not_fitted():
    student, teacher = build("yolo11n"), build("rtdetr-l", dtype=torch.float32)
    before = copy.deepcopy(student.state_dict())
    assert not transfer.fit_head(read(student), read(teacher), images(2, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
