"""The training: build the student, refuse what cannot work, hand over to the trainer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO
from ultralytics.utils import LOGGER, RANK

from yolokd.config import options
from yolokd.config.checks import check_arguments, own_devices
from yolokd.config.parse import non_negative, true_or_false
from yolokd.config.recipes import read_arguments
from yolokd.detectors.opening import open_student, scaled_yaml
from yolokd.detectors.quantized import is_quantized
from yolokd.distill import checkpoints, outlook
from yolokd.distill.checkpoints import how_to_go_on
from yolokd.distill.preflight import preflight
from yolokd.distill.together import one_at_a_time
from yolokd.distill.trainer import trainer_for
from yolokd.errors import Interrupted, UsageError, printable

UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


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
    return carry_out(arguments)


def carry_out(arguments: dict[str, Any], at_end: Callable[[Any], None] | None = None) -> YOLO | RTDETR:
    """As `train`, with a callback that the trainer calls when its files are complete, before any logger closes."""
    arguments = with_file(arguments)
    check = true_or_false("check", arguments.pop("check", True))
    non_negative("kd", arguments.get("kd", 1.0))  # folded options, a dict, are not for users
    trust = true_or_false("trust", arguments.get("trust", False))
    arguments = {**arguments, **own_devices(arguments)}
    with one_at_a_time():
        student, given = _resumed(arguments, trust) if arguments.get("resume") else _begun(arguments, trust, check)
    if at_end is not None:
        student.add_callback("on_train_end", at_end)
    try:
        with saying_how_to_go_on(student):
            student.train(trainer=trainer_for(student.model), **given)
    finally:
        if at_end is not None:
            student.callbacks["on_train_end"].remove(at_end)  # another training of this student is not ours
    return student


def _begun(arguments: dict[str, Any], trust: bool, check: bool) -> tuple[YOLO | RTDETR, dict[str, Any]]:
    """The student of a new run and the training's arguments, checked."""
    scaling, folded = fold(arguments)
    check_arguments(folded, trust)
    student = build_student(folded, scaling, trust)
    tell_of_quantization(student, folded)
    ready = preflight(student, folded, trust)
    if check and RANK in {-1, 0}:
        outlook.tell(student, ready, folded, trust)
    return student, {k: v for k, v in folded.items() if k != "model"}


def tell_of_quantization(student: YOLO | RTDETR, folded: dict[str, Any]) -> None:
    """Log what becomes of a student that was trained for INT8 before."""
    if is_quantized(student.model) and RANK in {-1, 0}:
        again = bool(folded["kd"].get("quantize"))
        now = "is trained for INT8 again, with ranges found anew" if again else "is trained on in full precision"
        LOGGER.info(printable(f"model={folded['model']} is quantized and {now}"))


def with_file(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with those of the file that cfg= names."""
    given = {k: v for k, v in arguments.items() if k != "cfg"}
    return {**read_arguments(arguments["cfg"]), **given} if arguments.get("cfg") else given


def fold(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The student's width and depth, where they are given, and the other arguments, folded."""
    if not arguments.get("model"):
        raise UsageError("no student: give a model, such as model=yolo11n.yaml or model=yolo11n.pt.")
    scaling = {k: v for k in ("width", "depth") if (v := arguments.get(k)) is not None}
    return scaling, options.fold({k: v for k, v in arguments.items() if k not in ("width", "depth")})


def build_student(arguments: dict[str, Any], scaling: dict[str, Any], trust: bool) -> YOLO | RTDETR:
    """The student that model= names, of another size where its width or depth is given."""
    model = arguments["model"]
    if scaling:
        model = scaled_yaml(str(model), **scaling, trust=trust)
    student = open_student(model, trust=trust)
    if (task := arguments.get("task") or student.task) != student.task:
        raise UsageError(f"task={task}: model={model} is for the task {student.task}, leave task= out.")
    return student


def _resumed(arguments: dict[str, Any], trust: bool) -> tuple[YOLO | RTDETR, dict[str, Any]]:
    """As `_begun`, of a run that goes on: its folder or last.pt is given as model= with resume=True or as resume=."""
    given = arguments.pop("resume")
    named = arguments.pop("model", None) if given is True else given
    folded = options.fold({**arguments, "resume": True})
    if not named:
        raise UsageError(f"resume={given} is not a file: give the interrupted run's folder or its weights/last.pt.")
    state = checkpoints.find(named, trust)
    student = open_student(state.file, "resume", trust)
    check_resumed(student, state, folded, trust)
    theirs = {k: v for k, v in folded.items() if k not in ("resume", "kd")}
    # the distillation's options as stored, of which a stripped checkpoint has none
    kd = {**state.arguments["kd"], **folded.get("kd", {})}
    return student, {"resume": str(state.file), "kd": kd, **theirs}


def check_resumed(student: YOLO | RTDETR, state: checkpoints.State, folded: dict[str, Any], trust: bool) -> None:
    """Refuse what `train` would refuse, of the interrupted run's arguments and of those given anew."""
    kd = options.resumed(state.arguments["kd"], folded.get("kd"))
    if kd is None:
        raise UsageError(f"resume={state.file} is not an interrupted run of yolokd: {checkpoints.GIVE_LAST}.")
    if state.place is None and not folded.get("save_dir"):
        raise UsageError(
            f"resume={state.file} does not lie in a run's folder weights/: give save_dir= for where it is to go on."
        )
    data = folded.get("data") or state.arguments.get("data")
    if "://" not in str(data) and os.path.isabs(str(data)) and not Path(str(data)).exists():
        raise UsageError(f"data={data} of the interrupted run is not there: give its new place, data=my.yaml.")
    no_matter = ("save_dir", "project", "pretrained", "resume")  # of a run whose folder and weights are there
    now = {**state.arguments, **{k: v for k, v in folded.items() if k not in ("resume", "kd")}, "kd": kd, "data": data}
    check_arguments({k: v for k, v in now.items() if k not in no_matter}, trust)
    preflight(student, now, trust)


# --- ended early ----------------------------------------------------------------------------------------------------


@contextmanager
def saying_how_to_go_on(student: YOLO | RTDETR) -> Iterator[None]:
    """Say in one sentence how a training goes on that was stopped, or could not be written."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(f"the training was stopped: {how_to_go_on(_last(student))}.", stop) from stop
    except (OSError, RuntimeError) as error:
        if (why := _unwritten(error)) is None:
            raise
        raise UsageError(f"the training cannot write its files ({why}): {how_to_go_on(_last(student))}.") from error


def _last(student: YOLO | RTDETR) -> Path | None:
    return getattr(getattr(student, "trainer", None), "last", None)


def _unwritten(error: Exception) -> str | None:
    """Why a file could not be written; None where the error is about something else."""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            return f"{cause.filename}: {cause.strerror}" if cause.filename else str(cause.strerror)
    if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):  # torch's own, which says no reason
        return "a checkpoint could not be written whole"
    return None
