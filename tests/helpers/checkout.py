"""The checkout as it would be released: its files, a copy of them, and what is built from the copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTING = ("PYTEST", "GITHUB", "RUNNER")  # with these in the environment Ultralytics writes its runs elsewhere
BUILD = "import sys, setuptools.build_meta as build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def cannot_build() -> str:
    """Why nothing can be built here; empty where it can."""
    try:
        return "" if int(version("setuptools").split(".")[0]) >= 77 else "setuptools is older than 77"
    except PackageNotFoundError:
        return "setuptools is not installed"


def run(python: Path | str, *arguments: object, cwd: Path) -> str:
    """Output of a command that must succeed, without the paths and settings of this process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "PIP", "COV"))}
    done = subprocess.run([python, *map(str, arguments)], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def as_a_user() -> dict[str, str]:
    """The environment without what tells that this is a test, offline, and with this process' own programs first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(TESTING)}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": programs, "YOLO_OFFLINE": "true", "MPLBACKEND": "Agg", "COLUMNS": "120"}


def checkout_files() -> set[str]:
    """Paths of the tracked files that are there; of an unpacked source distribution, what its list names."""
    if (ROOT / ".git").exists():
        listed = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    else:
        listed = (ROOT / "yolokd.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    return {name for name in listed if (ROOT / name).is_file() and ".egg-info/" not in name}


def copy_checkout(target: Path) -> Path:
    """The checkout's files, those that are changed as they are now."""
    for name in checkout_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


def build(kind: str, checkout: Path, out: Path) -> Path:
    """The `wheel` or the `sdist` of a checkout, built offline with this process' setuptools."""
    out.mkdir(parents=True, exist_ok=True)
    return out / run(sys.executable, "-c", BUILD, f"build_{kind}", out, cwd=checkout).splitlines()[-1]
