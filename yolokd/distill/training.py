"""`yolokd train` and `yolokd.train()`: build the student, refuse what cannot work, hand over to the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO

from yolokd.config import options
from yolokd.config.checks import check_arguments
from yolokd.config.parse import non_negative, true_or_false
from yolokd.config.recipes import read_arguments
from yolokd.detectors.opening import open_student, scaled_yaml
from yolokd.distill.preflight import preflight
from yolokd.distill.trainer import trainer_for
from yolokd.errors import UsageError


def train(**arguments: Any) -> YOLO | RTDETR:
    """Train a student under a teacher.

    Args:
        **arguments: ``model``, ``teacher`` and ``data``; optionally ``method``, ``kd``, ``init``, ``width``, ``depth``
            and dotted options of a method (``**{"cwd.tau": 2}``); every other one goes to Ultralytics' training
            untouched. With ``trust=True`` the files may hold what runs as code: see `detectors.opening`.

    Returns:
        The trained student as Ultralytics' own object: ``.trainer.best`` is its checkpoint, ``.metrics`` its accuracy.

    Raises:
        UsageError: something asked for cannot be done; nothing was written and no epoch run.
    """
    if arguments.get("cfg"):
        arguments = {**read_arguments(arguments.pop("cfg")), **arguments}
    non_negative("kd", arguments.get("kd", 1.0))  # folded options, a dict, are not for users
    trust = true_or_false("trust", arguments.get("trust", False))
    if arguments.get("resume"):
        return _resume(arguments)
    if not arguments.get("model"):
        raise UsageError("no student: give a model, such as model=yolo11n.yaml or model=yolo11n.pt.")
    scaling = {k: v for k in ("width", "depth") if (v := arguments.pop(k, None)) is not None}
    folded = options.fold(arguments)
    check_arguments(folded, trust)
    model = scaled_yaml(str(arguments["model"]), **scaling, trust=trust) if scaling else arguments["model"]
    student = open_student(model, trust=trust)
    if (task := arguments.get("task") or student.task) != student.task:
        raise UsageError(f"task={task}: model={model} is for the task {student.task}, leave task= out.")
    preflight(student, folded, trust)
    student.train(trainer=trainer_for(student.model), **{k: v for k, v in folded.items() if k != "model"})
    return student


def _resume(arguments: dict[str, Any]) -> YOLO | RTDETR:
    """Continue an interrupted run from its last.pt, given as model= with resume=True or as resume= itself."""
    given = arguments.pop("resume")
    checkpoint = arguments.pop("model", None) if given is True else given
    if not checkpoint or not Path(str(checkpoint)).is_file():
        raise UsageError(f"resume={checkpoint or given} is not a file: give the interrupted run's weights/last.pt.")
    options.fold({**arguments, "resume": True})
    trust = bool(arguments.get("trust"))
    student = open_student(checkpoint, "model" if given is True else "resume", trust)
    distilled = isinstance((student.ckpt.get("train_args") or {}).get("kd"), dict)
    if student.ckpt.get("optimizer") is None or not distilled:
        raise UsageError(f"resume={checkpoint} is not an interrupted run of yolokd: give such a run's weights/last.pt.")
    student.train(trainer=trainer_for(student.model), resume=True, **arguments)
    return student
