"""What keeps a run from being lost: whole checkpoints at every moment, and an end that can be made up for.

A run's last.pt has its optimizer until everything else is done, the final evaluation and the origin in best.pt
included. So a run that was killed at whatever moment is either finished or can be gone on with from last.pt.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER, RANK

from yolokd.distill.checkpoints import STAGE, WEIGHTS, cut_table, is_over, move
from yolokd.distill.together import TogetherMixin
from yolokd.errors import printable


class SavingMixin(TogetherMixin):
    """A trainer of Ultralytics whose run can be gone on with, whenever it was ended."""

    best: Path
    csv: Path
    tloss: Any
    lr: dict[str, float]
    ended: dict[str, Any] | None = None  # the checkpoint of a resumed run with no epoch left to train

    @contextmanager
    def _staged(self) -> Iterator[None]:
        """Checkpoints are written into a folder of their own within, then moved over: last.pt in the end."""
        real = self.wdir, self.last, self.best
        stage = self.wdir / STAGE
        if RANK in {-1, 0}:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
        self.wdir, self.last, self.best = stage, stage / real[1].name, stage / real[2].name
        try:
            yield
            if RANK in {-1, 0}:
                for file in sorted(stage.glob("*.pt"), key=lambda file: file.name == real[1].name):
                    move(file, real[0] / file.name)
        finally:
            self.wdir, self.last, self.best = real
            if RANK in {-1, 0}:
                shutil.rmtree(stage, ignore_errors=True)

    def save_model(self) -> Any:
        """As upstream, whose files may be left half written."""
        with self._staged():
            return super().save_model()

    def final_eval(self) -> None:
        """As upstream on copies, which take their originals' places when nothing is left to do."""
        real = self.last, self.best
        with self._staged():
            if RANK in {-1, 0}:
                for file, copy in zip(real, (self.last, self.best), strict=True):
                    if file.exists():
                        shutil.copy(file, copy)
                if self.best.exists() and self.last.exists() and not _is_readable(self.best):
                    LOGGER.warning(printable(f"{real[1]} cannot be read: the last epoch's model takes its place."))
                    shutil.copy(self.last, self.best)
            self.wait_for_others()
            super().final_eval()
            if RANK in {-1, 0}:
                self.sign_checkpoints()
            self.wait_for_others()

    def sign_checkpoints(self) -> None:
        """What is to be written into the finished checkpoints."""

    # --- going on ----------------------------------------------------------------------------------------------------

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """As upstream; the run goes on in the folder that holds its checkpoint, wherever that was when it began."""
        super().check_resume(overrides)
        if not self.resume:
            return
        file = Path(os.path.abspath(self.args.resume))
        if not overrides.get("save_dir") and file.parent.name == WEIGHTS:
            began = getattr(self.args, "save_dir", None)
            self.args.save_dir = str(file.parent.parent)
            if began and RANK in {-1, 0} and Path(began) != Path(self.args.save_dir).resolve():
                LOGGER.info(printable(f"The run began in {began} and goes on in {self.args.save_dir}"))
        _, checkpoint = load_checkpoint(file)
        args = self.args
        if is_over(checkpoint, args.epochs, args.patience, bool(args.time)):
            self.ended = checkpoint

    def resume_training(self, ckpt: Any) -> None:
        """As upstream; the table loses the rows of epochs that are trained again."""
        if self.ended is None:
            super().resume_training(ckpt)
        if self.resume and RANK in {-1, 0}:
            cut_table(self.csv, self.start_epoch if self.ended is None else self._epochs_done())

    def _epochs_done(self) -> int:
        done = int((self.ended or {}).get("epoch", -1)) + 1
        return done or int(self.args.epochs)  # of a checkpoint that is stripped already

    def _do_train(self) -> None:
        """As upstream; of a run with no epoch left, what comes after the last one."""
        if self.ended is None:
            super()._do_train()
            return
        if self.world_size > 1:
            self._setup_ddp()
        self._setup_train()
        said = f"All epochs of {self.args.resume} are trained: what is left is the final evaluation"
        LOGGER.info(printable(said))
        self.epoch, self.tloss, self.lr = self._epochs_done() - 1, {}, {}
        self.epoch_time, self.epoch_time_start = None, time.time()
        self.train_time_start = self.epoch_time_start
        metrics = {k: v for k, v in (self.ended.get("train_metrics") or {}).items() if k != "fitness"}
        if RANK in {-1, 0}:
            self.metrics.update(metrics)
        self.run_callbacks("on_train_start")
        self.final_eval()
        if RANK in {-1, 0}:
            if self.args.plots:
                self.plot_metrics()
            self.run_callbacks("on_train_end")
        self._clear_memory()
        for loader in (self.train_loader, self.test_loader):
            if hasattr(loader, "close"):
                loader.close()


def _is_readable(file: Path) -> bool:
    with suppress(Exception):
        load_checkpoint(file)
        return True
    return False
