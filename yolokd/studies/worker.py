"""One run of a study, in a process of its own: reads run.json, trains or validates, writes result.json."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from yolokd.detectors.class_map import ClassMap, match_classes
from yolokd.distill.parent import end_with_parent
from yolokd.errors import UsageError
from yolokd.studies.step_meter import StepMeter

SPEC, RESULT = "run.json", "result.json"
PREDECESSOR = 10  # seconds to wait for it
PARENT = "YOLOKD_STUDY"  # the environment's word for the study's process


def main() -> None:
    """Arguments: the run's folder, the number of CPU threads, and the device, empty for the run's own choice."""
    end_with_parent(os.environ.get(PARENT))
    from filelock import FileLock, Timeout

    folder, threads, device = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    arguments = {**spec["arguments"], **({"device": device} if device else {})}
    try:  # the parent may have been killed while this run's predecessor lives on, which then ends itself
        with FileLock(folder / ".lock", timeout=PREDECESSOR):
            if read_json(folder / RESULT) is not None:  # by whom the lock was held
                return
            work = train if spec["kind"] == "train" else validate
            write_json(folder / RESULT, {**work(folder, arguments, threads), "versions": _versions()})
    except Timeout:
        sys.exit("another process is still at this run")


def train(folder: Path, arguments: dict[str, Any], threads: int) -> dict[str, Any]:
    """Train, going on from the last epoch of an interrupted run; accuracy is that of the best epoch, as
    upstream's, or of the last one with val=False, which validates no other."""
    from yolokd.detectors.opening import open_student
    from yolokd.distill.pruned import plain_trainer
    from yolokd.distill.trainer import trainer_for

    target = folder / "train"
    arguments = dict(arguments)
    trust = bool(arguments.get("trust"))
    if "teacher" not in arguments:
        arguments.pop("trust", None)  # Ultralytics' own training does not know the word
    last = begun(target, trust) if "teacher" in arguments else interrupted(target, trust)
    if last is None and target.exists():
        shutil.rmtree(target)  # this run's own leftovers, of no use
    student = open_student(last or arguments["model"], trust=trust)
    meter = StepMeter()
    meter.attach(student)
    student.add_callback("on_train_start", lambda trainer: _set_threads(threads))  # Ultralytics sets its own before
    taught = "teacher" in arguments
    trainer = trainer_for(student.model) if taught else plain_trainer(student.model)
    if last is not None:
        student.train(
            trainer=trainer,
            # by its path Ultralytics takes a run with no epoch left too, which only our trainer can finish
            resume=str(last) if taught else True,
            save_dir=str(target),
            **({"device": arguments["device"]} if arguments.get("device") else {}),
            **({"trust": True} if trust and taught else {}),
        )
    else:
        given = {k: v for k, v in arguments.items() if k != "model"}
        student.train(trainer=trainer, **given, save_dir=str(target))
    with (target / "results.csv").open(encoding="utf-8") as file:
        rows = [{k.strip(): float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return {
        **_accuracy(student.trainer.metrics),
        "map50_last": rows[-1]["metrics/mAP50(B)"],
        "map50_95_last": rows[-1]["metrics/mAP50-95(B)"],
        "epochs": len(rows),
        "fitness": None if (best := student.trainer.best_fitness) is None else float(best),
        "wall_s": None if last else rows[-1]["time"],  # epochs with their validations; unknown for an interrupted run
        **meter.result(),
        "resumed": last is not None,
        "checkpoint": str(student.trainer.best),
    }


def validate(folder: Path, arguments: dict[str, Any], threads: int) -> dict[str, Any]:
    """The teacher's accuracy on the same images, its classes taken by name for those of the data."""
    from ultralytics import YOLO
    from ultralytics.data.utils import check_det_dataset

    from yolokd.data.splits import checked_data
    from yolokd.detectors.opening import open_model

    trust, file = bool(arguments.get("trust")), arguments["model"]
    teacher = YOLO(file) if file.endswith(".onnx") else open_model(file, "teacher", trust)
    teacher.add_callback("on_val_start", lambda validator: _set_threads(threads))
    given = {k: v for k, v in arguments.items() if k not in ("model", "class_map", "trust")}
    data = checked_data(arguments["data"], given.get("split"), trust=trust)
    known = check_det_dataset(str(data))
    asked = arguments.get("class_map")
    classes = None if arguments.get("single_cls") else match_classes(known["names"], teacher.names, asked)
    validator = counting(teacher, classes, known.get("kpt_shape"))
    metrics = teacher.val(validator, **given, plots=False, save_dir=str(folder / "val"))
    return _accuracy(metrics.results_dict)


def counting(teacher: Any, classes: ClassMap | None, keypoints: Any) -> type:
    """Ultralytics' validator for a teacher, whose detections count as of the data's classes; one with other keypoints
    than the data's is scored by its boxes alone.

    Args:
        teacher: a YOLO or RTDETR.
        classes: what its classes are in the data, None where they are the same.
        keypoints: the data's number of them and of their values, None where it has none.
    """
    validator: type = teacher._smart_load("validator")
    model: Any = teacher.model  # of an ONNX teacher a path
    own = None if isinstance(model, (str, Path)) else getattr(model.model[-1], "kpt_shape", None)
    if own is not None and keypoints is not None and list(own) != list(keypoints):
        validator = by_boxes(validator)
    return validator if classes is None else renamed(validator, classes, len(teacher.names))


def by_boxes(validator: type) -> type:
    """A validator of Ultralytics for keypoints that counts boxes alone, for a teacher with others than the data has."""
    from ultralytics.models.yolo.detect import DetectionValidator

    class ByBoxes(validator):
        def postprocess(self, preds: Any) -> list[dict[str, Any]]:
            images: list[dict[str, Any]] = DetectionValidator.postprocess(self, preds)
            for image in images:
                image["keypoints"] = image.pop("extra").new_zeros(len(image["cls"]), *self.kpt_shape)
            return images

    return ByBoxes


def renamed(validator: type, classes: ClassMap, count: int) -> type:
    """A validator of Ultralytics that counts detections of a teacher with so many classes as of the data's classes;
    those of classes that the data lacks are left out.
    """
    table = torch.full((count,), -1)
    for own, group in zip(classes.student, classes.teacher, strict=True):
        table[group] = own

    class Renamed(validator):
        def postprocess(self, preds: Any) -> list[dict[str, Any]]:
            images = super().postprocess(preds)
            known = [table.to(image["cls"].device)[image["cls"].long()] for image in images]
            return [
                {**{k: v[cls >= 0] for k, v in image.items()}, "cls": cls[cls >= 0].to(image["cls"].dtype)}
                for image, cls in zip(images, known, strict=True)
            ]

    return Renamed


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a file that is either whole or not there."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(part, file)


def read_json(file: Path) -> dict[str, Any] | None:
    """What `write_json` wrote, or None."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or cut short by a full disk: the run is repeated
        return None
    return content if isinstance(content, dict) else None


def _accuracy(metrics: dict[str, float]) -> dict[str, float]:
    return {"map50": float(metrics["metrics/mAP50(B)"]), "map50_95": float(metrics["metrics/mAP50-95(B)"])}


def begun(target: Path, trust: bool) -> Path | None:
    """The checkpoint from which a run of our trainer can go on or be finished, if there is one."""
    from yolokd.distill.checkpoints import NothingLeftError, find

    try:
        return find(target, trust).file if target.is_dir() else None
    except NothingLeftError:
        return None


def interrupted(target: Path, trust: bool = False) -> Path | None:
    """The checkpoint from which an interrupted training of Ultralytics' own can go on, if there is one."""
    last = target / "weights" / "last.pt"
    if not last.is_file():
        return None
    from yolokd.detectors.opening import read_content

    try:
        checkpoint = read_content(last, "resume", trust)
    except UsageError:  # not cut short, and not to be lost
        raise
    except Exception:  # cut short while it was written, which ends in any of a dozen types: begin again
        return None
    # of the last epoch nothing is left to train, and what comes after it cannot be asked for by itself: begin again
    unfinished = 0 <= checkpoint.get("epoch", -1) < checkpoint.get("train_args", {}).get("epochs", 0) - 1
    return last if checkpoint.get("optimizer") is not None and unfinished else None


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)


def _versions() -> dict[str, str]:
    import ultralytics

    from yolokd import __version__

    return {"yolokd": __version__, "ultralytics": ultralytics.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    main()
