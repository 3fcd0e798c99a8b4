"""The Dockerfiles: what they copy is in the checkout and enough, and what they name exists. CI builds one of them."""

from __future__ import annotations

import re
import shutil
import sys
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers.checkout import ROOT, build, cannot_build, checkout_files, run

FILES = ("Dockerfile", "Dockerfile.jetpack")
LINTED = {"FROM", "SHELL", "RUN", "ARG", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}


def instructions(name: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, continued lines joined, without comments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "docker" / name).read_text(encoding="utf-8"), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def arguments(name: str) -> dict[str, str]:
    """Build arguments and their defaults."""
    return dict(rest.partition("=")[::2] for word, rest in instructions(name) if word == "ARG")


def copies(name: str) -> list[tuple[list[str], str]]:
    """(sources, target) of each COPY out of the checkout."""
    found = [rest.split() for word, rest in instructions(name) if word == "COPY" and not rest.startswith("--from")]
    return [(words[:-1], words[-1]) for words in found]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a file out: its last line that fits the file or a folder above it decides."""
    out = False
    parts = path.split("/")
    above = ["/".join(parts[: k + 1]) for k in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        names = parts if pattern.startswith("**/") else above
        if line and not line.startswith("#") and any(fnmatch(n, pattern.removeprefix("**/")) for n in names):
            out = not line.startswith("!")
    return out


def copied(name: str, target: Path) -> Path:
    """The working directory of the stage that copies, as it is after the copying."""
    for sources, into in copies(name):
        for source in sources:
            for file in (f for f in checkout_files() if f == source or f.startswith(f"{source}/")):
                place = target / into / (Path(file).name if file == source else file.removeprefix(f"{source}/"))
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, place)
    return target


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_in_the_checkout(name):
    files = checkout_files()
    sources = [source for sources, _ in copies(name) for source in sources]
    assert sources
    for source in sources:
        below = [f for f in files if f == source or f.startswith(f"{source}/")]
        assert below, f"COPY {source}: the checkout has none"
        assert not [f for f in below if ignored(f)], f".dockerignore leaves out files of {source}"


def test_nothing_else_is_sent_to_docker():
    sources = tuple(source for name in FILES for found, _ in copies(name) for source in found)
    sent = {f for f in checkout_files() if not ignored(f)}
    assert sent == {f for f in checkout_files() if f in sources or f.startswith(tuple(f"{s}/" for s in sources))}
    assert ignored("yolokd/__pycache__/cli.pyc") and ignored("deploy/build/lib/a.py") and ignored("runs/best.pt")


@pytest.mark.parametrize("name", FILES)
def test_bases_have_a_version(name):
    """No `latest`, and the default of every argument in a FROM is set before it."""
    bases = [rest.split()[0] for word, rest in instructions(name) if word == "FROM"]
    defaults = arguments(name)
    for base in bases:
        tag = base.rpartition(":")[2]
        filled = re.sub(r"\$\{(\w+)\}", lambda m: defaults[m[1]], tag)
        assert re.match(r"r?\d+\.\d+", filled), base
    assert {word for word, _ in instructions(name)} <= LINTED


@pytest.mark.slow
@pytest.mark.skipif(bool(cannot_build()), reason=cannot_build() or "it is installed")
def test_the_wheel_can_be_built_of_what_is_copied(tmp_path):
    file = build("wheel", copied("Dockerfile", tmp_path / "src"), tmp_path / "dist")
    assert file.name.startswith("yolokd-") and file.stat().st_size > 2**20


def test_the_two_versions_of_pytorch_belong_together():
    """And are the ones that were tested, docs/versions.md."""
    chosen = arguments("Dockerfile")
    tested = (ROOT / "docs/versions.md").read_text(encoding="utf-8")
    newest = re.search(r"\| training, newest \|.*?torch ([\d.]+)", tested)
    assert newest and chosen["TORCH"] == newest[1]
    if version("torchvision").partition("+")[0] == chosen["TORCHVISION"]:  # they were installed together here
        assert version("torch").partition("+")[0] == chosen["TORCH"]


def test_the_board_program_runs_from_what_is_copied(tmp_path):
    folder = copied("Dockerfile.jetpack", tmp_path / "opt")
    (entry,) = [rest for word, rest in instructions("Dockerfile.jetpack") if word == "ENTRYPOINT"]
    assert entry == '["python3", "-m", "yolokd_edge"]'
    said = run(sys.executable, "-c", FROM_FOLDER, folder, cwd=tmp_path)
    assert str(folder) in said and all(verb in said for verb in ("doctor", "verify", "detect", "bench"))


FROM_FOLDER = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import yolokd_edge
print(yolokd_edge.__file__)
sys.argv = ["yolokd_edge", "--help"]
runpy.run_module("yolokd_edge", run_name="__main__")
"""


def test_the_requirement_files_exist():
    """The default one and those that the comments and the documentation name."""
    text = "".join((ROOT / f).read_text(encoding="utf-8") for f in ("docker/Dockerfile.jetpack", "docs/docker.md"))
    named = set(re.findall(r"requirements-\w+\.txt", text))
    assert arguments("Dockerfile.jetpack")["REQUIREMENTS"] in named and len(named) > 1
    assert all((ROOT / "deploy/yolokd_edge/board_files" / name).is_file() for name in named)


@pytest.mark.parametrize("name", FILES)
def test_the_documentation_tells_every_build_argument(name):
    text = (ROOT / "docs/docker.md").read_text(encoding="utf-8")
    rows = {word for row in re.findall(r"^\| (`[^|]*) \|", text, re.M) for word in re.findall(r"`(\w+)`", row)}
    assert arguments(name).keys() <= rows
    given = set(re.findall(r"--build-arg (\w+)=", text))
    assert given <= arguments("Dockerfile").keys() | arguments("Dockerfile.jetpack").keys()
