"""The report for the loggers that Ultralytics' own callbacks have open: TensorBoard, MLflow and Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from yolokd.errors import one_line, printable
from yolokd.reports.explain import explained

CALLBACKS = "ultralytics.utils.callbacks."


def hand_over(trainer: Any, report: Path, trust: bool = False) -> None:
    """Give a training's report to each logger that logs this training; a logger's failure is a warning.

    Args:
        trainer: Ultralytics', whose training has ended and whose loggers are still open.
        report: the HTML file.
        trust: open checkpoints that may run code.
    """
    for name, log in LOGGERS.items():
        module = sys.modules.get(CALLBACKS + name)  # imported where the user's settings switch it on
        try:
            if module is not None:
                log(module, trainer, report, trust)
        except Exception as error:  # a server that is not there, a full disk ...: each has its own type
            LOGGER.warning(printable(f"The report did not reach {name} ({one_line(error)}): it is in {report}."))


def tensorboard(module: Any, _: Any, report: Path, trust: bool) -> None:
    """Only text and pictures can be shown there: the report's paragraph."""
    if module.WRITER:
        module.WRITER.add_text("report", f"{explained(report.parent, trust)}\n\n{report}")


def mlflow(module: Any, trainer: Any, report: Path, _: bool) -> None:
    """An artifact of the run."""
    if getattr(trainer, "_mlflow_active", False):
        module.mlflow.log_artifact(str(report))


def wandb(module: Any, _: Any, report: Path, __: bool) -> None:
    """A panel with the page."""
    if module.wb is not None and module.wb.run:
        module.wb.run.log({"report": module.wb.Html(report.read_text(encoding="utf-8"))}, commit=False)


LOGGERS: dict[str, Callable[[Any, Any, Path, bool], None]] = {"tensorboard": tensorboard, "mlflow": mlflow, "wb": wandb}
