"""Whether it works however it is installed: from a checkout, editable, or from a wheel; and from whichever folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import yolokd

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"yolokd": "yolokd", "yolokd_edge": "deploy/yolokd_edge", "yolokd_cfg": "cfg"}  # package -> in a checkout
WHERE = """
import importlib, json, pathlib
found = {name: next(iter(importlib.import_module(name).__path__)) for name in ("yolokd", "yolokd_edge", "yolokd_cfg")}
import yolokd.cli, yolokd.latency.gate, yolokd_edge.cli
print(json.dumps(found))
"""


def cannot_build() -> str:
    """Why nothing can be built here; empty where it can."""
    try:
        return "" if int(version("setuptools").split(".")[0]) >= 77 else "setuptools is older than 77"
    except PackageNotFoundError:
        return "setuptools is not installed"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(cannot_build()), reason=cannot_build() or "it is installed")]


def test_the_citation_has_the_version():
    said = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert said and said[1] == yolokd.__version__


def run(python: Path | str, *arguments: object, cwd: Path) -> str:
    """Output of a command that must succeed, without the paths and settings of this process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "PIP", "COV"))}
    done = subprocess.run([python, *map(str, arguments)], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def copy_checkout(target: Path) -> Path:
    """The tracked files, those that are changed as they are now."""
    listed = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


def environment(folder: Path) -> Path:
    """Python of a new environment that has what this one has, without a trace of yolokd; nothing is downloaded."""
    venv.create(folder / "venv", symlinks=True)
    (python,) = [p for p in (folder / "venv").glob("[bS]*/python*") if p.stem == "python"]
    others = folder / "packages"
    others.mkdir()
    for path in (Path(p) for p in sys.path if "site-packages" in p or "dist-packages" in p):
        for entry in path.iterdir() if path.is_dir() else ():
            ours = re.match(r"yolokd|__editable__.*yolokd", entry.name)
            if not ours and entry.suffix != ".pth" and not (others / entry.name).exists():
                (others / entry.name).symlink_to(entry)
    (site,) = (folder / "venv").rglob("site-packages")
    (site / "others.pth").write_text(f"{others}\n", encoding="utf-8")
    return python


def install(python: Path, *what: object, cwd: Path) -> None:
    """Offline, and built with the tools that are here."""
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    run(python, "-m", "pip", "install", *offline, *what, cwd=cwd)


@pytest.fixture(params=["installed", "editable", "wheel"])
def installation(request, tmp_path):
    """(Python, checkout, folder of each package when imported from elsewhere)."""
    checkout, python = copy_checkout(tmp_path / "checkout"), environment(tmp_path)
    absent = "import importlib.util as u; print([n for n in ('yolokd', 'yolokd_edge', 'yolokd_cfg') if u.find_spec(n)])"
    assert run(python, "-c", absent, cwd=tmp_path) == "[]\n", "this process' own yolokd shows through"
    (site,) = (tmp_path / "venv").rglob("site-packages")
    if request.param == "editable":
        install(python, "-e", checkout, cwd=tmp_path)
        return python, checkout, {name: checkout / place for name, place in PLACES.items()}
    if request.param == "installed":
        install(python, checkout, cwd=tmp_path)
    else:
        built = tmp_path / "dist"
        flags = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", built)
        run(python, "-m", "pip", "wheel", *flags, checkout, cwd=tmp_path)
        install(python, *built.glob("yolokd-*.whl"), cwd=tmp_path)
    return python, checkout, {name: site / name for name in PLACES}


def test_it_works_from_every_folder(installation, tmp_path):
    """Imports, the command, and the collection of all tests from the root of the checkout."""
    python, checkout, places = installation
    (tmp_path / "elsewhere").mkdir()
    found = json.loads(run(python, "-c", WHERE, cwd=tmp_path / "elsewhere"))
    assert {name: Path(place).resolve() for name, place in found.items()} == {n: p.resolve() for n, p in places.items()}
    assert (places["yolokd"] / "py.typed").is_file() and (places["yolokd_cfg"] / "default.yaml").is_file()
    assert {f.name for f in (places["yolokd"] / "reports" / "templates").iterdir()} == {"report.html", "report.css"}

    in_root = json.loads(run(python, "-c", WHERE, cwd=checkout))  # whose folder yolokd/ comes before what is installed
    assert Path(in_root["yolokd"]).resolve() == (checkout / "yolokd").resolve()
    for name in ("yolokd_edge", "yolokd_cfg"):
        assert Path(in_root[name]).resolve() == places[name].resolve()

    command = python.with_name("yolokd")
    assert run(command, "version", cwd=tmp_path / "elsewhere") == run(python, "-m", "yolokd", "version", cwd=checkout)
    collected = run(python, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", cwd=checkout)
    assert int(re.search(r"(\d+)(?:/\d+)? tests collected", collected)[1]) > 1000
