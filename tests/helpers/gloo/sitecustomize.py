"""Two CPU processes in place of two GPUs: on PYTHONPATH, in every Python process that a test starts.

Ultralytics trains together on GPUs only. Here `device=0,1` means two CPU processes over gloo; the rest is
as on GPUs: launcher, generated file, process group, DistributedDataParallel, samplers, gathering, checkpoints.
At the end every process leaves what it learnt in the folder YOLOKD_TEST_RANKS.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType


def devices(module: ModuleType) -> None:
    """A device number is this machine's CPU."""
    import torch

    real = module.select_device

    def select_device(device="", *args, **kwargs):
        numbers = module.parse_device(device).replace(",", "").isdigit()
        return torch.device("cpu") if numbers else real(device, *args, **kwargs)

    module.select_device = select_device


def trainer(module: ModuleType) -> None:
    """Processes are counted as GPUs are, and meet over gloo."""
    import datetime

    import torch

    base = module.BaseTrainer
    init, train = base.__init__, base._do_train

    def counted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if "," in self.args.device:
            self.world_size = len(self.args.device.split(","))
            self.ddp = module.LOCAL_RANK == -1

    def meet(self):
        limit = datetime.timedelta(seconds=60)
        torch.distributed.init_process_group("gloo", timeout=limit, rank=module.RANK, world_size=self.world_size)

    def remembered(self):
        train(self)
        leave(self)

    class OnCPU(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, model, device_ids, **kwargs):  # which torch takes for GPUs only
            super().__init__(model, **kwargs)

    base.__init__, base._do_train, base._setup_ddp = counted, remembered, meet
    torch.nn.parallel.DistributedDataParallel = OnCPU


def validator(module: ModuleType) -> None:
    """A process validates where it trains, not on its current GPU."""
    from types import SimpleNamespace

    import torch

    real = module.AutoBackend
    module.get_torch_device_backend = lambda kind: SimpleNamespace(current_device=lambda: 0)
    module.AutoBackend = lambda **given: real(**{**given, "device": torch.device("cpu")})


def leave(trainer) -> None:
    """What one process has at the end of its training."""
    import torch

    if not (folder := os.environ.get("YOLOKD_TEST_RANKS")) or trainer.world_size < 2:
        return
    distiller = trainer.distiller
    torch.save(
        {
            "pid": os.getpid(),
            "student": {n: p.detach() for n, p in distiller.module.named_parameters()},
            "ranges": {n: b for n, b in distiller.module.named_buffers() if n.endswith("_amax")},
            "adapters": {n: p.detach() for n, p in distiller.methods.named_parameters()},
            "balance": distiller.balance.state_dict() if distiller.balance else {},
            "terms": {n: float(trainer.tloss.get(n, 0.0)) for n in distiller.gains},
            "images": distiller.images,
            "responses": [(cache.asked, cache.ran) for cache in distiller.caches],
            "folder": str(trainer.save_dir),
        },
        f"{folder}/{torch.distributed.get_rank()}.pt",
    )


CHANGES = {
    "ultralytics.utils.torch_utils": devices,
    "ultralytics.engine.trainer": trainer,
    "ultralytics.engine.validator": validator,
}


class Changed(Loader):
    def __init__(self, loader: Loader, change) -> None:
        self.loader, self.change = loader, change

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.change(module)


class Finder(MetaPathFinder):
    """Finds the modules of CHANGES as everybody does, and changes them once they are loaded."""

    def find_spec(self, name, path=None, target=None):
        if name not in CHANGES:
            return None
        change = CHANGES.pop(name)  # so that the search below comes not here
        spec = importlib.util.find_spec(name)
        spec.loader = Changed(spec.loader, change)
        return spec


sys.meta_path.insert(0, Finder())
