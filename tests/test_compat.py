"""A moved internal of Ultralytics is one sentence at import, not a traceback from the middle of a training."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
import torch
import ultralytics
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import ops

from yolokd import compat
from yolokd.distill.saving import SavingMixin
from yolokd.distill.trainer import KDMixin


def test_the_installed_ultralytics_has_everything():
    """Else nothing of yolokd can be imported."""
    assert compat.moved() == []
    compat.check()


@pytest.mark.parametrize(
    "entry, named",
    [
        (("ultralytics.gone", "thing", ()), "ultralytics.gone.thing"),
        (("ultralytics.cfg", "gone", ()), "ultralytics.cfg.gone"),
        (("ultralytics.engine.trainer", "BaseTrainer.gone", ()), "ultralytics.engine.trainer.BaseTrainer.gone"),
        (
            ("ultralytics.nn.tasks", "torch_safe_load", ("safe_only", "gone")),
            "ultralytics.nn.tasks.torch_safe_load(gone=)",
        ),
    ],
)
def test_what_has_moved_is_named_with_the_version_to_install(entry, named, monkeypatch):
    """The user must read which internal, which version is there and which one to install."""
    monkeypatch.setattr(compat, "INTERNALS", (*compat.INTERNALS, entry))
    assert compat.moved() == [named]
    with pytest.raises(ImportError) as error:
        compat.check()
    sentence = str(error.value)
    assert named in sentence
    assert f"ultralytics {ultralytics.__version__}" in sentence
    assert f"'ultralytics{compat.SUPPORTED}'" in sentence


@pytest.mark.parametrize("use", ["import yolokd; yolokd.KDTrainer", "from yolokd import train", "CLI"])
def test_the_check_comes_before_the_import_that_would_fail(use):
    """Ultralytics without one of the internals: the sentence, not its import error."""
    script = f"import ultralytics.cfg as c; del c.smart_value\n{use}\n".replace(
        "CLI", "import sys; from yolokd.cli import main; sys.exit(main(['train', 'model=x.pt']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=sys.prefix, capture_output=True, text=True, check=False)
    assert "yolokd relies on ultralytics.cfg.smart_value" in done.stderr.strip().splitlines()[-1]
    assert done.returncode == (2 if use == "CLI" else 1)


@pytest.mark.parametrize(
    ("contract", "now", "before"),
    [("raw", None, (False, False)), ("e2e", False, (False, True)), ("nms", True, (True, False))],
)
def test_the_head_is_chosen_in_the_words_of_the_version(contract, now, before, monkeypatch):
    """8.4.142 dropped `end2end` and gave `nms` a third value; the older one refuses None."""
    monkeypatch.delitem(ultralytics.utils.DEFAULT_CFG_DICT, "end2end", raising=False)
    assert compat.head_arguments(contract) == {"nms": now}
    monkeypatch.setitem(ultralytics.utils.DEFAULT_CFG_DICT, "end2end", None)
    assert compat.head_arguments(contract) == dict(zip(("nms", "end2end"), before, strict=True))


def one_ratio(inner, boxes, outer):
    """How Ultralytics mapped boxes back up to 8.4.123."""
    ratio = min(inner[0] / outer[0], inner[1] / outer[1])
    for axis in (0, 1):
        pad = round((inner[1 - axis] - round(outer[1 - axis] * ratio)) / 2 - 0.1)
        boxes[..., axis::2] = ((boxes[..., axis::2] - pad) / ratio).clamp(0, outer[1 - axis])
    return boxes


@pytest.mark.parametrize("outer", [(333, 501), (161, 159), (480, 640)])
def test_boxes_are_mapped_back_by_each_axis_in_every_version(outer, monkeypatch):
    inner, boxes = (96, 160), torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) * 160
    with compat.boxes_by_axis():
        expected = ops.scale_boxes(inner, boxes.clone(), outer)
    monkeypatch.setattr(ops, "scale_boxes", one_ratio)
    assert outer == (480, 640) or not torch.equal(ops.scale_boxes(inner, boxes.clone(), outer), expected)
    with compat.boxes_by_axis():
        assert torch.equal(ops.scale_boxes(inner, boxes.clone(), outer), expected)
    assert ops.scale_boxes is one_ratio


def test_every_override_of_the_trainer_is_on_the_list():
    """An override that upstream renames is silently never called again: the distillation would not happen."""
    listed = {name.removeprefix("BaseTrainer.") for _, name, _ in compat.INTERNALS if name.startswith("BaseTrainer.")}
    ours = vars(KDMixin).keys() | vars(SavingMixin).keys()
    overrides = {n for n, _ in inspect.getmembers(KDMixin, inspect.isfunction) if n in ours}
    assert {n for n in overrides if n in vars(BaseTrainer)} - {"__init__"} == listed & overrides


def test_the_supported_range_is_the_one_that_is_installed(request):
    """Two places state it: the sentence above and the package's dependencies."""
    project = (request.config.rootpath / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'"ultralytics([^"]*)"', project)[1] == compat.SUPPORTED
