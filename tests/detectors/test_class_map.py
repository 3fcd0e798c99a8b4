"""Classes are matched by name: an index means nothing across two data sets."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers.models import NAMES, batch, build

from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import read
from yolokd.detectors.class_map import coverage, match_classes
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing
from yolokd.errors import UsageError
from yolokd.views import View

ABC = {0: "a", 1: "b", 2: "c"}


def view(classes: int, seed: int = 0) -> View:
    z = torch.randn(2, 6, classes, generator=torch.Generator().manual_seed(seed))
    return View((8,), logits=z, layer_logits=(z, 2 * z), finish=lambda towers: {"logits": z, "boxes": z[..., :1]})


def test_equal_lists_need_no_map():
    assert match_classes(ABC, dict(ABC), None) is None
    assert match_classes(ABC, dict(ABC), {"a": "a", "b": "b", "c": "c"}) is None


def test_equal_names_match_in_any_order_and_case():
    found, t = match_classes(ABC, {0: "C", 1: " a", 2: "b"}, None), view(3)
    assert found.shared == 3
    for name, theirs in ((0, 1), (1, 2), (2, 0)):
        assert torch.equal(found.of_teacher(t).logits[..., name], t.logits[..., theirs])
        assert torch.equal(found.of_teacher(t).layer_logits[1][..., name], 2 * t.logits[..., theirs])
        assert torch.equal(found.of_teacher(t).finish(())["logits"][..., name], t.logits[..., theirs])
    assert torch.equal(found.of_teacher(t).finish(())["boxes"], t.logits[..., :1])
    assert torch.equal(found.of_student(t).logits, t.logits)


def test_a_file_maps_several_to_one():
    """A teacher of COCO's car, bus and truck for a student's vehicle: it is one where any of them is."""
    found = match_classes(
        {0: "person", 1: "vehicle"}, {0: "car", 1: "bus", 2: "cat"}, {"car": "vehicle", "Bus": "vehicle"}
    )
    s, t = view(2), view(3, 1)
    assert found.shared == 1
    assert torch.equal(found.of_student(s).logits, s.logits[..., 1:])
    assert torch.equal(found.of_teacher(t).logits[..., 0], torch.maximum(t.logits[..., 0], t.logits[..., 1]))


def test_objects_of_classes_that_the_teacher_lacks_are_left_out():
    found = match_classes({0: "x", 1: "b", 2: "y", 3: "a"}, ABC, None)  # shared, in the student's order: b, a
    objects = {
        "img": torch.zeros(2, 3, 8, 8),
        "cls": torch.tensor([[3.0], [0], [1], [2], [3]]),
        "bboxes": torch.arange(20.0).reshape(5, 4),
        "batch_idx": torch.tensor([0.0, 0, 0, 1, 1]),
    }
    before = copy.deepcopy(objects)
    got = found.of_batch(objects)
    assert got["cls"].tolist() == [[1.0], [0.0], [1.0]]
    assert torch.equal(got["bboxes"], objects["bboxes"][[0, 2, 4]])
    assert got["batch_idx"].tolist() == [0, 0, 1]
    assert all(torch.equal(before[k], objects[k]) for k in objects)


@pytest.mark.parametrize(
    ("given", "named"),
    [({"d": "a"}, "'d', which the teacher does not have; it has 'a', 'b', 'c'"), ({"a": "z"}, "'z', which the data")],
)
def test_a_name_that_a_side_lacks_is_refused(given, named):
    with pytest.raises(UsageError) as refusal:
        match_classes(ABC, ABC, given)
    assert named in str(refusal.value)


def test_an_equal_name_comes_before_one_that_differs_in_case():
    """Two classes of a teacher that differ in case mean two things, and the data's name says which."""
    for given in (None, {"b": "b"}):
        found = match_classes({0: "b"}, {0: "b", 1: "B"}, given)
        assert (found.student.tolist(), found.teacher.tolist()) == ([0], [[0]])
    found = match_classes({0: "B", 1: "b"}, {0: "b", 1: " B"}, None)
    assert (found.student.tolist(), found.teacher.tolist()) == ([0, 1], [[1], [0]]), "what is left is matched by case"
    assert match_classes({0: "b", 1: "B"}, {0: "b"}, None).student.tolist() == [0], "no teacher's class means two"


@pytest.mark.parametrize(
    ("data", "teacher", "given", "named"),
    [
        (["B "], ["b", "B"], None, "the teacher's 'b' and 'B' and the data's 'B ' differ in case.*classes=map.yaml"),
        (["B ", " b"], ["b"], None, "the teacher's 'b' and the data's 'B ' and ' b' differ in case"),
        (["b", "b"], ["b", "c"], None, "two classes named 'b'.*rename one"),
        (["b", "b"], ["b", "b"], None, "two classes named 'b'"),
        (["x"], ["b", "B"], {"B ": "x"}, "names 'B ', and the teacher has 'b' and 'B': write one of these"),
        (["b", "B"], ["x"], {"x": " b"}, "names ' b', and the data has 'b' and 'B'"),
        (["x", "y"], ["b"], {"b": "x", "B": "y"}, "names 'b' of the teacher twice, for 'x' and 'y'"),
    ],
)
def test_a_name_that_fits_two_classes_is_refused(data, teacher, given, named):
    with pytest.raises(UsageError, match=named):
        match_classes(dict(enumerate(data)), dict(enumerate(teacher)), given)


def test_a_name_that_the_teacher_has_twice_means_both():
    assert match_classes({0: "b"}, {0: "b", 1: "c", 2: "b"}, None).teacher.tolist() == [[0, 2]]


def test_of_classes_without_labels_nothing_is_taught():
    """Ultralytics' classes=[0,2] makes background of the others' objects: no score of theirs may be compared."""
    found = match_classes(ABC, ABC, None, {0, 2})
    assert (found.student.tolist(), found.teacher.tolist()) == ([0, 2], [[0], [2]])
    assert match_classes(ABC, ABC, None, {0, 1, 2}) is None
    assert match_classes(ABC, ABC, {"a": "b", "c": "c"}, {0, 2}).student.tolist() == [2]


def test_the_log_says_how_many_classes_are_taught():
    some = match_classes(ABC, {0: "c", 1: "x"}, None)
    assert coverage(ABC, some, "big.pt") == "1 of 3 classes of the data are taught by big.pt; not: a, b"
    assert coverage(ABC, None, "big.pt") == "all 3 classes of the data are taught by big.pt"
    assert coverage(ABC, match_classes(ABC, ABC, None, {0, 2}), "t", {0, 2}).startswith("all 2 classes that classes= ")
    many = {i: f"c{i}" for i in range(80)}
    said = coverage(many, match_classes(many, {0: "c79"}, None), "big.pt")
    assert said.startswith("1 of 80 classes") and said.endswith("c18, c19 and 59 more")
    assert "\n" not in coverage({0: "a\nyolokd: done"}, match_classes({0: "a\nyolokd: done"}, {}, None), "big.pt")


ORDER = [3, 0, 4, 1, 2]  # new index -> old


def distiller(model, method: str) -> Distiller:
    """A YOLO11n under the model, classes matched by name."""
    readers = read(build("yolo11n", 0, torch.float32)), read(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kd = DistillOptions((), 1.0, **asked_methods(method, {}))
        made = plan(*readers, kd, NAMES, match_classes(NAMES, readers[1].model.names, None))
    return Distiller(readers[0], [Pairing(readers[0], made, torch.device("cpu"))]).train()


@pytest.mark.parametrize("method", ["logit,bckd_cls,bckd_box", "rm,gid", "crosskd", "match", "rpn,sl2,pkd"])
def test_a_teacher_with_its_classes_in_another_order_teaches_the_same(method):
    plain = build("yolo11n", 1, torch.float32)
    shuffled = copy.deepcopy(plain)
    for tower in shuffled.model[-1].cv3:
        with torch.no_grad():
            tower[-1].weight.copy_(tower[-1].weight[ORDER])
            tower[-1].bias.copy_(tower[-1].bias[ORDER])
    shuffled.names = {new: NAMES[old] for new, old in enumerate(ORDER)}
    (expected, items), (got, same) = (distiller(m, method)(batch()) for m in (plain, shuffled))
    assert list(items) == list(same)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    wrong = copy.deepcopy(shuffled)
    wrong.names = NAMES  # an index taken for a class would show here
    # the last look at the highest score of any class; CrossKD at what the teacher's own layers make of both sides
    if method not in {"crosskd", "rpn,sl2,pkd"}:
        assert not torch.allclose(distiller(wrong, method)(batch())[0], expected, rtol=1e-3)


def test_classes_of_the_teacher_alone_still_say_where_objects_are():
    """Class terms compare what both know; maps, boxes and objectness need no common class at all."""
    model = build("yolo11n", 1, torch.float32)
    model.names = {i: f"thing {i}" for i in range(5)}
    loss, items = distiller(model, "pkd,rpn,fgfi,roi")(batch())
    assert loss.isfinite().all() and len(items) == 3 + 4
    with pytest.raises(UsageError, match="logit compares scores class by class.*classes=map.yaml"):
        distiller(model, "logit")
    made = plan(
        read(build("yolo11n", 0, torch.float32)),
        read(model),
        DistillOptions((), 1.0, **asked_methods("default", {})),
        NAMES,
        match_classes(NAMES, model.names, None),
    )
    assert "logit" not in made.methods and any("logit" in reason for reason in made.refused)
    assert made.methods.keys() == {"pkd", "bckd_box"}, "with weight=teacher boxes are weighed by any class"
    with pytest.raises(UsageError, match="bckd_box compares scores class by class"):
        distiller(model, "bckd_box")


def test_a_student_of_three_classes_under_a_teacher_of_five():
    names = {0: NAMES[4], 1: "new", 2: NAMES[1]}
    student = build("yolo11n", 0, torch.float32)
    readers = read(student), read(build("yolo11n", 1, torch.float32))
    shared = match_classes(names, NAMES, None)
    assert shared.shared == 2
    made = plan(*readers, DistillOptions((), 1.0, **asked_methods("logit,rm", {})), names, shared)
    pairing = Pairing(readers[0], made, torch.device("cpu"))
    views = [replace(view(k, i), strides=(8, 16, 32)) for i, k in enumerate((3, 5))]
    method = pairing.methods["logit_loss"]
    expected = method(
        replace(views[0], logits=views[0].logits[..., [0, 2]]),
        replace(views[1], logits=views[1].logits[..., [4, 1]]),
        {},
    )
    data = {"cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}
    got = pairing.value(method, {"one2many": views[0]}, {"one2many": views[1]}, data, {})
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
