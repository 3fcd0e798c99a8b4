"""Every detection family under every other: the default recipe finds methods for each pair, and a step trains."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import NAMES, batch, build

from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import read
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing

# Ultralytics' families as its YAML build them, at their smallest
FAMILIES = {
    "v3u": "yolov3n",
    "v5u": "yolov5n",
    "v6": "yolov6n",
    "v8": "yolov8n",
    "v9": "yolov9t",
    "v10": "yolov10n",
    "11": "yolo11n",
    "12": "yolo12n",
    "26": "yolo26n",
    "RT-DETR": "rtdetr-2-20-32",
}
SAMPLE = [
    ("v3u", "v6"),
    ("v8", "11"),
    ("v10", "26"),
    ("26", "11"),
    ("11", "RT-DETR"),
    ("RT-DETR", "12"),
    ("RT-DETR",) * 2,
]


def step(student: str, teacher: str) -> list[str]:
    """Method keys of the default recipe for a pair, after one optimizer step with them."""
    models = build(FAMILIES[student], 0, torch.float32), build(FAMILIES[teacher], 1, torch.float32)
    readers = read(models[0]), read(models[1])
    made = plan(*readers, DistillOptions((), 1.0, **asked_methods("default", {})), NAMES)
    distiller = Distiller(readers[0], [Pairing(readers[0], made, torch.device("cpu"))]).train()
    before = copy.deepcopy(models[0].state_dict())
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=1e-3)
    loss, items = distiller(batch(2))
    assert loss.isfinite().all() and all(items[name] > 0 for name in made.terms), items
    loss.sum().backward()
    torch.nn.utils.clip_grad_norm_(distiller.parameters(), 10.0)
    optimizer.step()
    for name, parameter in distiller.named_parameters():
        assert parameter.isfinite().all(), name
    assert any(not torch.equal(v, before[k]) for k, v in models[0].state_dict().items())
    assert all(p.grad.abs().max() > 0 for p in distiller.methods.parameters())
    return list(made.methods)


def check(student: str, teacher: str) -> str:
    methods = step(student, teacher)
    decoders = [student, teacher].count("RT-DETR")
    assert methods == [["pkd", "logit", "bckd_box"], ["pkd", "match"], ["pkd", "detr_logit"]][decoders]
    return "+".join(methods)


@pytest.mark.parametrize(("student", "teacher"), SAMPLE)
def test_a_pair_trains_a_step(student, teacher):
    check(student, teacher)


@pytest.mark.slow
def test_the_whole_matrix_trains_a_step(capsys):
    """Printed: a row a student, a column a teacher."""
    matrix = {student: [check(student, teacher) for teacher in FAMILIES] for student in FAMILIES}
    width = max(len(cell) for row in matrix.values() for cell in row) + 2
    with capsys.disabled():
        print("\n" + "under".ljust(9) + "".join(teacher.ljust(width) for teacher in FAMILIES))
        for student, row in matrix.items():
            print(student.ljust(9) + "".join(cell.ljust(width) for cell in row))
