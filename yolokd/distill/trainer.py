"""The trainer: Ultralytics' own, with the student wrapped at the one moment between device and optimizer.

Nothing of Ultralytics is patched. What the overrides rely on is listed in compat.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.cfg import cfg2dict
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.nn.modules.head import OBB, Pose, RTDETRDecoder, Segment
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK, IterableSimpleNamespace
from ultralytics.utils.torch_utils import unwrap_model

from yolokd.config import options
from yolokd.config.options import DistillOptions
from yolokd.data.fixed_views import SAMPLE, FixedViewsDataset, RoundRobinSampler, fingerprint, versions
from yolokd.data.splits import checked_data, describe_labels
from yolokd.data.unlabeled import Images, Steps, Unlabeled, list_folder
from yolokd.detectors import read
from yolokd.detectors.opening import check_checkpoint, refuse_non_finite
from yolokd.detectors.teachers import digest
from yolokd.distill import finite, response_cache
from yolokd.distill.applicability import Plan, plans, rounded_imgsz
from yolokd.distill.distiller import Distiller
from yolokd.distill.fading import KEY, Fading, FadingMixin
from yolokd.distill.gradient_balance import Balance
from yolokd.distill.moving_average import FollowingMixin
from yolokd.distill.pairing import Pairing
from yolokd.distill.provenance import sign, trained
from yolokd.distill.pruned import PrunedMixin
from yolokd.distill.quantization import QuantizationMixin
from yolokd.distill.saving import SavingMixin
from yolokd.distill.starting import FROM_TEACHER, STARTS
from yolokd.distill.teacher import memory_layout
from yolokd.distill.together import is_loss_of_another, one_at_a_time
from yolokd.errors import UsageError, one_line, printable
from yolokd.init.adapters import solve_adapters
from yolokd.init.channel_choice import SOLVED


class KDMixin(PrunedMixin, FollowingMixin, FadingMixin, QuantizationMixin, SavingMixin):
    """Knowledge distillation over an Ultralytics trainer.

    Use it as ``YOLO("yolo11n.yaml").train(trainer=yolokd.KDTrainer, teacher="big.pt", data="my.yaml", ...)``; its own
    arguments are those of ``yolokd train``.
    """

    distillation: DistillOptions  # what the user asked for; `args.kd` is its plain form, which Ultralytics saves
    distiller: Distiller  # set before the optimizer is built
    steps: finite.Steps
    unlabeled: Unlabeled | None = None
    images: dict[str, int]  # of the last epoch, by kind
    recipe: dict[str, dict[str, Any]]  # key -> options of the methods used
    args: Any
    model: Any

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None) -> None:
        overrides = absolute(options.fold(dict(overrides or {})))  # before super() makes any folder
        # Overrides are checked against the base configuration, so an entry there makes `kd` a legal argument.
        super().__init__({**cfg2dict(cfg), "kd": None}, overrides, _callbacks)
        self.distillation, self.start = DistillOptions.from_dict(self.args.kd), str(self.args.kd.get("start", "own"))
        self._check_files(("model", "pretrained"), self.args.kd)

    def _check_files(self, keys: tuple[str, ...], kd: Any) -> None:
        """Refuse checkpoints that could run code, for callers that give their paths to a trainer themselves."""
        for key in keys:
            file = getattr(self.args, key, None)
            if isinstance(file, (str, Path)) and Path(file).is_file():
                check_checkpoint(file, key, bool((kd or {}).get("trust")))

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """As upstream; a teacher given anew replaces the one of the interrupted run, which may have moved."""
        self._check_files(("resume",), overrides.get("kd"))
        super().check_resume({k: v for k, v in overrides.items() if k != "kd"})
        if not self.resume:
            return
        stored, given = getattr(self.args, "kd", None), overrides.get("kd")
        self.args.kd = options.resumed(stored or given, given)
        if self.args.kd is None:
            raise UsageError(f"resume={self.args.resume} was not distilled: resume it with `yolo train resume`.")

    @one_at_a_time()
    def get_dataset(self) -> Any:
        """As upstream, which would run what the data's YAML holds to download images."""
        args = self.args
        try:
            args.data = checked_data(args.data, args.split, args.fraction, bool(args.kd.get("trust")))
        except UsageError:
            raise
        except Exception as error:
            raise RuntimeError(f"data={args.data} cannot be used: {error}") from error
        data = super().get_dataset()
        args.data = absolute({"data": args.data})["data"]  # a run may be resumed from another working directory
        return data

    def set_model_attributes(self) -> None:
        """Wrap the student: it is on its device by now, and compile, freeze, AMP, DDP, optimizer and EMA come after."""
        super().set_model_attributes()
        student, distillation = self.model, self.distillation
        refuse_non_finite(student, f"model={self.args.model}")
        self.args.imgsz = rounded_imgsz(self.args.imgsz, student)  # upstream does so a moment later
        if type(self) in {KDTrainer, *TRAINERS.values()} and type(self) is not trainer_for(student):
            raise UsageError(
                f"{type(self).__name__} does not train a model that ends in {type(student.model[-1]).__name__}: "
                f"give trainer=yolokd.{trainer_for(student).__name__}."
            )
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):  # adapters draw numbers: a student alone must see the same stream
            torch.manual_seed(self.args.seed)
            reader = read(student)
            varied = bool(self.args.multi_scale or self.args.rect)
            kept = self.args.classes
            made = plans(reader, distillation, self.data, self.args.imgsz, self.args.single_cls, varied, kept)
            channels_last = getattr(self.args, "channels_last", None)
            if any(one.terms for one in made) and self.device.type == "cpu" and channels_last is not False:
                student.to(memory_format=memory_layout(self.device))  # as Ultralytics does on CUDA only
            starts, images = self._starts(reader, made[0])
            best, cached = distillation.best, distillation.cache is not None
            detects = cached or distillation.fade  # its detections are stored, or scored
            pairings = [Pairing(reader, one, self.device, best or bool(detects and one.terms)) for one in made]
            self.model = self.distiller = Distiller(reader, pairings, best=best)
            self.start = self._agreed(self._choose_start(starts))
            self.follow(student)  # an average of it begins where it does
            if self.start != "own" and images is not None:
                solve_adapters(self.distiller, images)
            if self.start in FROM_TEACHER:
                self.distiller.begin_from_teacher()
            if not self.resume:
                self._shorten_warmup(reader)
            if distillation.quantize:
                self.quantize_student(student)
            # for checkpoints, from which a run resumes
            self.args.kd = {**distillation.to_dict(), "start": self.start, "sha256": self._digests(made)}
            if self.world_size > 1:  # weights come from the first rank later on, statistics of frozen layers do not
                for buffer in student.buffers():
                    torch.distributed.broadcast(buffer, 0)
            if distillation.balance is not None:
                share = None if distillation.balance == "log" else distillation.balance
                self.distiller.balance = Balance(list(self.distiller.gains), share).to(self.device)
        if unwrap_model(self.model) is not student:
            raise RuntimeError("Ultralytics' unwrap_model() no longer finds the student in its wrapper")
        self.steps = finite.Steps(self.distiller.titles)
        self.recipe = {key: options for one in made for key, options in one.methods.items()}
        if RANK in {-1, 0}:
            terms = ", ".join(f"{name} x {gain:g}" for name, gain in self.distiller.gains.items()) or "no term (kd=0)"
            teachers = ", ".join(one.teacher.spec.name for one in made)
            LOGGER.info(printable(f"Distilling {reader.spec.name} under {teachers}: {terms}"))
            for one in made if self.distiller.gains else ():
                LOGGER.info(printable(f"Classes: {one.coverage}"))
            for reason in dict.fromkeys(r for one in made for r in one.refused):
                LOGGER.info(printable(f"Left out: {reason}"))
            if self.start != "own":
                how = "" if distillation.init_channels == SOLVED else f" init.channels={distillation.init_channels}"
                LOGGER.info(f"The student starts with {STARTS[self.start]} (init={distillation.init}{how})")

    def _digests(self, made: list[Plan]) -> list[str | None]:
        """SHA-256 of the teachers' files: a resumed run must have the same."""
        return self.args.kd.get("sha256") or [
            None if plan.follows else digest(file) or digest(str(getattr(plan.teacher.model, "pt_path", file)))
            for file, plan in zip(self.distillation.teacher, made, strict=True)
        ]

    def _model_train(self) -> None:
        """As upstream, once per epoch; the gains follow their schedules, and unlabelled images begin an epoch."""
        super()._model_train()
        self.distiller.start_epoch(self.epoch, self.epochs)
        if self.distillation.fade and any(self.distiller.gains.values()):
            self.fade()
        self.steps.start_epoch()
        if self.unlabeled:
            self.unlabeled.start_epoch(self.epoch)

    def optimizer_step(self) -> None:
        """As upstream, but for a step whose loss or gradient is not finite: no weight follows it."""
        parts = self.distiller.take_finite()
        if parts is not None:
            # a scaler (AMP) finds its scale by gradients that are not finite, and makes no step by them either
            searching = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
            gradients = [] if searching else [p.grad for p in self.model.parameters() if p.grad is not None]
            if not self.steps.allow(parts, gradients, self.epoch):
                self.optimizer.zero_grad()
                return
        super().optimizer_step()

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """As upstream; where it gives up, in a sentence."""
        try:
            return bool(super()._handle_nan_recovery(epoch))
        except RuntimeError as error:
            if is_loss_of_another(error):
                raise
            raise UsageError(
                f"training stopped in epoch {epoch + 1}: {one_line(error)}. Lower lr0= or kd=; {self.wdir} holds what "
                "was saved before."
            ) from error

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream; where responses are stored, a data set with a fixed number of augmented views of an image."""
        try:
            dataset, cache = super().build_dataset(*args, **kwargs), self.distillation.cache
        except UsageError:
            raise
        except (FileNotFoundError, RuntimeError, ValueError) as error:  # every label invalid, every image broken ...
            raise UsageError(
                f"data={self.args.data} cannot be used ({one_line(error)}): mend its images and labels."
            ) from error
        return FixedViewsDataset(dataset, cache.views, self.args.seed) if cache and dataset.augment else dataset

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream; the views of an image take turns, one per epoch."""
        loader = super().get_dataloader(*args, **kwargs)
        if isinstance(loader.dataset, FixedViewsDataset):
            batches = loader.batch_sampler.sampler  # the loader's own goes through these for ever
            batches.sampler = RoundRobinSampler(batches.sampler, len(loader.dataset), loader.dataset.count)
            loader.reset()  # the workers of older versions have begun with the sampler before
        return loader

    def _open_caches(self) -> list[response_cache.Cache]:
        """Where the responses of every teacher are stored."""
        cache, dataset = self.distillation.cache, self.train_loader.dataset
        assert cache is not None
        pairings = list(self.distiller.pairings)

        def sample() -> torch.Tensor:
            some = np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).round().astype(int).tolist()
            items = [dataset[i] for i in some]
            if not torch.equal(dataset[some[0]]["img"], items[0]["img"]):
                raise UsageError(
                    "cache=teacher needs augmentations that repeat, and an image was augmented otherwise the second "
                    "time: leave cache=teacher out, or the augmentation that draws from a stream of its own."
                )
            batch = self.preprocess_batch(dataset.collate_fn(items))
            images: torch.Tensor = batch["img"]
            return images

        files = [
            digest(t) or digest(str(p.teacher.model.pt_path))
            for t, p in zip(self.distillation.teacher, pairings, strict=True)
        ]
        return response_cache.open_all(
            [(p.teacher, p.teacher_branches, str(file)) for p, file in zip(pairings, files, strict=True)],
            Path(self.data["path"]).resolve() / "teacher-cache",
            fingerprint(dataset, self.args.seed, dataset.count, versions()),
            len(dataset) * dataset.count * (2 if self.args.close_mosaic else 1),
            sample,
            cache.limit * response_cache.GB,
        )

    def _build_train_pipeline(self) -> None:
        """As upstream, with stored teacher responses and unlabelled images for the steps of its loader."""
        try:
            super()._build_train_pipeline()
        except ValueError as error:
            if "BatchNorm" not in str(error):
                raise
            raise UsageError(f"batch={self.args.batch} cannot be used: {one_line(error)}.") from error
        self._log_labels()
        distillation, loader, ranks = self.distillation, self.train_loader, max(self.world_size, 1)
        if distillation.cache and self.distiller.gains:
            self.distiller.caches = self._open_caches()
        if not distillation.unlabeled_ratio:
            return
        keys = ("hsv_h", "hsv_s", "hsv_v", "fliplr", "flipud")
        changes = {key: getattr(self.args, key) for key in keys}
        stretch = isinstance(self, RTDETRTrainer)
        shape = self.args.imgsz, self.data["channels"], stretch
        images = Images(list_folder(distillation.unlabeled), *shape, changes, self.args.seed)
        whole, rest = divmod(len(loader.sampler), loader.batch_size)
        sizes = [loader.batch_size] * whole + [rest] * (rest > 0)
        steps = Steps(len(images), sizes, distillation.unlabeled_ratio, self.args.seed, max(RANK, 0), ranks)
        self.unlabeled = Unlabeled(images, steps, loader.num_workers, self.device.type == "cuda")

    def _log_labels(self) -> None:
        dataset = self.train_loader.dataset
        if RANK in {-1, 0} and hasattr(dataset, "label_files"):
            said, warning = describe_labels(dataset)
            LOGGER.info(f"Labels: {said}.")
            if warning:
                LOGGER.warning(printable(warning))

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As upstream, with the step's unlabelled images under a key of their own."""
        batch = super().preprocess_batch(batch)
        return {**batch, "unlabeled": self.unlabeled.step(batch["img"])} if self.unlabeled else batch

    def auto_batch(self) -> int:
        """As upstream, for batches that unlabelled images come on top of."""
        return max(int(super().auto_batch() / (1 + self.distillation.unlabeled_ratio)), 1)

    def run_callbacks(self, event: str) -> None:
        """As upstream; at the end of an epoch the log counts its images, and by teacher and cache."""
        super().run_callbacks(event)
        if event == "on_train_epoch_end":
            self.steps.end_epoch(self.epoch)
        if event == "on_train_epoch_end" and (self.unlabeled or self.distiller.best or self.distiller.caches):
            self._log_images()
        if event == "on_train_end" and self.unlabeled:
            self.unlabeled.close()

    def _log_images(self) -> None:
        images, taught = self.distiller.images, self.distiller.taught
        drawn = self.unlabeled.drawn if self.unlabeled else 0
        responses, computed = (sum(getattr(c, what) for c in self.distiller.caches) for what in ("asked", "ran"))
        counts = torch.tensor([*images.values(), drawn, responses, computed, *taught], device=self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(counts)
        labelled, unlabelled, drawn, responses, computed, *taught = counts.tolist()
        self.images = {"labelled": labelled, "unlabelled": unlabelled}
        parts = [f"{labelled} labelled and {unlabelled} unlabelled images"] if self.unlabeled else []
        if self.unlabeled and any(self.distiller.gains.values()) and drawn > unlabelled:
            parts.append(f"{drawn - unlabelled} unreadable")
        if self.distiller.best:
            names = [pairing.teacher.reader.spec.name for pairing in self.distiller.pairings]
            parts += [f"{printable(n)} the best teacher of {t}" for n, t in zip(names, taught, strict=True)]
        if self.distiller.caches:
            parts.append(f"{responses - computed} teacher responses read and {computed} computed")
        if RANK in {-1, 0}:
            LOGGER.info(f"Epoch {self.epoch + 1}: {', '.join(parts)}")

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """As upstream, with the numbers of images where there are unlabelled ones."""
        counts = {f"images/{kind}": n for kind, n in self.images.items()} if self.unlabeled else {}
        super().save_metrics({**metrics, **counts})

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Upstream's optimizer for the student, plus one group for the adapters, whose weights ride in its state."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(model, *args, **kwargs)
        methods, balance = self.distiller.methods, self.distiller.balance
        adapters = [p for p in methods.parameters() if p.requires_grad]

        def add_fading(_: Any, state: dict[str, Any]) -> dict[str, Any]:
            return {**state, KEY: self.fading.state()} if self.fading is not None else state

        optimizer.register_state_dict_post_hook(add_fading)
        if balance is not None:

            def add_balance(_: Any, state: dict[str, Any]) -> dict[str, Any]:
                return {**state, "kd_balance": {k: v.detach().cpu() for k, v in balance.state_dict().items()}}

            optimizer.register_state_dict_post_hook(add_balance)
        if adapters:
            # the last of that name: MuSGD's first is the classification head's, at three times the rate
            like = [g for g in optimizer.param_groups if g.get("param_group") == "weight"][-1]
            settings = {k: v for k, v in like.items() if k != "params"}
            optimizer.add_param_group({**settings, "params": adapters, "param_group": "kd"})

            def add_adapters(_: Any, state: dict[str, Any]) -> dict[str, Any]:
                return {**state, "kd": {k: v.detach().cpu() for k, v in methods.state_dict().items()}}

            optimizer.register_state_dict_post_hook(add_adapters)
        return optimizer

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Resume and NaN recovery: the adapters come back with the optimizer."""
        super()._load_checkpoint_state(ckpt)
        state = ckpt.get("optimizer") or {}
        if KEY in state:
            self.fading = Fading.of_state(state[KEY])
        for key, module in (("kd", self.distiller.methods), ("kd_balance", self.distiller.balance)):
            if module is not None and key in state:
                try:
                    module.load_state_dict(state[key])
                except RuntimeError as error:
                    raise UsageError(
                        f"resume={self.args.resume}: what the run had learnt about its teacher does not fit "
                        f"teacher={','.join(self.distillation.teacher)}: give the file that the run began with."
                    ) from error

    def get_validator(self) -> Any:
        """Upstream's validator, which checks its arguments against the stock schema: it must not see ours."""
        args = self.args
        self.args = IterableSimpleNamespace(**{k: v for k, v in vars(args).items() if k != "kd"})
        try:
            return super().get_validator()
        finally:
            self.args = args

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """As upstream, but no validation column for our terms: validation runs the bare student, which has none."""
        labelled = super().label_loss_items(loss_items, prefix)
        if prefix == "train":
            return labelled
        ours = {f"{prefix}/{name}" for name in self.distiller.columns}
        if isinstance(labelled, dict):
            return {k: v for k, v in labelled.items() if k not in ours}
        return [k for k in labelled if k not in ours]

    def sign_checkpoints(self) -> None:
        """The finished checkpoints say how they were made, in plain values under the key "yolokd"."""
        teachers, args = list(self.distillation.teacher), self.args
        made_by = trained(teachers, self.recipe, self.distillation.gain, self.start, str(args.data))
        for file in (self.best, self.last):
            if file.exists():
                # the figures are best.pt's, or without one (save=False) the last epoch's: never both files'
                validated = file == (self.best if self.best.exists() else self.last)
                sign(file, replace(made_by, accuracy=self._accuracy() if validated else None))

    def _accuracy(self) -> dict[str, Any]:
        """The final validation's figures, in the fields of the latency report's `accuracy`."""
        return {
            "dataset": Path(str(self.args.data)).name,
            "split": self.args.split,
            "n_images": len(self.test_loader.dataset),
            "imgsz": int(self.args.imgsz),
            "map50": float(self.metrics["metrics/mAP50(B)"]),
            "map50_95": float(self.metrics["metrics/mAP50-95(B)"]),
            **{  # of what a task has besides boxes
                f"{what}_{figure}": float(self.metrics[key])
                for letter, what in (("M", "mask"), ("P", "keypoint"))
                for figure, name in (("map50", "mAP50"), ("map50_95", "mAP50-95"))
                if (key := f"metrics/{name}({letter})") in self.metrics
            },
            "conf": float(self.validator.args.conf),
            "iou": float(self.args.iou),
            "end2end": bool(getattr(self.validator, "end2end", False)),  # which head of a dual one was validated
            "source": "final validation of the training, PyTorch",
        }


class KDTrainer(KDMixin, DetectionTrainer):
    """Ultralytics' detection trainer with knowledge distillation."""


class KDRTDETRTrainer(KDMixin, RTDETRTrainer):
    """Ultralytics' RT-DETR trainer with knowledge distillation."""


class KDSegmentationTrainer(KDMixin, SegmentationTrainer):
    """Ultralytics' trainer of instance segmentation with knowledge distillation."""


class KDPoseTrainer(KDMixin, PoseTrainer):
    """Ultralytics' pose trainer with knowledge distillation."""


class KDOBBTrainer(KDMixin, OBBTrainer):
    """Ultralytics' trainer for rotated boxes with knowledge distillation."""


TRAINERS: dict[type, type[KDMixin]] = {
    RTDETRDecoder: KDRTDETRTrainer, Segment: KDSegmentationTrainer, Pose: KDPoseTrainer, OBB: KDOBBTrainer,
}  # fmt: skip


def absolute(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with their files found from every working directory, from which a run may be resumed."""
    found = {}
    for key in ("data", "pretrained"):
        given = arguments.get(key)
        if isinstance(given, (str, Path)) and str(given) and Path(given).exists():
            found[key] = os.path.abspath(given)
    return {**arguments, **found}


def trainer_for(model: Any) -> type[KDMixin]:
    """The trainer for a student, by its head."""
    return next((t for kind, t in TRAINERS.items() if isinstance(model.model[-1], kind)), KDTrainer)
