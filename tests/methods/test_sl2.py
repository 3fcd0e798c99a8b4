"""SL2 against its equation in scalar loops, and against Ultralytics' own code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.views import OTHER_SIZES, build, change, check, conv1x1, make_pair, resize, sigmoid

from yolokd.methods import METHODS
from yolokd.methods.sl2 import SL2


def project(x: list, layers: torch.nn.Sequential) -> list:
    hidden = conv1x1(x, layers[0])
    hidden = [[[[max(v, 0.0) for v in row] for row in plane] for plane in image] for image in hidden]
    return conv1x1(hidden, layers[2])


def reference(method: SL2):
    def loss(student, teacher) -> float:
        levels, start = [], 0
        for s, t, layers in zip(
            getattr(student, method.tap), getattr(teacher, method.tap), method.adapters, strict=True
        ):
            rows, columns = len(s[0][0]), len(s[0][0][0])
            weights = [
                [
                    [
                        [max(sigmoid(z) for z in points[start + y * columns + x]) for x in range(columns)]
                        for y in range(rows)
                    ]
                ]
                for points in teacher.logits
            ]
            start += rows * columns
            size = len(s[0][0]), len(s[0][0][0])
            a, b, w = project(s, layers), resize(t, *size), weights
            error = energy = total = 0.0
            for i in range(len(b)):
                for y in range(size[0]):
                    for x in range(size[1]):
                        total += w[i][0][y][x]
                        for c in range(len(b[0])):
                            error += w[i][0][y][x] * (a[i][c][y][x] - b[i][c][y][x]) ** 2
                            energy += w[i][0][y][x] * b[i][c][y][x] ** 2
            levels.append(error / energy if method.options.relative else error / (len(b[0]) * total + 1e-9))
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("tap", SL2.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_equals_reference(relative, tap, sizes):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths, sizes=sizes, classes=(2, 3))
        method = build("sl2", pair, tap, seed, relative=relative)
        check(method, pair, reference(method), [tap], seed)


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_ultralytics(batch):
    """Its term is the sum over L levels times its weight times the batch: 6 B L times our plain mean."""
    distill_model = pytest.importorskip("ultralytics.nn.distill_model")
    theirs = distill_model.DistillationModel
    pair = make_pair(seed=5, batch=batch)
    method = build("sl2", pair, relative=False)
    levels = len(pair.student.neck)

    def show(feats, view):
        head = {"scores": view.logits.transpose(1, 2)}
        feats.update(enumerate([*view.neck, {"one2many": head, "one2one": head}]))

    # what its `loss` reads of a trained wrapper, with the hooks' work done by the two lambdas
    wrapper = SimpleNamespace(
        training=True,
        dis=6.0,
        feats_idx=list(range(levels + 1)),
        projector=method.adapters,
        _teacher_feats={},
        _student_feats={},
        decouple_outputs=lambda preds, branch="one2one": theirs.decouple_outputs(None, preds, branch),
        loss_sl2=lambda *args, **kwargs: theirs.loss_sl2(None, *args, **kwargs),
    )
    wrapper.teacher_model = lambda _: show(wrapper._teacher_feats, pair.teacher)
    wrapper.student_model = lambda _: show(wrapper._student_feats, pair.student)
    wrapper.student_model.loss = lambda *_: (torch.zeros(1), {})
    losses, _ = theirs.loss(wrapper, {"img": torch.zeros(batch, 3, 8, 8)})
    ours = method(pair.student, pair.teacher, {}).item()
    # its sum starts from a float32 zero, so that it is float32 even here
    assert losses[-1].item() == pytest.approx(6 * batch * levels * ours, rel=2e-6)
    # one level alone stays in float64
    points = pair.teacher.neck[0][0, 0].numel()
    scores = pair.teacher.logits.sigmoid().amax(-1)[:, None, :points]
    level = theirs.loss_sl2(None, method.adapters[0](pair.student.neck[0]), pair.teacher.neck[0], 0, (scores,))
    first = METHODS["sl2"](
        *(
            type(s)(s.strides[:1], {"neck": s.channels["neck"][:1]}, s.classes)
            for s in (pair.student_spec, pair.teacher_spec)
        ),
        "neck",
        method.options,
    ).double()
    first.load_state_dict({k: v for k, v in method.state_dict().items() if k.startswith("adapters.0.")})
    one = [
        type(v)(strides=v.strides[:1], neck=v.neck[:1], logits=v.logits[:, :points])
        for v in (pair.student, pair.teacher)
    ]
    assert first(*one, {}).item() == pytest.approx(level.item(), rel=1e-12)


def test_projector_has_ultralytics_form():
    """Weights of its projector, built by its own code, load into ours."""
    distill_model = pytest.importorskip("ultralytics.nn.distill_model")
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    nets = [tasks.DetectionModel(f"yolo11{size}.yaml", nc=2, verbose=False) for size in "sn"]
    nets[1].args = SimpleNamespace(imgsz=32, dis=6.0)
    theirs = distill_model.DistillationModel(*nets).projector
    widths = [(layers[0].in_channels, layers[2].out_channels) for layers in theirs]
    method = build("sl2", make_pair(widths=tuple(zip(*widths, strict=True)), sizes=(((1, 1),) * 3,) * 2), width=1.0)
    method.adapters.load_state_dict(theirs.state_dict())
    assert [type(m) for m in method.adapters[0]] == [type(m) for m in theirs[0]]


def test_only_cells_that_the_teacher_believes_in_count():
    pair = make_pair()
    method = build("sl2", pair)
    logits = pair.teacher.logits.clone()
    logits[:, 7] = -1000  # level 0, row 1, column 1: weight 0
    teacher = change(pair.teacher, lambda _: logits, ("logits",))
    value = method(pair.student, teacher, {}).item()

    def disturb(row, column):
        maps = tuple(m.clone() for m in teacher.neck)
        maps[0][:, :, row, column] += 3
        return method(pair.student, type(teacher)(teacher.strides, neck=maps, logits=logits), {}).item()

    assert disturb(1, 1) == value
    assert disturb(1, 2) != pytest.approx(value, rel=1e-3)


def test_relative_means_the_same_at_any_scale_of_the_teacher():
    pair = make_pair()
    method = build("sl2", pair)
    for layers in method.adapters:
        torch.nn.init.zeros_(layers[2].weight)
        torch.nn.init.zeros_(layers[2].bias)
    for scale in (1e-3, 1.0, 1e3):
        teacher = change(pair.teacher, lambda x, k=scale: k * x, ("neck",))
        assert method(pair.student, teacher, {}).item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("value", [1, "no", None])
def test_refuses_what_is_no_flag(value):
    with pytest.raises(ValueError, match=r"^sl2\.relative=.* must be one of True, False\.$"):
        METHODS["sl2"].Options(relative=value)
