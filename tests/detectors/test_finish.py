"""A view's finish: the head's own last convolutions on any tower maps, and what its gradient reaches."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import NAMES, batch, build, images

from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors.yolo import PREDICTIONS, YoloReader
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing
from yolokd.distill.teacher import Teacher
from yolokd.views import View

FIELDS = frozenset({"towers", "finish"}) | PREDICTIONS
CASES = [("yolo11n", "one2many"), ("yolov8n", "one2many"), ("yolo26n", "one2many"), ("yolo26n", "one2one")]


def views(model, fields: frozenset[str] = FIELDS, strides: tuple[int, ...] = ()) -> dict[str, View]:
    reader = YoloReader(model)
    reader.head.training = True
    with reader.record(fields) as seen:
        model(images())
    return reader.views(seen, fields, strides or reader.strides)


def same(found: dict, view: View) -> bool:
    return all(
        (field not in found) if own is None else torch.allclose(found[field], own, rtol=1e-9, atol=1e-9)
        for field in PREDICTIONS
        for own in [getattr(view, field)]
    )


@pytest.mark.parametrize("family, branch", CASES)
def test_own_towers_give_the_own_predictions(family, branch):
    """Another branch's, level's or tower's convolution, or another order of points, gives something else."""
    found = views(build(family))
    view = found[branch]
    got = view.finish(view.towers)
    assert same(got, view)
    assert ("bins" in got) == (family != "yolo26n")
    if len(found) > 1:
        (other,) = (v for b, v in found.items() if b != branch)
        assert not same(other.finish(view.towers), view)


@pytest.mark.parametrize("strides", [(8, 32), (16,)])
def test_levels_without_a_partner_are_left_out(strides):
    view = views(build("yolo26n"), strides=strides)["one2one"]
    assert len(view.towers) == 2 * len(strides)
    assert same(view.finish(view.towers), view)


def test_it_is_there_only_if_asked_for():
    assert views(build("yolo11n"), FIELDS - {"finish"})["one2many"].finish is None
    only = views(build("yolo11n"), frozenset({"finish"}))["one2many"]
    assert only.finish is not None and only.logits is None and only.towers is None


@pytest.mark.parametrize("family, branch", CASES)
def test_gradient_flows_through_a_frozen_teacher_to_the_maps(family, branch):
    """Cut at the teacher, the student's towers would learn nothing; not frozen, the teacher would drift."""
    reader = YoloReader(build(family))
    teacher = Teacher(reader, FIELDS, (branch,), torch.device("cpu"))
    before = copy.deepcopy(teacher.model.state_dict())
    view = teacher(images())(reader.strides)[branch]
    assert same(view.finish(view.towers), view)  # fused, in another memory layout, with one branch dropped
    towers = tuple(m.clone().requires_grad_() for m in view.towers)
    got = view.finish(towers)
    (got["logits"].square().sum() + got["boxes"].square().sum()).backward()
    assert all(m.grad.abs().max() > 0 for m in towers)
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())


def test_a_teacher_asked_for_finish_alone_keeps_its_head():
    reader = YoloReader(build("yolo11n"))
    teacher = Teacher(reader, frozenset({"neck", "finish"}), ("one2many",), torch.device("cpu"))
    view, full = teacher(images())(reader.strides)["one2many"], views(build("yolo11n"))["one2many"]
    torch.testing.assert_close(view.finish(full.towers)["boxes"], full.boxes, rtol=1e-6, atol=1e-6)


PAIRS = [("yolov8n", "yolov8s"), ("yolo26n", "yolo11n"), ("yolo11n", "yolo26n"), ("yolo26n", "yolo26n")]
IMITATION = "fitnet@towers,pkd@towers,cwd@towers"


def distiller(student: str, teacher: str, method: str) -> Distiller:
    models = build(student, 0, torch.float32), build(teacher, 1, torch.float32)
    for name in ("cv2", "one2one_cv2"):
        for tower in getattr(models[1].model[-1], name, None) or ():
            tower[-1].bias.data.fill_(2.0)  # as Ultralytics does: sides are positive, so that boxes have an area
    readers = YoloReader(models[0]), YoloReader(models[1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = plan(*readers, DistillOptions((), 1.0, **asked_methods(method, {})), NAMES)
    return Distiller(readers[0], [Pairing(readers[0], made, torch.device("cpu"))]).train()


@pytest.mark.parametrize(
    "student, teacher, method", [(*p, "crosskd") for p in PAIRS] + [(*p, IMITATION) for p in PAIRS[:2]]
)
def test_towers_learn_end_to_end(student, teacher, method):
    """Heads of other widths, with and without bins, with one branch and two: a student's branches learn, the one2one
    branch if the teacher has one."""
    model = distiller(student, teacher, method)
    loss, items = model(batch(2))
    methods = model.pairings[0].methods
    terms = loss[-len(methods) :]
    assert len(methods) == len(method.split(",")) and terms.isfinite().all() and (terms > 0).all()
    assert list(items)[-len(terms) :] == list(methods)
    terms.sum().backward()
    head = model.module.model[-1]
    for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
        for tower in getattr(head, name, None) or ():
            left_alone = "one2one" in name and teacher != "yolo26n"
            assert (next(tower.parameters()).grad.abs().max() > 0) != left_alone, name
            assert tower[-1].weight.grad.abs().max() == 0, "the student's own predictions take no part"
    assert all(p.grad.abs().max() > 0 for p in model.methods.parameters())
    assert all(p.grad is None for p in model.pairings[0].teacher.model.parameters())


def test_a_step_lowers_crosskd():
    """Along the gradient of the student's towers and the adapters, through the teacher's real convolutions."""
    model, data = distiller("yolov8n", "yolov8s", "crosskd"), batch(2)
    pairing = model.pairings[0]
    teacher = pairing.teacher(data["img"])(model.reader.strides)["one2many"]
    with model.reader.record(model.fields) as seen, torch.no_grad():
        model.module(data["img"])
    student = model.reader.views(seen, model.fields, model.reader.strides)["one2many"]
    (method,) = pairing.methods.values()
    towers = tuple(m.requires_grad_() for m in student.towers)
    first = method(student, teacher, data)
    leaves = [*towers, *method.parameters()]
    grads = torch.autograd.grad(first, leaves)
    step = 1e-3 * first.item() / sum(g.square().sum().item() for g in grads)
    with torch.no_grad():
        for x, g in zip(leaves, grads, strict=True):
            x -= step * g
    assert method(student, teacher, data).item() == pytest.approx(first.item() * (1 - 1e-3), rel=1e-4)
