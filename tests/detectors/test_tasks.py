"""Segment, pose and obb: readers against Ultralytics' own decoding, the terms of a pair, and trainings by command."""

from __future__ import annotations

import copy
import csv
import math
import pickletools
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.bars import BARS, bars
from helpers.models import CLASSES, NAMES, batch, build, images
from helpers.training import TINY
from torch import Tensor
from ultralytics import YOLO
from ultralytics.utils.ops import xywhr2xyxyxyxy

from yolokd import cli
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import read, yolo
from yolokd.detectors.reader import Reader
from yolokd.distill.applicability import Plan, plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing
from yolokd.distill.teacher import Teacher, stretched, to_student_frame
from yolokd.errors import UsageError
from yolokd.methods import ops
from yolokd.views import View

CPU = torch.device("cpu")
OWN = {  # by task, the fields that a plain detection head has not
    "seg": ("coefficients", "prototypes"),
    "pose": ("keypoints",),
    "obb": ("rotated",),
}
HEADS = [  # family, branch, fused in its file
    (f"{family}-{task}", branch, fused)
    for task in OWN
    for family, branch, fused in [
        ("yolov8n", "one2many", False),
        ("yolo11n", "one2many", False),
        ("yolo26n", "one2many", False),
        ("yolo26n", "one2one", True),
    ]
]


def task_of(family: str) -> str:
    return family.partition("-")[2]


def fields_of(family: str) -> frozenset[str]:
    """The predictions of a family's task."""
    return frozenset({"logits", *OWN[task_of(family)]} | ({"boxes"} if task_of(family) != "obb" else set()))


def ultralytics_predictions(model, task: str, x: Tensor) -> dict[str, Tensor]:
    """The fields as Ultralytics decodes them in eval mode, before any top-k; scores in place of logits."""
    head = model.model[-1]
    head.postprocess = lambda decoded: decoded
    with torch.no_grad():
        out = model(x)[0]
    del head.postprocess
    out, prototypes = out if isinstance(out, tuple) else (out, None)
    out = out if head.end2end else out.mT
    boxes, scores, more = out.split((4, head.nc, out.shape[-1] - 4 - head.nc), -1)
    if task == "obb":
        return {"logits": scores, "rotated": torch.cat((boxes, more), -1)}
    if not head.end2end:
        boxes = torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), -1)
    own = {"keypoints": more.unflatten(-1, head.kpt_shape)} if task == "pose" else {"coefficients": more}
    return {"logits": scores, "boxes": boxes, **own, **({} if prototypes is None else {"prototypes": prototypes})}


def with_probabilities(field: str, value: Tensor) -> Tensor:
    """A view's field with sigmoids where Ultralytics decodes to them."""
    if field == "keypoints":
        return torch.cat((value[..., :2], value[..., 2:].sigmoid()), -1)
    return value.sigmoid() if field == "logits" else value


@pytest.mark.parametrize("family, branch, fused", HEADS)
def test_predictions_are_those_ultralytics_decodes(family, branch, fused):
    """An angle, a keypoint or a mask that is decoded in another way teaches another thing than `yolo predict` draws."""
    model, x = build(family), images(1, 64, 64)
    model.model[-1].end2end = branch == "one2one"
    if fused:
        model.fuse(verbose=False)
    expected = ultralytics_predictions(model, task_of(family), x)
    teacher = Teacher(read(model), fields_of(family), (branch,), CPU)
    view = teacher(x)(teacher.reader.strides)[branch]
    assert expected.keys() == fields_of(family)
    for field, value in expected.items():
        found = with_probabilities(field, getattr(view, field))
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-6)
        assert found.std(1).min() > 1e-3, "the check is empty when all are alike"


def test_a_rotated_boxs_sides_are_the_means_of_their_distributions():
    """Left and right along the angle, top and bottom across it, in the cells that the box is measured in."""
    teacher = Teacher(read(build("yolo11n-obb")), frozenset({"rotated", "rotated_bins"}), ("one2many",), CPU)
    view = teacher(images(1, 64, 64))(teacher.reader.strides)["one2many"]
    sides = yolo.expected(view.rotated_bins)
    cells = torch.cat([torch.full((side**2,), 64 // side) for side in (8, 4, 2)])[:, None]
    torch.testing.assert_close((sides[..., :2] + sides[..., 2:]) * cells, view.rotated[..., 2:4])


@pytest.mark.parametrize("task", OWN)
def test_a_teacher_keeps_both_branches_of_a_dual_head(task):
    family = f"yolo26n-{task}"
    model, x, fields = build(family), images(1, 64, 64), fields_of(family)
    teacher = Teacher(read(copy.deepcopy(model)), fields, ("one2many", "one2one"), CPU)
    found = teacher(x)(teacher.reader.strides)
    for branch in ("one2many", "one2one"):
        model.model[-1].end2end = branch == "one2one"
        for field, value in ultralytics_predictions(model, task, x).items():
            given = with_probabilities(field, getattr(found[branch], field))
            torch.testing.assert_close(given, value, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("family", ["yolo11n-seg", "yolo26n-seg", "yolo26n-pose", "yolo11n-obb"])
def test_every_own_field_of_a_student_carries_gradient(family):
    """Without it a term falls for nobody. The one2one branch of a dual head must not reach the backbone."""
    model = build(family).train()
    reader = read(model)
    with reader.record(reader.fields) as seen:
        model(images(2, 64, 64))
    first = model.model[0].conv.weight
    for branch, view in reader.views(seen, reader.fields, reader.strides).items():
        for field in OWN[task_of(family)]:
            value = getattr(view, field)
            if branch == "one2many":
                assert torch.autograd.grad(value.square().sum(), first, retain_graph=True)[0].abs().max() > 0
            elif value.requires_grad:  # detached prototypes do not
                assert torch.autograd.grad(value.square().sum(), first, retain_graph=True, allow_unused=True)[0] is None


def test_levels_without_a_partner_are_left_out():
    reader = read(build("yolo11n-pose"))
    reader.freeze(frozenset({"keypoints"}), reader.branches)
    with reader.record(frozenset({"keypoints"})) as seen:
        reader.model(images())
    whole, part = (reader.views(seen, frozenset({"keypoints"}), s)["one2many"] for s in ((8, 16, 32), (8, 32)))
    assert torch.equal(part.keypoints, torch.cat((whole.keypoints[:, :96], whole.keypoints[:, 120:]), 1))


@pytest.mark.parametrize("width, height", [(2, 2), (0.5, 0.5), (3, 1)])
def test_rotated_boxes_of_a_scaled_image(width, height):
    """Corners move with the image; only a box that is no rectangle afterwards may have others."""
    upright = torch.tensor([[40.0, 30, 20, 8, 0], [40, 30, 20, 8, math.pi / 2], [9, 9, 5, 3, math.pi]])
    boxes = upright if width != height else torch.cat((upright, torch.tensor([[40, 30, 20, 8, 0.4]])))
    expected = xywhr2xyxyxyxy(boxes) * torch.tensor([width, height])
    torch.testing.assert_close(xywhr2xyxyxyxy(stretched(boxes[None], width, height)[0]), expected, rtol=0, atol=1e-4)


def test_a_teacher_of_larger_images_answers_in_the_students_pixels():
    """What it says of images of twice the side is halved and read at every second point."""
    random = torch.Generator().manual_seed(0)
    shapes = {"rotated": (5,), "keypoints": (3, 3), "coefficients": (4,)}
    fields = {f: torch.rand(2, 64, *shape, generator=random) for f, shape in shapes.items()}
    prototypes = torch.rand(2, 4, 16, 16, generator=random)
    view = View((8,), prototypes=prototypes, **fields)
    found = to_student_frame(view, torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 64, 64), True)
    rows = torch.arange(64).reshape(8, 8)[1::2, 1::2].flatten()
    halves = {"rotated": (0.5, 0.5, 0.5, 0.5, 1), "keypoints": (0.5, 0.5, 1), "coefficients": (1,)}
    for field, share in halves.items():
        torch.testing.assert_close(getattr(found, field), fields[field][:, rows] * torch.tensor(share))
    assert found.prototypes is prototypes, "a method resizes them"


def test_ground_truth_of_a_rotated_box_is_the_upright_box_around():
    """Methods that look where objects are would else take an angle for a size."""
    boxes = torch.tensor([[0.5, 0.5, 0.25, 0.1, 0.6], [0.25, 0.5, 0.1, 0.2, -1.0]])
    data = {"img": torch.zeros(1, 3, 64, 96), "bboxes": boxes, "batch_idx": torch.zeros(2)}
    corners = xywhr2xyxyxyxy(boxes * torch.tensor([96, 64, 96, 64, 1]))
    found, _ = ops.ground_truth(data)
    torch.testing.assert_close(found, torch.cat((corners.amin(1), corners.amax(1)), -1))


def planned(student: str | Reader, teacher: str | Reader, method: str = "default") -> Plan:
    readers = [read(build(r, 0, torch.float32)) if isinstance(r, str) else r for r in (student, teacher)]
    return plan(*readers, DistillOptions((), 1.0, **asked_methods(method, {})), NAMES)


@pytest.mark.parametrize(
    "student, teacher, terms, left_out",
    [
        ("yolo11n", "yolov8n", {"pkd", "logit", "bckdb"}, []),
        ("yolo11n-obb", "yolo26n-obb", {"pkd", "logit", "piou"}, []),
        ("yolo26n-pose", "yolo11n-pose", {"pkd", "logit", "bckdb", "oks"}, ["the one2one branch of yolo26n-pose"]),
        ("yolo11n-seg", "yolo26n-seg", {"pkd", "logit", "bckdb", "masks"}, []),
        (
            "yolo11n-obb",
            "yolo11n",
            {"pkd", "logit"},
            ["probiou needs rotated, which the teacher yolo11n does not show"],
        ),
        ("yolo11n", "yolo11n-obb", {"pkd", "logit"}, ["bckd_box needs boxes, which the teacher yolo11n-obb does not"]),
        ("yolo11n-seg", "yolo11n", {"pkd", "logit", "bckdb"}, ["masks needs coefficients, prototypes"]),
        ("yolo11n", "yolo11n-pose", {"pkd", "logit", "bckdb"}, []),
        ("yolo11n-pose", "yolo11n-seg", {"pkd", "logit", "bckdb"}, ["oks cannot be used"]),
    ],
)
def test_what_the_default_recipe_gives_a_pair(student, teacher, terms, left_out):
    """A task's own term where both have it, what they share otherwise, and no word on others."""
    made = planned(student, teacher)
    assert made.terms.keys() == {f"{t}_loss" for t in terms}
    assert len(made.refused) == len(left_out)
    for said, expected in zip(made.refused, left_out, strict=True):
        assert expected in said


def test_keypoints_of_another_number_are_left_out():
    other = read(build("yolo11n-pose", 0, torch.float32))
    other.spec = replace(other.spec, keypoints=5)
    made = planned("yolo26n-pose", other)
    assert "oks_loss" not in made.terms and "has 17 and teacher yolo11n-pose has 5" in made.refused[0]


@pytest.mark.parametrize(
    "student, teacher, method, said",
    [
        ("yolo11n-obb", "yolo11n", "bckd_box", "bckd_box needs boxes, which the student yolo11n-obb does not show"),
        ("yolo11n-obb", "yolo11n-obb", "ld", "needs bins, which the student yolo11n-obb does not show"),
        (
            "yolo11n-obb",
            "yolo26n-obb",
            "ld_rotated",
            "the teacher yolo26n-obb does not show|teacher yolo26n-obb has none",
        ),
        ("yolo11n", "yolo11n-obb", "ld_rotated", "ld_rotated needs rotated"),
        ("yolo11n", "yolo11n-obb", "probiou", "probiou needs rotated, which the student yolo11n does not show"),
        ("yolo11n-seg", "yolo11n-pose", "masks", "which the teacher yolo11n-pose does not show"),
    ],
)
def test_a_method_of_another_task_is_refused_when_asked_for(student, teacher, method, said):
    with pytest.raises(UsageError, match=said):
        planned(student, teacher, method)


def test_a_recipe_of_another_task_alone_is_refused(tmp_path):
    (tmp_path / "own.yaml").write_text("optional: true\nmethods: {probiou: {gain: 1}}\n")
    with pytest.raises(UsageError, match="nothing of the recipe applies: method probiou needs rotated"):
        planned("yolo11n", "yolov8n", str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("student, teacher", [("yolo11n", "yolo26n-obb"), ("yolo11n-obb", "yolo11n")])
def test_heads_of_different_tasks_share_a_training_step(student, teacher):
    """Also with the ground truth of rotated boxes, at which a method on maps looks."""
    reader = read(build(student, 0, torch.float32))
    made = planned(reader, teacher, "pkd,fgd,logit")
    distiller, data = Distiller(reader, [Pairing(reader, made, CPU)]).train(), batch()
    if "obb" in student:
        data["bboxes"] = torch.cat((data["bboxes"], torch.rand(len(data["bboxes"]), 1)), 1)
    loss, items = distiller(data)
    loss.sum().backward()
    assert all(items[f"{term}_loss"].isfinite() and items[f"{term}_loss"] > 0 for term in ("pkd", "fgd", "logit"))
    assert distiller.module.model[0].conv.weight.grad.isfinite().all()


def untrained(file: Path, family: str) -> Path:
    """Checkpoint of a model for the bars that believes in everything: its terms are not empty."""
    model, task = YOLO(f"{family}.yaml"), task_of(family)
    shape = {"data_kpt_shape": [3, 3]} if task == "pose" else {}
    model.model = CLASSES[task](f"{family}.yaml", nc=2, verbose=False, **shape)
    for tower in [*model.model.model[-1].cv3, *(getattr(model.model.model[-1], "one2one_cv3", None) or ())]:
        tower[-1].bias.data.zero_()
    model.model.names, model.model.task, model.model.args = BARS, model.task, {}
    model.save(file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    "student, teacher, terms, figure",
    [
        ("yolo11n-seg", "yolo26n-seg", {"pkd", "logit", "bckdb", "masks"}, "mask_map50"),
        ("yolo26n-pose", "yolo26n-pose", {"pkd", "logit", "bckdb", "oks"}, "keypoint_map50"),
        ("yolo26n-obb", "yolo11n-obb", {"pkd", "logit", "piou"}, "map50"),
    ],
)
def test_a_training_by_the_command_ends_in_a_plain_model(student, teacher, terms, figure, tmp_path):
    """The same command for every task; what it leaves is Ultralytics' own model of that task."""
    given = {
        "model": f"{student}.yaml", "teacher": untrained(tmp_path / "big.pt", teacher), "width": 0.125, "depth": 0.33,
        "data": bars(tmp_path / "bars", task_of(student)), "project": tmp_path / "runs", "name": "it",
        # the untrained teacher is no better than its student, which would soon be what it is
        "fade": False, "init": "own",
    }  # fmt: skip
    assert cli.main(["train", *(f"{k}={v}" for k, v in {**TINY, **given}.items())]) == 0
    with (tmp_path / "runs" / "it" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = {f"train/{term}_loss" for term in terms}
    assert len(rows) == 2 and columns <= rows[0].keys()
    assert all(0 < float(row[column]) < math.inf for row in rows for column in columns)
    best = tmp_path / "runs" / "it" / "weights" / "best.pt"
    with zipfile.ZipFile(best) as archive:
        (stream,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        classes = {a for op, a, _ in pickletools.genops(archive.read(stream)) if op.name == "GLOBAL"}
    assert f"ultralytics.nn.tasks {CLASSES[task_of(student)].__name__}" in classes
    assert not [c for c in classes if "yolokd" in c]
    assert 0 <= torch.load(best, weights_only=False)["yolokd"]["accuracy"][figure] <= 1
    assert YOLO(best).predict(tmp_path / "bars" / "images" / "0.png", imgsz=64, verbose=False, device="cpu")
