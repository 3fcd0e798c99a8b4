"""Whether it works however it is installed: editable or not, from a checkout, a wheel or an sdist; in any folder."""

from __future__ import annotations

import json
import re
import sys
import venv
from pathlib import Path

import pytest
from helpers.checkout import build, cannot_build, copy_checkout, run

PLACES = {"yolokd": "yolokd", "yolokd_edge": "deploy/yolokd_edge", "yolokd_cfg": "cfg"}  # package -> in a checkout
WHERE = """
import importlib, json, pathlib
found = {name: next(iter(importlib.import_module(name).__path__)) for name in ("yolokd", "yolokd_edge", "yolokd_cfg")}
import yolokd.cli, yolokd.latency.gate, yolokd_edge.cli
print(json.dumps(found))
"""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(cannot_build()), reason=cannot_build() or "it is installed")]


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


@pytest.fixture(params=["installed", "editable", "wheel", "sdist"])
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
        install(python, build(request.param, checkout, tmp_path / "dist"), cwd=tmp_path)
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
