"""What the reader of RT-DETR shows is what Ultralytics computes, without denoising queries."""

from __future__ import annotations

import copy
import csv

import pytest
import torch
import yaml
from helpers.models import NAMES, batch, build, images, layout
from helpers.training import pico
from torchvision.ops import box_convert
from ultralytics import RTDETR

import yolokd
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import RTDETRReader, YoloReader, read
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing
from yolokd.distill.teacher import Teacher

SMALL = "rtdetr-3-20-32"
ALL = RTDETRReader.fields
LAYERS = ("layer_logits", "layer_boxes", "layer_queries", "attention")


def small(seed: int = 0) -> torch.nn.Module:
    return build(SMALL, seed, torch.float32)  # Ultralytics' denoising queries are float32 alone


def shown(model, x, fields=ALL):
    reader = read(model)
    with reader.record(fields) as seen:
        model(x)
    return reader.views(seen, fields, reader.strides)["decoder"]


def tensors(view, field):
    value = getattr(view, field)
    return list(value) if isinstance(value, tuple) else [value]


def test_readers_are_chosen_by_head():
    assert isinstance(read(small()), RTDETRReader) and isinstance(read(build("yolo11n")), YoloReader)


def test_facts():
    spec = read(small()).spec
    assert (spec.strides, spec.dense, spec.classes, spec.layers, spec.width) == ((8, 16, 32), False, 5, 3, 32)
    assert spec.channels == {"neck": (64, 128, 256), "backbone": (64, 128, 256)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "stages", "widths"),
    [("rtdetr-l", (3, 7, 9), (512, 1024, 2048)), ("rtdetr-resnet50", (2, 3, 4), (512, 1024, 2048))],
)
def test_large_families_are_read_as_the_access_table_says(family, stages, widths):
    reader = read(build(family, dtype=torch.float32))
    assert reader.stages == stages and reader.strides == (8, 16, 32)
    assert reader.spec.channels == {"backbone": widths, "neck": (256, 256, 256)}
    assert (reader.spec.layers, reader.spec.width) == (6, 256)


def test_predictions_are_those_ultralytics_decodes():
    model, x = small().eval(), images(dtype=torch.float32)
    with torch.no_grad():
        _, raw = model(x)  # sigmoid cxcywh as fractions, logits
    model.model[-1].training = True
    view = shown(model, x)
    height, width = x.shape[-2:]
    boxes = box_convert(raw[0][-1], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    torch.testing.assert_close(view.boxes, boxes, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(view.logits, raw[1][-1])


def test_a_training_pass_shows_matching_queries_only():
    """Denoising queries are made from ground truth: to distil them would hand the labels to the student."""
    model, data = small().train(), batch()
    reader = read(model)
    with reader.record(ALL) as seen:
        model(data)
    view, raw = reader.views(seen, ALL, reader.strides)["decoder"], seen["out"]
    denoising = raw[-1]["dn_num_split"][0]
    assert denoising > 0 and raw[1].shape[2] == denoising + 20
    assert torch.equal(view.logits, raw[1][-1][:, denoising:])
    assert torch.equal(torch.stack(view.layer_logits), raw[1][:, :, denoising:])
    assert view.content.shape == (4, 20, 32) and view.references.shape == (4, 20, 4)
    assert not view.references.requires_grad
    assert [q.shape for q in view.layer_queries] == [(4, 20, 32)] * 3
    for attention in view.attention:  # matching queries look at none of the denoising ones
        torch.testing.assert_close(attention.sum(-1), torch.ones(4, 20))
    torch.testing.assert_close(view.boxes, view.layer_boxes[-1])


def test_decode_runs_the_same_decoder():
    """With its own queries it must return its own predictions, on this batch and with gradient to the image."""
    model, data = small().train(), batch()
    reader = read(model)
    with reader.record(ALL) as seen:
        model(data)
    view = reader.views(seen, ALL, reader.strides)["decoder"]
    found = view.decode(view.content, view.references)
    for field in LAYERS:
        for a, b in zip(found[field], getattr(view, field), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-3)
    some = view.decode(view.content[:, :7], view.references[:, :7])
    assert some["layer_logits"][0].shape == (4, 7, 5)
    first = model.model[0].conv.weight
    (slope,) = torch.autograd.grad(some["layer_logits"][-1].square().sum(), first)
    assert slope.abs().max() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("field", sorted(ALL - {"decode", "references", "content"}))
def test_every_field_carries_gradient_to_the_first_layer(field):
    model = small().train()
    view = shown(model, images(dtype=torch.float32))
    first_layer = 1 if field == "attention" else 0  # the queries enter it without a gradient
    for tensor in tensors(view, field)[first_layer:]:
        (slope,) = torch.autograd.grad(tensor.square().sum(), model.model[0].conv.weight, retain_graph=True)
        assert slope.abs().max() > 0


@pytest.mark.parametrize("field", sorted(ALL - {"decode"}))
def test_only_asked_fields_are_filled(field):
    view = shown(small().train(), images(dtype=torch.float32), frozenset({field}))
    assert [f for f in ALL if getattr(view, f) is not None] == [field]


def test_the_teacher_says_what_the_original_says():
    model, x = small(1), images(dtype=torch.float32)
    original = copy.deepcopy(model).eval()
    original.model[-1].training = original.model[-1].decoder.training = True
    expected = shown(original, x)
    teacher = Teacher(read(model), ALL, ("decoder",), torch.device("cpu"))
    found = teacher(x)((8, 16, 32))["decoder"]
    for field in sorted(ALL - {"decode"}):
        for a, b in zip(tensors(found, field), tensors(expected, field), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=5e-3)
            assert not a.requires_grad
    again = found.decode(found.content.clone().requires_grad_(), found.references)
    assert len(again["layer_logits"]) == 3 and not again["layer_logits"][0].requires_grad


def test_a_teacher_of_last_predictions_computes_one_layer_of_them():
    teacher = Teacher(read(small(1)), frozenset({"logits", "boxes"}), ("decoder",), torch.device("cpu"))
    assert not teacher.model.model[-1].decoder.training
    assert teacher(images(dtype=torch.float32))((8, 16, 32))["decoder"].logits.shape == (2, 20, 5)


def test_a_teacher_of_maps_skips_its_decoder():
    teacher = Teacher(read(small(1)), frozenset({"neck"}), ("decoder",), torch.device("cpu"))
    view = teacher(images(dtype=torch.float32))((16,))["decoder"]
    assert len(view.neck) == 1 and view.neck[0].shape == (2, 128, 4, 6)
    assert not hasattr(teacher.model.model[-1], "decoder")


# Whole trainings, through the command's function


@pytest.mark.slow
def test_rtdetr_learns_from_yolo_and_teaches_it(scenes, teacher, tmp_path, monkeypatch):
    """RT-DETR under YOLO, then RT-DETR and YOLO under that RT-DETR: terms fall, checkpoints are the plain students."""
    monkeypatch.chdir(tmp_path)
    small = tmp_path / "smalln.yaml"
    small.write_text(yaml.safe_dump({k: v for k, v in layout(SMALL).items() if k not in {"scale", "yaml_file"}}))
    budget = {
        "data": scenes, "imgsz": 64, "batch": 8, "nbs": 8, "epochs": 2, "optimizer": "AdamW", "lr0": 1e-3,
        "workers": 0, "plots": False, "amp": False, "device": "cpu", "project": tmp_path / "runs", "report": False,
        "init": "own",  # the starts have tests of their own
    }  # fmt: skip
    under_yolo = yolokd.train(model=small, teacher=teacher, name="a", **budget)
    assert isinstance(under_yolo, RTDETR)
    distilled = {"a": under_yolo.trainer}
    assert list(under_yolo.trainer.distiller.gains) == ["pkd_loss", "match_loss"]
    best = under_yolo.trainer.best
    for name, model in [("b", small), ("c", pico("yolo11"))]:
        distilled[name] = yolokd.train(model=model, teacher=best, name=name, **budget).trainer
    assert list(distilled["b"].distiller.gains) == ["pkd_loss", "dlogi_loss"]
    assert list(distilled["c"].distiller.gains) == ["pkd_loss", "match_loss"]
    for trainer in distilled.values():
        with (trainer.save_dir / "results.csv").open() as file:
            first, last = csv.DictReader(file)
        for name in trainer.distiller.gains:
            a, b = float(first[f"train/{name}"]), float(last[f"train/{name}"])
            # a dense student's points are matched anew as it learns: two epochs may see the match's value rise
            assert 0 < b < (2 if name == "match_loss" else 1.1) * a, name
    shorter = {**budget, "epochs": 1, "fraction": 0.34}
    queries = yolokd.train(model=small, teacher=best, name="d", **shorter, method="kd_detr,detr_query").trainer
    with (queries.save_dir / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert all(float(row[f"train/{name}"]) > 0 for name in queries.distiller.gains)
    assert len(queries.distiller.gains) == 2
    plain = RTDETR(distilled["b"].best)
    assert type(plain.model).__module__.startswith("ultralytics.")
    plain.export(format="onnx", imgsz=64, simplify=False)


@pytest.mark.slow
def test_the_large_rtdetr_takes_a_step():
    """rtdetr-l as student and as teacher, at a size that a CPU can bear."""
    readers = read(build("rtdetr-l", 0, torch.float32)), read(build("rtdetr-l", 1, torch.float32))
    made = plan(*readers, DistillOptions((), 1.0, **asked_methods("default", {})), NAMES)
    distiller = Distiller(readers[0], [Pairing(readers[0], made, torch.device("cpu"))]).train()
    loss, items = distiller(batch(2, side=96))
    loss.sum().backward()
    assert loss.isfinite().all() and list(items)[3:] == ["pkd_loss", "dlogi_loss"]
