"""The reader against Ultralytics' own forward pass: same boxes, same maps, and a model left as it was."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from helpers.models import build, images
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolokd.detectors import read
from yolokd.detectors.yolo import YoloReader, decode
from yolokd.errors import UsageError
from yolokd.views import DENSE, MAPS

ALL = frozenset(DENSE)
# index in the YAML of the backbone's deepest layers at strides 8, 16, 32, of the neck's outputs and of the head
LAYERS = {
    "yolov8n": ((4, 6, 9), (15, 18, 21), 22),
    "yolo11n": ((4, 6, 10), (16, 19, 22), 23),
    "yolo12n": ((4, 6, 8), (14, 17, 20), 21),
    "yolov10n": ((4, 6, 10), (16, 19, 22), 23),
    "yolo26n": ((4, 6, 10), (16, 19, 22), 23),
}
WIDTHS = {  # backbone at strides 8, 16, 32 and neck, of the n scale
    "yolov8n": ((64, 128, 256), (64, 128, 256)),
    "yolo11n": ((128, 128, 256), (64, 128, 256)),
    "yolo12n": ((128, 128, 256), (64, 128, 256)),
    "yolov10n": ((64, 128, 256), (64, 128, 256)),
    "yolo26n": ((128, 128, 256), (64, 128, 256)),
}
DUAL = ("yolov10n", "yolo26n")
BRANCHES = [(family, "one2many") for family in LAYERS] + [(family, "one2one") for family in DUAL]


def views(model: nn.Module, x: torch.Tensor, fields: frozenset[str] = ALL, strides: tuple[int, ...] = ()) -> dict:
    """What a fresh reader shows of an eval pass with raw outputs."""
    reader = YoloReader(model)
    reader.head.training = True
    with reader.record(fields) as seen:
        model(x)
    reader.head.training = False
    return reader.views(seen, fields, strides or reader.strides)


def ultralytics_predictions(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (B, N, 4) xyxy and scores (B, N, K) as Ultralytics decodes them, before any top-k."""
    head = model.model[-1]
    head.postprocess = lambda decoded: decoded  # a dual head's one2one output would be cut to its top-k
    with torch.no_grad():
        out = model(x)[0]
    del head.postprocess
    if head.end2end:
        return out[..., :4], out[..., 4:]
    centre, size, scores = out.transpose(1, 2).split((2, 2, head.nc), -1)
    return torch.cat((centre - size / 2, centre + size / 2), -1), scores


def hooks(model: nn.Module) -> int:
    """Forward hooks of any kind in a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("family, branch", BRANCHES)
def test_predictions_are_those_ultralytics_decodes(family, branch, fused):
    """A wrong axis order, stride, bin expectation or branch gives other boxes than `yolo predict` draws."""
    model, x = build(family), images()
    if family in DUAL:
        model.model[-1].end2end = branch == "one2one"
    if fused:
        model.fuse(verbose=False)
    boxes, scores = ultralytics_predictions(model, x)
    view = views(model, x)[branch]
    # Ultralytics makes its anchors in the map's type, but sums bins with float32 weights: exact integers
    torch.testing.assert_close(view.boxes, boxes, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(view.logits.sigmoid(), scores, rtol=1e-9, atol=1e-9)
    assert view.boxes.std(1).min() > 1, "the check is empty when all boxes are alike"


@pytest.mark.parametrize("family", LAYERS)
def test_bins_are_the_heads_box_distribution(family):
    """Bins in another order than left, top, right, bottom x R would be compared edge against edge wrongly."""
    model, x = build(family), images()
    head = model.model[-1]
    view = views(model, x)["one2many"]
    if head.reg_max == 1:  # YOLO26 predicts sides, not distributions
        assert view.bins is None
        assert YoloReader(model).spec.bins == 0
        return
    head.training = True
    raw = model(x)
    raw = raw.get("one2many", raw)["boxes"]
    points = 8 * 12 + 4 * 6 + 2 * 3
    assert view.bins.shape == (2, points, 4, 16)
    assert YoloReader(model).spec.bins == 16
    assert torch.equal(view.bins, raw.view(2, 4, 16, points).permute(0, 3, 1, 2))


@pytest.mark.parametrize("family, branch", BRANCHES)
def test_maps_are_the_layers_of_the_access_table(family, branch):
    """A map from another layer, or one that a later layer overwrote in place, is not what papers distil."""
    model, x = build(family), images()
    stages, necks, head = LAYERS[family]
    box, cls = ("one2one_cv2", "one2one_cv3") if branch == "one2one" else ("cv2", "cv3")
    paths = {
        "backbone": [f"model.{i}" for i in stages],
        "neck": [f"model.{i}" for i in necks],
        "towers": [f"model.{head}.{tower}.{level}.1" for tower in (box, cls) for level in range(3)],
    }
    outputs = {}
    for path in sum(paths.values(), []):
        model.get_submodule(path).register_forward_hook(
            lambda module, args, out, path=path: outputs.__setitem__(path, out.clone())
        )
    found = views(model, x)[branch]
    spec = YoloReader(build(family)).spec
    for field in MAPS:
        maps = getattr(found, field)
        assert len(maps) == len(paths[field])
        for i, (seen, path) in enumerate(zip(maps, paths[field], strict=True)):
            assert torch.equal(seen, outputs[path]), path
            assert seen.shape[-2:] == (64 // spec.strides[i % 3], 96 // spec.strides[i % 3])
        assert spec.channels[field] == tuple(m.shape[1] for m in maps)
    assert (spec.channels["backbone"], spec.channels["neck"]) == WIDTHS[family]
    assert (spec.strides, spec.classes) == ((8, 16, 32), 5)


@pytest.mark.parametrize("family, strides", [("yolo26n-p2", (8, 16, 32)), ("yolo11n", (8, 32))])
def test_levels_without_a_partner_are_left_out(family, strides):
    """Dropping another level than the one without a partner pairs anchor points at different places."""
    model, x = build(family), images()
    reader = YoloReader(model)
    whole, part = views(model, x), views(model, x, strides=strides)
    rows = torch.cat([torch.full((6144 // s**2,), s in strides) for s in reader.strides])  # 64 x 96 = 6144 pixels
    for branch in reader.branches:
        for field in ("logits", "boxes", "bins"):
            if (all_points := getattr(whole[branch], field)) is not None:
                assert torch.equal(getattr(part[branch], field), all_points[:, rows])
        assert part[branch].boxes.shape[1] == sum(6144 // s**2 for s in strides)
        for field, copies in (("backbone", 1), ("neck", 1), ("towers", 2)):
            expected = [64 // s for s in strides] * copies
            assert [m.shape[-2] for m in getattr(part[branch], field)] == expected
            assert len(reader.spec_at(strides).channels[field]) == len(expected)
        assert part[branch].strides == strides


@pytest.mark.parametrize("field", DENSE)
def test_only_asked_fields_are_filled(field):
    """A field that nobody asked for costs memory for the whole backward pass."""
    view = views(build("yolo11n"), images(), frozenset({field}))["one2many"]
    assert [f for f in DENSE if getattr(view, f) is not None] == [field]


def test_no_hook_outlives_a_recording():
    """A hook left on the student is pickled into its checkpoint, which then needs yolokd to load."""
    model, x = build("yolo26n"), images()
    reader = YoloReader(model)
    assert hooks(model) == 0
    with reader.record(ALL):
        assert hooks(model) > 0
        model(x)
    assert hooks(model) == 0
    with pytest.raises(ZeroDivisionError), reader.record(ALL):
        raise ZeroDivisionError
    assert hooks(model) == 0


@pytest.mark.parametrize("mode", ["train", "eval", "partly frozen"])
def test_building_a_reader_leaves_the_model_as_it_was(mode):
    """A reader that moves batch norm statistics or draws numbers makes the student differ from one trained alone."""
    model = build("yolo26n").train(mode != "eval")
    if mode == "partly frozen":
        for layer in model.model[:5]:
            layer.eval()
    before = everything(model)
    YoloReader(model)
    assert same(everything(model), before)


def test_recording_leaves_a_training_pass_as_it_was():
    """Outputs and statistics of a recorded training pass are those of a bare one, to the last bit."""
    model, x = build("yolo26n"), images()
    bare = copy.deepcopy(model).train()
    reader = YoloReader(model.train())
    expected = bare(x)
    with reader.record(ALL) as seen:
        found = model(x)
    reader.views(seen, ALL, reader.strides)
    assert all(torch.equal(found[b][k], expected[b][k]) for b in reader.branches for k in ("boxes", "scores"))
    assert same(everything(model), everything(bare))


def everything(model: nn.Module) -> dict:
    """What reading must not change: weights, statistics, flags, gradients and the random streams."""
    return {
        **{k: v.clone() for k, v in model.state_dict().items()},
        "flags": torch.tensor([m.training for m in model.modules()]),
        "trainable": torch.tensor([p.requires_grad and p.grad is None for p in model.parameters()]),
        "torch": torch.get_rng_state(),
        "random": torch.tensor(random.getstate()[1]),
        "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
    }


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("field", DENSE)
def test_every_field_carries_gradient_to_the_first_layer(field):
    """A field cut off the graph gives a loss that falls for its adapters alone."""
    model = build("yolo11n").train()
    reader = YoloReader(model)
    with reader.record(ALL) as seen:
        model(images())
    found = getattr(reader.views(seen, ALL, reader.strides)["one2many"], field)
    for tensor in found if isinstance(found, tuple) else (found,):
        (reached,) = torch.autograd.grad(tensor.square().sum(), model.model[0].conv.weight, retain_graph=True)
        assert reached.abs().max() > 0


def test_one2one_predictions_train_their_branch_only():
    """A one2one term that reaches the neck undoes the separation of YOLO26's two branches."""
    model = build("yolo26n").train()
    reader = YoloReader(model)
    with reader.record(ALL) as seen:
        model(images())
    found = reader.views(seen, ALL, reader.strides)["one2one"]
    first, tower = model.model[0].conv.weight, model.model[-1].one2one_cv2[0][0].conv.weight
    reached = torch.autograd.grad(found.boxes.sum(), (first, tower), allow_unused=True)
    assert reached[0] is None
    assert reached[1].abs().max() > 0


@pytest.mark.parametrize("end2end", [False, True])
def test_a_dual_head_that_was_fused_shows_its_one_branch(end2end):
    """A checkpoint saved after fuse() lacks a branch; its reader must show the other, not fall over."""
    model = build("yolo26n")
    model.model[-1].end2end = end2end
    model.fuse(verbose=False)
    reader, branch = YoloReader(model), "one2one" if end2end else "one2many"
    if not end2end and getattr(model.model[-1], "one2one_cv2", None) is not None:
        pytest.skip("this Ultralytics drops no branch that it does not use")
    assert reader.branches == (branch,)
    assert reader.spec.channels == YoloReader(build("yolo26n")).spec.channels
    assert list(views(model, images())) == [branch]


def test_boxes_in_half_precision_are_decoded_in_float32():
    """Half precision holds a coordinate of 640 px to half a pixel: IoU of small objects would be noise."""
    anchors, stride = torch.tensor([[39.5, 39.5]]), torch.tensor([[16.0]])
    sides = torch.tensor([[[0.1, 0.1, 0.1, 0.1]]], dtype=torch.float16)
    boxes = decode(sides, anchors.half(), stride.half())
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes[0, 0, 2].item(), (39.5 + 0.1) * 16, atol=0.01, rtol=0)


def test_another_head_is_refused_by_name():
    """Without this the first batch would end in an AttributeError."""
    with pytest.raises(UsageError, match="yolo11n-cls ends in Classify"):
        read(ClassificationModel("yolo11n-cls.yaml", nc=5, verbose=False))
