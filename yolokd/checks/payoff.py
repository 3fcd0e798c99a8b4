"""Will it pay: what the teacher scores on the validation images, beside what the student has already."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

from ultralytics import RTDETR, YOLO

from yolokd.data.findings import NOTE, Finding
from yolokd.detectors import read
from yolokd.detectors.opening import open_model
from yolokd.detectors.teachers import title
from yolokd.distill.applicability import Plan
from yolokd.distill.outlook import doubt_of
from yolokd.distill.teacher import round_up_to_stride
from yolokd.errors import one_line
from yolokd.init import transfer
from yolokd.studies.worker import counting

FEW = 100  # validation images, on fewer of which a lead may be chance
KEPT = ("imgsz", "batch", "device", "workers", "single_cls", "iou", "max_det", "classes")  # of a training's arguments


@dataclass(frozen=True, slots=True)
class Score:
    """What a model scores on the validation images, in points."""

    of: str  # "teacher" or "student"
    name: str
    map50: float | None  # None where it cannot be measured
    map50_95: float | None
    why: str = ""  # it cannot be measured
    seconds: float = 0.0


def scores(
    student: YOLO | RTDETR, start: Any, trainer: Any, plans: list[Plan], arguments: dict[str, Any]
) -> list[Score]:
    """The scores of the teachers and of the student before its first step.

    Args:
        student: as it was opened.
        start: its model as the trainer set it up, which this changes.
        trainer: that of `rehearsal`.
        plans: one for each teacher; their models are moved to the trainer's device.
        arguments: the training's, folded.
    """
    options = trainer.distillation
    how = {k: arguments[k] for k in KEPT if k in arguments}
    how |= {"data": str(trainer.args.data), "batch": trainer.batch_size, "imgsz": int(trainer.args.imgsz)}
    how |= {"device": trainer.args.device, "plots": False, "save_dir": str(trainer.save_dir / "val")}
    pairs = [(file, plan) for file, plan in zip(options.teacher, plans, strict=True) if not plan.follows]
    found = [
        teacher_score(file, plan, student.task, options, how, trainer.data.get("kpt_shape")) for file, plan in pairs
    ]
    found.append(student_score("as it is", student, start, how))
    if not pairs:
        return found
    teacher = plans[0].teacher
    teacher.model.to(trainer.device)
    side = round_up_to_stride(how["imgsz"], max(teacher.strides))
    if "head" in transfer.candidates("auto", read(start), teacher):
        images = trainer._some_images(side)
        if transfer.fit_head(read(start), teacher, images, plans[0].classes):
            found.append(student_score("with its head fitted to the teacher", student, start, how))
    return found


def teacher_score(file: str, plan: Plan, task: str, options: Any, how: dict[str, Any], keypoints: Any = None) -> Score:
    """What a teacher scores; its classes count as those of the data that they stand for, which has these keypoints."""
    name = title(file)
    if not file.endswith((".pt", ".onnx")):
        return Score("teacher", name, None, None, "it has no detections")
    if options.teacher_contract or options.teacher_names:
        return Score("teacher", name, None, None, "Ultralytics cannot validate a foreign ONNX file")
    try:
        teacher = YOLO(file, task=task) if file.endswith(".onnx") else open_model(file, "teacher", options.trust)
        if teacher.task != task:
            return Score("teacher", name, None, None, f"it is for the task {teacher.task}, and the labels for {task}")
        if options.teacher_imgsz:
            how = {**how, "imgsz": round_up_to_stride(options.teacher_imgsz, max(plan.teacher.strides))}
        classes = None if how.get("single_cls") else plan.classes
        return validated("teacher", name, teacher, counting(teacher, classes, keypoints), how)
    except Exception as error:  # of an ONNX file, a dozen types
        if not file.endswith(".onnx"):
            raise
        return Score("teacher", name, None, None, f"Ultralytics cannot validate it ({one_line(error)})")


def student_score(name: str, student: YOLO | RTDETR, model: Any, how: dict[str, Any]) -> Score:
    """What a state of the student scores; validating fuses a model, so it is given a copy."""
    opened = copy.copy(student)
    opened.model = copy.deepcopy(model).eval()
    return validated("student", name, opened, student._smart_load("validator"), how)


def validated(of: str, name: str, model: Any, kind: Any, how: dict[str, Any]) -> Score:
    """The score that Ultralytics' validator finds."""
    start = time.perf_counter()
    figures = model.val(kind, **how).results_dict
    map50, map50_95 = (100 * float(figures[f"metrics/{figure}(B)"]) for figure in ("mAP50", "mAP50-95"))
    return Score(of, name, map50, map50_95, seconds=time.perf_counter() - start)


def judge(found: list[Score], images: int, total: int) -> list[Finding]:
    """Whether the teacher's lead is large enough.

    Args:
        found: all scores.
        images: validation images that they were measured on.
        total: validation images that there are.
    """
    on = f"measured on {images} of {total} validation images"
    known: dict[str, list[float]] = {"teacher": [], "student": []}
    for score in found:
        if score.map50 is not None:
            known[score.of].append(score.map50)
    if not any(score.of == "teacher" for score in found):
        return []  # the student's own average, of which nobody expects a lead
    if not known["teacher"]:
        reasons = "; ".join(f"{s.name}: {s.why}" for s in found if s.why)
        return [Finding(NOTE, f"whether the teacher is better than the student is not known ({reasons}).")]
    best, own = max(known["teacher"]), max(known["student"], default=0.0)
    if doubt := doubt_of(best, own):
        return [doubt]
    if images < FEW:
        more = f": images={FEW} or more are surer" if total > images else ""
        return [Finding(NOTE, f"the teacher's lead of {best - own:.1f} points is rough, {on}{more}.")]
    return []
