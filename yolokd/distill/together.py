"""Processes that train together, one per GPU, on one machine or several: how they start, share a folder, and end.

Ultralytics starts them with `device=0,1` and waits; stopped, it leaves them behind, and of a failed one it knows only
that it failed. Here the launcher ends its processes with itself, and hears from the first that fails why it does.
With `torchrun ... yolokd train` there is no launcher of ours: every process is a `yolokd` of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import distributed
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK, USER_CONFIG_DIR
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_command
from ultralytics.utils.torch_utils import unset_deterministic

from yolokd.config.checks import check_devices, own_devices
from yolokd.distill.checkpoints import how_to_go_on
from yolokd.distill.parent import end_with_parent
from yolokd.errors import Interrupted, UsageError

REPORT = "YOLOKD_REPORT"  # the environment's word for the file in which the first failure of a process is told
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
LOST = "another process of the training has failed or was killed, and its own message says why if it left one"


class TogetherMixin(BaseTrainer):
    """A trainer of Ultralytics for one of several processes, or for the one that starts them."""

    args: Any
    device: Any
    world_size: int
    ddp: bool
    save_dir: Path
    wdir: Path
    last: Path

    def __init__(self, cfg: Any, overrides: dict[str, Any], _callbacks: Any = None) -> None:
        overrides = {**overrides, **own_devices(overrides)}
        if RANK > 0 and not overrides.get("resume"):
            # the first process names the folder; what has this name meanwhile may be an earlier run's
            overrides["save_dir"] = str(Path(tempfile.gettempdir()) / f"yolokd-{os.getpid()}")
        if RANK != -1 and "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent(str(os.getppid()))
        super().__init__(cfg, overrides, _callbacks)
        if LOCAL_RANK != -1:  # possibly over several nodes, where Ultralytics counts local devices only
            self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        if self.ddp or LOCAL_RANK != -1:
            check_devices({"device": self.args.device, "batch": self.args.batch})

    def train(self) -> None:
        """As upstream; a launcher ends its processes with itself, and says why they failed."""
        if self.ddp:
            launch(self)
            return
        with telling_the_launcher(self.last):
            super().train()

    def _setup_ddp(self) -> None:
        """As upstream; every process then has the first one's folder."""
        super()._setup_ddp()
        shared = [str(self.save_dir)]
        distributed.broadcast_object_list(shared, 0)
        self.save_dir = Path(shared[0])
        self.args.save_dir, self.args.name = shared[0], self.save_dir.name
        self.wdir, self.csv = self.save_dir / "weights", self.save_dir / "results.csv"
        self.last, self.best = self.wdir / "last.pt", self.wdir / "best.pt"
        seen = torch.tensor(int(self.wdir.is_dir()), device=self.device)
        distributed.all_reduce(seen, distributed.ReduceOp.MIN)
        if not seen.item():
            raise UsageError(
                f"save_dir={self.save_dir} of the first node is not there on every node: nodes that train together "
                "read its checkpoints, so give project= on a disk that they share."
            )

    def wait_for_others(self) -> None:
        """Go on when every process is here."""
        if self.world_size > 1:
            distributed.barrier()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Of the processes on one machine one after the other: the first one downloads, the others find it there."""
    if LOCAL_RANK == -1:
        yield
        return
    folder = Path(USER_CONFIG_DIR) / "yolokd"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"together-{os.environ.get('MASTER_PORT')}.lock"):
        yield


def is_loss_of_another(error: BaseException) -> bool:
    """Whether a process could not exchange something because another one is gone."""
    theirs = getattr(distributed, "DistError", ())  # which not every build of torch has
    return isinstance(error, theirs) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


# --- the launcher and its processes ---------------------------------------------------------------------------------


def launch(trainer: Any) -> None:
    """Start the processes as upstream does, with the launcher that torchrun is; whatever happens, none is left."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    if trainer.args.rect:
        LOGGER.warning("'rect=True' is incompatible with Multi-GPU training, setting 'rect=False'")
        trainer.args.rect = False
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        command, file = generate_ddp_command(trainer)
        try:
            given = parse_args(command[command.index("-m") + 2 :])
            given.log_dir = place
            with environment({REPORT: str(report)}):
                config, program, words = config_from_args(given)
                elastic_launch(config, program)(*words)
        except SignalException as stop:
            raise Interrupted(code=128 + stop.sigval) from None
        except ChildFailedError:
            raise failure(report, trainer.last) from None
        finally:
            ddp_cleanup(trainer, str(file))
            unset_deterministic()
            restore(before)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def restore(handlers: dict[Any, Any]) -> None:
    """Give the signals their handlers back, which the launcher had taken."""
    for number, handler in handlers.items():
        with suppress(ValueError, TypeError):  # not the main thread, which handles none; a handler that is not Python's
            signal.signal(number, handler)


@contextmanager
def telling_the_launcher(last: Path) -> Iterator[None]:
    """What ends a process becomes a sentence; one that a launcher of ours started leaves it the sentence."""
    file = os.environ.get(REPORT) if RANK != -1 else None
    try:
        yield
    except KeyboardInterrupt as stop:
        if file:
            sys.exit(getattr(stop, "code", 130))
        raise
    except Exception as given:
        error = UsageError(f"{LOST}: {how_to_go_on(last)}.") if is_loss_of_another(given) else given
        if file:
            tell(Path(file), error)
        if file and isinstance(error, UsageError):
            sys.exit(error.code)
        raise error from given.__cause__ if error is given else given


def tell(file: Path, error: Exception) -> None:
    """Write down why this process ends, unless another one was first."""
    code = getattr(error, "code", None)
    with suppress(FileExistsError), file.open("x", encoding="utf-8") as out:
        json.dump({"type": type(error).__name__, "message": str(error), "code": code, "rank": RANK}, out)


def failure(report: Path, last: Path) -> Exception:
    """The error of the process that failed first, for the launcher to raise."""
    try:
        told = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # killed, so that it could tell nothing
        return UsageError(f"a process of the training was killed: {how_to_go_on(last)}.")
    if told["code"] == UsageError.code:
        return UsageError(told["message"])
    return RuntimeError(f"process {told['rank']} of the training: {told['type']}: {told['message']} (traceback above)")
