"""The Ultralytics internals that yolokd relies on, checked once before they are used.

A minor release may move one. Then the user must learn which one, and which version to install, instead of getting a
traceback in the middle of a training.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from yolokd.errors import CompatError

if TYPE_CHECKING:
    from torch import Tensor

SUPPORTED = ">=8.4.120,<8.5"

# module, dotted name in it, parameters that we pass by name
INTERNALS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ultralytics.cfg", "cfg2dict", ()),
    ("ultralytics.cfg", "smart_value", ()),
    ("ultralytics.data.augment", "LetterBox", ("new_shape", "auto", "scale_fill")),
    ("ultralytics.data.augment", "RandomHSV.apply_image", ()),
    ("ultralytics.data.utils", "IMG_FORMATS", ()),
    ("ultralytics.data.utils", "convert_ndjson_to_yolo_if_needed", ()),
    ("ultralytics.data.utils", "find_dataset_yaml", ()),
    ("ultralytics.data.utils", "img2label_paths", ()),
    ("ultralytics.data.utils", "verify_image_label", ()),
    ("ultralytics.data.build", "_RepeatSampler", ()),
    ("ultralytics.data.utils", "check_det_dataset", ("split", "autodownload")),
    ("ultralytics.engine.trainer", "BaseTrainer._build_train_pipeline", ()),
    ("ultralytics.engine.trainer", "BaseTrainer._handle_nan_recovery", ()),
    ("ultralytics.engine.trainer", "BaseTrainer._load_checkpoint_state", ()),
    ("ultralytics.engine.trainer", "BaseTrainer._model_train", ()),
    ("ultralytics.engine.trainer", "BaseTrainer._clear_memory", ()),
    ("ultralytics.engine.trainer", "BaseTrainer._do_train", ()),
    ("ultralytics.engine.trainer", "BaseTrainer._setup_ddp", ()),
    ("ultralytics.engine.trainer", "BaseTrainer._setup_train", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.auto_batch", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.build_optimizer", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.check_resume", ("overrides",)),
    ("ultralytics.engine.trainer", "BaseTrainer.build_dataset", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.final_eval", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.get_dataloader", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.get_dataset", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.get_validator", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.label_loss_items", ("loss_items", "prefix")),
    ("ultralytics.engine.trainer", "BaseTrainer.optimizer_step", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.preprocess_batch", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.run_callbacks", ("event",)),
    ("ultralytics.engine.trainer", "BaseTrainer.plot_metrics", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.resume_training", ("ckpt",)),
    ("ultralytics.engine.trainer", "BaseTrainer.train", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.save_metrics", ("metrics",)),
    ("ultralytics.engine.trainer", "BaseTrainer.save_model", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.set_model_attributes", ()),
    ("ultralytics.engine.trainer", "BaseTrainer.validate", ()),
    ("ultralytics.engine.tuner", "Tuner", ("args",)),
    ("ultralytics.engine.tuner", "Tuner._best_result_index", ("results", "fitness")),
    ("ultralytics.engine.tuner", "Tuner._has_training_metrics", ("result",)),
    ("ultralytics.engine.tuner", "Tuner._load_local_results", ()),
    ("ultralytics.engine.tuner", "Tuner._mutate", ()),
    (
        "ultralytics.engine.tuner",
        "Tuner._result_record",
        ("iteration", "fitness", "hyperparameters", "datasets", "save_dirs"),
    ),
    ("ultralytics.engine.tuner", "Tuner._save_local_result", ("result",)),
    ("ultralytics.models.yolo.detect", "DetectionTrainer", ("cfg", "overrides", "_callbacks")),
    ("ultralytics.models.yolo.detect", "DetectionTrainer.build_dataset", ()),
    ("ultralytics.models.yolo.detect", "DetectionTrainer.get_dataloader", ()),
    ("ultralytics.models.yolo.detect", "DetectionValidator", ("dataloader", "save_dir", "args")),
    ("ultralytics.models.yolo.detect", "DetectionValidator.gather_stats", ()),
    ("ultralytics.models.yolo.detect", "DetectionValidator.get_stats", ()),
    ("ultralytics.models.yolo.detect", "DetectionValidator.init_metrics", ()),
    ("ultralytics.models.yolo.detect", "DetectionValidator.postprocess", ()),
    ("ultralytics.models.yolo.detect", "DetectionValidator.preprocess", ()),
    ("ultralytics.models.yolo.detect", "DetectionValidator.update_metrics", ()),
    ("ultralytics.models.yolo.obb", "OBBTrainer", ("cfg", "overrides", "_callbacks")),
    ("ultralytics.models.yolo.pose", "PoseTrainer", ("cfg", "overrides", "_callbacks")),
    ("ultralytics.models.yolo.segment", "SegmentationTrainer", ("cfg", "overrides", "_callbacks")),
    ("ultralytics.nn.modules.head", "Detect.forward_head", ()),
    ("ultralytics.nn.modules.head", "OBB", ()),
    ("ultralytics.nn.modules.head", "Pose26", ()),
    ("ultralytics.nn.modules.head", "Segment", ()),
    ("ultralytics.nn.modules.head", "WorldDetect", ()),
    ("ultralytics.nn.modules.head", "YOLOEDetect", ()),
    ("ultralytics.nn.modules.head", "v10Detect", ()),
    ("ultralytics.nn.tasks", "load_checkpoint", ()),
    ("ultralytics.nn.tasks", "BaseModel", ()),
    ("ultralytics.nn.tasks", "torch_safe_load", ()),
    ("ultralytics.nn.tasks", "yaml_model_load", ()),
    ("ultralytics.utils", "YAML.load", ()),
    ("ultralytics.utils.checks", "check_file", ("download_dir",)),
    ("ultralytics.utils.checks", "check_model_file_from_stem", ()),
    ("ultralytics.utils.dist", "ddp_cleanup", ()),
    ("ultralytics.utils.dist", "generate_ddp_command", ()),
    ("ultralytics.utils.downloads", "attempt_download_asset", ()),
    ("ultralytics.utils.loss", "E2ELoss", ()),
    ("ultralytics.utils.patches", "imread", ("flags",)),
    ("ultralytics.utils.tal", "make_anchors", ()),
    ("ultralytics.utils.torch_utils", "parse_device", ()),
    ("ultralytics.utils.torch_utils", "unset_deterministic", ()),
    ("ultralytics.utils.torch_utils", "unwrap_model", ()),
)


def moved() -> list[str]:
    """Names from INTERNALS that the installed Ultralytics does not have, or has without those parameters."""
    missing = []
    for module, name, parameters in INTERNALS:
        try:
            thing: Any = importlib.import_module(module)
            for part in name.split("."):
                thing = getattr(thing, part)
        except (ImportError, AttributeError):
            missing.append(f"{module}.{name}")
            continue
        lost = [p for p in parameters if p not in inspect.signature(thing).parameters]
        missing += [f"{module}.{name}({p}=)" for p in lost]
    return missing


def known(function: Any, **arguments: Any) -> dict[str, Any]:
    """The arguments that the installed version's function accepts."""
    return {k: v for k, v in arguments.items() if k in inspect.signature(function).parameters}


def head_arguments(contract: str) -> dict[str, bool | None]:
    """Arguments of Ultralytics' export and predict that choose a dual head's output: "raw", "e2e" or "nms".

    Up to 8.4.141 an argument ``end2end`` chose the branch; since then ``nms`` does, with three values.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    if "end2end" in DEFAULT_CFG_DICT:
        return {"nms": contract == "nms", "end2end": contract == "e2e"}
    return {"nms": {"raw": None, "e2e": False, "nms": True}[contract]}


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Ultralytics without its habit of installing what it misses: a missing package is an error that names it."""
    from ultralytics.utils import checks

    before = getattr(checks, "AUTOINSTALL", False)
    checks.AUTOINSTALL = False
    try:
        yield
    finally:
        checks.AUTOINSTALL = before


@contextmanager
def boxes_by_axis() -> Iterator[None]:
    """Ultralytics' predict with boxes mapped back to the image by each axis' own ratio, as its LetterBox rounds them.

    Up to 8.4.123 it takes one ratio for both, which puts boxes a pixel or so beside the place that they were found in.
    """
    import torch
    from ultralytics.utils import ops

    before, points = ops.scale_boxes, ops.scale_coords
    probe = before((160, 160), torch.tensor([[0.0, 79.5, 0.0, 79.5]]), (1, 300))  # one row of pixels, not 0.53
    if float(probe[0, 1]) != 0.5:
        ops.scale_boxes, ops.scale_coords = _scale_boxes, _scale_points
    try:
        yield
    finally:
        ops.scale_boxes, ops.scale_coords = before, points


def _scale_boxes(inner: Sequence[int], boxes: Tensor, outer: Sequence[int], xywh: bool = False) -> Tensor:
    """Boxes (N, 4), xyxy or centres and sizes in an input of size `inner`, in pixels of the image of size `outer`
    (heights, widths).
    """
    ratio = min(inner[0] / outer[0], inner[1] / outer[1])
    for axis in (0, 1):  # x, y
        size, length = outer[1 - axis], inner[1 - axis]
        fitted = max(round(size * ratio), 1)
        boxes[..., axis : 2 if xywh else 4 : 2] -= round((length - fitted) / 2 - 0.1)
        boxes[..., axis::2] /= fitted / size
        if not xywh:
            boxes[..., axis::2].clamp_(0, size)
    return boxes


def _scale_points(inner: Sequence[int], points: Any, outer: Sequence[int], normalize: bool = False) -> Any:
    """Points (..., 2 or 3), a tensor or an array, likewise; with `normalize` as shares of the image."""
    ratio = min(inner[0] / outer[0], inner[1] / outer[1])
    for axis in (0, 1):  # x, y
        size, length = outer[1 - axis], inner[1 - axis]
        fitted = max(round(size * ratio), 1)
        places = (points[..., axis] - round((length - fitted) / 2 - 0.1)) / (fitted / size)
        points[..., axis] = places.clip(0, size) / (size if normalize else 1)
    return points


def check() -> None:
    """Raise CompatError, one sentence with the installed version, if an internal has moved.

    Call it before importing a module that imports one of them: their own import errors name no version to install.
    """
    import ultralytics

    if missing := moved():
        raise CompatError(
            f"yolokd relies on {', '.join(missing)}, which ultralytics {ultralytics.__version__} does not have: "
            f"install 'ultralytics{SUPPORTED}'."
        )
