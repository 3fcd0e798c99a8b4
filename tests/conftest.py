"""What several tests share: small data, small models, one short distilled run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers.training import ASSETS
from ultralytics import YOLO
from ultralytics.utils import SETTINGS

from yolokd.demo.scenes import compose


def pytest_configure(config):
    """A warning that our own code raises is an error."""
    config.addinivalue_line("filterwarnings", "error:::yolokd")


@pytest.fixture(scope="session", autouse=True)
def quiet_session():
    """Few threads, no network, no loggers of the developer's machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    threads = os.environ.get("OMP_NUM_THREADS") or max(min(2, cores // workers), 1)
    torch.set_num_threads(int(threads))  # threads that fight for a core wait more than they work
    for key in SETTINGS:
        if isinstance(SETTINGS[key], bool):
            dict.__setitem__(SETTINGS, key, False)  # for this process only: the settings file stays as it is


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """YAML of 24 training and 8 validation scenes of 64 px."""
    return compose(tmp_path_factory.mktemp("data") / "scenes", train=24, val=8, imgsz=64, seed=3)


@pytest.fixture(scope="session")
def teacher() -> Path:
    """A trained YOLO11n that knows the scenes' ten classes."""
    return ASSETS / "teacher.pt"


@pytest.fixture(scope="session")
def untrained(tmp_path_factory, teacher):
    """Function: family -> checkpoint of an untrained model of that family with the scenes' classes (plumbing only)."""
    folder = tmp_path_factory.mktemp("untrained")
    names = YOLO(teacher).names

    def make(family: str) -> Path:
        file = folder / f"{family}.pt"
        if not file.exists():
            torch.manual_seed(0)
            model = YOLO(f"{family}.yaml")
            model.model = type(model.model)(model.model.yaml, nc=len(names), verbose=False)
            model.model.names, model.model.task, model.model.args = names, "detect", {}
            model.save(file)
        return file

    return make
