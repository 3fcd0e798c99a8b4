"""Ultralytics' tuner with trainings of ours.

Its search, its folder and its files are used as they are. Its trainings are commands `yolo train ...`, which know no
argument of ours: so each iteration is a process of a study instead, which trains, goes on after an interruption, and
leaves its log.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import ultralytics
from ultralytics.cfg import CFG_INT_KEYS
from ultralytics.engine.tuner import Tuner
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, YAML
from ultralytics.utils.plotting import plot_tune_results

from yolokd import compat
from yolokd.config.parse import is_number
from yolokd.detectors.opening import open_student
from yolokd.distill.trainer import KDMixin, trainer_for
from yolokd.errors import Interrupted, UsageError
from yolokd.studies.arms import Arm
from yolokd.studies.plan import Job, preflight_arm
from yolokd.studies.processes import end_all, start_run, usable_cores
from yolokd.studies.worker import SPEC, read_json

NOT_FOR_TUNING = {
    "save": "an iteration needs its checkpoint",
    "save_dir": "the folder is project= and name=",
    "exist_ok": "resume=True goes on in the same folder",
    "cfg": "give its arguments",
}
BEST = "best_hyperparameters.yaml"


def tune(
    iterations: int = 10, space: Mapping[str, Any] | None = None, resume: bool = False, **arguments: Any
) -> dict[str, Any]:
    """Search for better hyperparameters of a distilled training.

    Args:
        iterations: trainings; the first has the values given, or Ultralytics' defaults.
        space: hyperparameter -> (lowest, highest), also `kd` and a method's dotted options; by default Ultralytics' own
            search space.
        resume: True: go on in the folder that `project` and `name` say.
        **arguments: `model`, `teacher`, `data`, and whatever else `yolokd train` takes.

    Returns:
        {"folder", "hyperparameters", "fitness"}: of the best iteration, which best_hyperparameters.yaml holds too.

    Raises:
        UsageError: something asked for cannot be done, nothing was written; or no iteration could train.
    """
    check_iterations(iterations)
    for key, why in NOT_FOR_TUNING.items():
        if key in arguments:
            raise UsageError(f"{key}={arguments[key]} is not for tuning: {why}.")
    place: dict[str, Any] = {key: arguments.pop(key) for key in ("project", "name") if key in arguments}
    arguments.setdefault("optimizer", "AdamW")  # as Ultralytics does: with auto it would choose lr0 itself
    if not arguments.get("teacher"):
        raise UsageError("no teacher: give the trained big model, teacher=big.pt.")
    searched = check_space(space)
    try:
        arm = preflight_arm(Arm("tune", {**arguments, **start(searched, arguments)}))
    except UsageError as error:
        raise UsageError(str(error).removeprefix("arm tune: ")) from error
    student = open_student(arm.arguments["model"], trust=bool(arguments.get("trust")))
    theirs = {k: v for k, v in arm.arguments.items() if k in DEFAULT_CFG_DICT and k not in ("classes", "cache")}
    given: dict[str, Any] = {**theirs, **place, "task": student.task, "mode": "train", "resume": resume}
    given |= {"space": searched} if searched else {}
    tuner = KDTuner(given, student.model, arm.arguments)
    return tuner(iterations)


def check_iterations(iterations: Any) -> None:
    """Refuse what is no number of trainings."""
    if type(iterations) is not int or iterations < 1:
        raise UsageError(f"iterations={iterations} is not a whole number of 1 or more.")


def check_space(space: Mapping[str, Any] | None) -> dict[str, tuple[float, ...]] | None:
    """The ranges, which must be some."""
    for key, bounds in (space or {}).items():
        numbers = isinstance(bounds, (list, tuple)) and len(bounds) in (2, 3) and all(map(is_number, bounds))
        if not numbers or bounds[0] > bounds[1]:
            raise UsageError(f"space has {key}: {bounds}; write the lowest and the highest value, such as (0.5, 2.0).")
    return {str(key): tuple(bounds) for key, bounds in space.items()} if space else None


def start(space: Mapping[str, tuple[float, ...]] | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the searched options of ours that are not given: 1 for kd=, else the middle of the range."""
    ours = {k: v for k, v in (space or {}).items() if k not in DEFAULT_CFG_DICT and k not in arguments}
    return {k: 1.0 if k == "kd" else (low + high) / 2 for k, (low, high, *_) in ours.items()}


class KDTuner(Tuner):
    """Ultralytics' tuner, whose iterations are distilled trainings.

    Args:
        args: of Ultralytics' tuner.
        model: the student's network.
        arguments: of the trainings, ours among them.
    """

    def __init__(self, args: dict[str, Any], model: Any, arguments: dict[str, Any]) -> None:
        super().__init__(args, **compat.known(Tuner.__init__, model=model))
        self.arguments = arguments
        for key in self.space:  # the first iteration's are read here
            if key in arguments:
                setattr(self.args, key, arguments[key])

    def __call__(self, iterations: int = 10, cleanup: bool = True) -> dict[str, Any]:
        """Run what is missing of the iterations; of all but the best the weights are removed."""
        (self.tune_dir / "weights").mkdir(parents=True, exist_ok=True)
        for i in range(len(self._load_local_results()), iterations):
            folder = self.tune_dir / "iterations" / str(i + 1)
            begun = (read_json(folder / SPEC) or {}).get("hyperparameters")  # of one that was cut short
            hyperparameters = begun or {k: v.item() if hasattr(v, "item") else v for k, v in self._mutate().items()}
            LOGGER.info(f"{self.prefix}Iteration {i + 1}/{iterations}: {hyperparameters}, log in {folder / 'log.txt'}")
            metrics = self.train(folder, hyperparameters)
            fitness = metrics.get("fitness", 0.0)
            record = self._result_record(i + 1, fitness, hyperparameters, {"data": metrics}, {"data": str(folder)})
            self._save_local_result(record)
            LOGGER.info(
                f"{self.prefix}Iteration {i + 1}/{iterations}: " + (f"fitness {fitness:.5f}" if metrics else "failed")
            )
            self.keep_best(cleanup)
        return self.best()

    def train(self, folder: Path, hyperparameters: dict[str, Any]) -> dict[str, float]:
        """The figures of one training, {} if it failed."""
        spec = {"kind": "train", "arguments": {**self.arguments, **hyperparameters}, "hyperparameters": hyperparameters}
        job = Job(folder.name, folder, spec)
        process = start_run(job, usable_cores())
        try:
            process.wait()
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"tuning was stopped: the same call with name={self.tune_dir.name} and resume=True goes on.", stop
            ) from stop
        finally:
            end_all([process])
        found = job.result() or {}
        if process.returncode or not found:
            return {}
        figures = {"metrics/mAP50(B)": found["map50"], "metrics/mAP50-95(B)": found["map50_95"]}
        return {**figures, "fitness": found.get("fitness") or found["map50_95"]}

    def keep_best(self, cleanup: bool) -> None:
        """Copy the best iteration's weights, and note its hyperparameters as Ultralytics does."""
        best = self.best_record()
        for record in self._load_local_results():
            run = Path(record["save_dirs"]["data"]) / "train"
            if record == best:
                for file in (run / "weights").glob("*.pt"):
                    shutil.copy2(file, self.tune_dir / "weights")
            elif cleanup:
                shutil.rmtree(run, ignore_errors=True)
        if best is not None:
            values = {k: int(v) if k in CFG_INT_KEYS else float(v) for k, v in best["hyperparameters"].items()}
            header = f"# Iteration {best['iteration']}, fitness {best['fitness']}\n"
            YAML.save(self.tune_dir / BEST, data=values, header=header)

    def best_record(self) -> dict[str, Any] | None:
        """Of the iteration with the highest fitness, None if all failed."""
        records = self._load_local_results()
        fitness = np.array([record["fitness"] for record in records])
        best: dict[str, Any] = records[self._best_result_index(records, fitness)]
        return best if self._has_training_metrics(best) else None

    def best(self) -> dict[str, Any]:
        """What `tune` returns."""
        best = self.best_record()
        if best is None:
            raise UsageError(f"no iteration could train: {self.tune_dir / 'iterations' / '1' / 'log.txt'} says why.")
        plot_tune_results(str(self.tune_file))
        LOGGER.info(f"{self.prefix}Best: iteration {best['iteration']}, {self.tune_dir / BEST}")
        return {"folder": str(self.tune_dir), "hyperparameters": best["hyperparameters"], "fitness": best["fitness"]}


class YOLO(ultralytics.YOLO):
    """Ultralytics' own, whose `tune` takes a trainer of ours with its arguments."""

    def tune(self, use_ray: bool = False, iterations: int = 10, *args: Any, **arguments: Any) -> Any:
        """As upstream, and with `trainer=yolokd.KDTrainer` as `yolokd.tune`."""
        trainer = arguments.pop("trainer", None)
        if trainer is None:
            return super().tune(use_ray, iterations, *args, **arguments)
        if not (isinstance(trainer, type) and issubclass(trainer, KDMixin)):
            raise UsageError(f"trainer={trainer} is not one of yolokd's: give trainer=yolokd.KDTrainer.")
        if args:
            raise UsageError(f"tune() was given {args[0]!r} without a name: give what follows iterations by name.")
        if trainer is not (fitting := trainer_for(self.model)):
            raise UsageError(
                f"trainer={trainer.__name__} does not fit the model: give trainer=yolokd.{fitting.__name__}."
            )
        arguments["model"] = str(self.ckpt_path or self.overrides["model"])
        return tune_by_ray(iterations, **arguments) if use_ray else tune(iterations, **arguments)


class RayStudent(ultralytics.YOLO):
    """A student whose trainings are distilled, which is what Ultralytics' Ray tuner asks of a model.

    Args:
        model: the student's file.
        ours: arguments of every training that Ultralytics does not know.
    """

    def __init__(self, model: str, ours: dict[str, Any]) -> None:
        super().__init__(model)
        self.ours = ours

    def train(self, *args: Any, **config: Any) -> Any:
        """As upstream, by the trainer that fits."""
        return super().train(trainer_for(self.model), **{**self.ours, **config})


def tune_by_ray(iterations: int, **arguments: Any) -> Any:
    """Ultralytics' search by Ray Tune, over distilled trainings: several at a time, on one or more machines.

    Args:
        iterations: trainings.
        **arguments: as for `tune`, but `space` has Ray's own ranges, such as `ray.tune.uniform(0.5, 2)`; and
            `grace_period`, `gpu_per_trial`, `search_alg` as Ultralytics has them.

    Returns:
        Ray's ResultGrid.

    Raises:
        UsageError: Ray is not installed, or something asked for cannot be done; nothing was written.
    """
    check_iterations(iterations)
    if not find_spec("ray"):
        raise UsageError("use_ray=True needs Ray: pip install 'yolokd[ray]'.")
    import ultralytics.utils.tuner as theirs

    known = signature(theirs.run_ray_tune).parameters.keys() - {"model"}
    of_ray = {k: v for k, v in arguments.items() if k in known}
    kept: dict[str, Any] = {k: arguments[k] for k in ("project", "name", "resume") if k in arguments}
    mine = {k: v for k, v in arguments.items() if k not in (*of_ray, *kept)}
    mine.setdefault("optimizer", "AdamW")  # as in `tune`
    if not mine.get("teacher"):
        raise UsageError("no teacher: give the trained big model, teacher=big.pt.")
    unknown = [k for k in of_ray.get("space") or {} if k not in DEFAULT_CFG_DICT]
    try:
        # a trial begins in a folder of its own, so files have absolute paths
        arm = preflight_arm(Arm("tune", {**mine, **{k: 1.0 for k in unknown}})).arguments
    except UsageError as error:
        raise UsageError(str(error).removeprefix("arm tune: ")) from error
    arm = {k: v for k, v in arm.items() if k not in unknown}
    ours = {k: arm.pop(k) for k in list(arm) if k not in DEFAULT_CFG_DICT or k in ("classes", "cache")}
    student = RayStudent(arm.pop("model"), ours)
    given: dict[str, Any] = {**of_ray, **arm, **kept}
    return ultralytics.YOLO.tune(student, True, iterations, **given)
