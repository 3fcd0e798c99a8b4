"""What is released: the files of the wheel and of the source distribution, what their description says, the version."""

from __future__ import annotations

import re
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from helpers.checkout import ROOT, build, cannot_build, checkout_files, copy_checkout

import yolokd

NEEDS_SETUPTOOLS = pytest.mark.skipif(bool(cannot_build()), reason=cannot_build() or "it is installed")
MADE = {"PKG-INFO", "setup.cfg"}  # by setuptools
LICENCES = {"LICENSE": "GNU AFFERO GENERAL PUBLIC LICENSE", "NOTICE.md": "Copyright © 2017 Zalando SE"}
MIB = 2**20


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("release") / "checkout")


@pytest.fixture(scope="module")
def sdist(checkout) -> dict[str, bytes]:
    """Content by path in the checkout."""
    file = build("sdist", checkout, checkout.parent / "dist")
    assert file.stat().st_size < 12 * MIB
    with tarfile.open(file) as tar:
        members = [m for m in tar.getmembers() if m.isfile()]
        return {m.name.partition("/")[2]: tar.extractfile(m).read() for m in members}


@pytest.fixture(scope="module")
def wheel(checkout) -> dict[str, bytes]:
    file = build("wheel", checkout, checkout.parent / "dist")
    assert file.stat().st_size < 12 * MIB
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: dict[str, bytes]) -> Message:
    (text,) = [content for name, content in wheel.items() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(text.decode("utf-8"))


@pytest.mark.slow
@NEEDS_SETUPTOOLS
def test_the_source_distribution_is_the_checkout(sdist):
    """Every file of it, and nothing else."""
    assert {name for name in sdist if ".egg-info/" not in name} - MADE == checkout_files()
    assert all((ROOT / name).read_bytes() == sdist[name] for name in checkout_files())


@pytest.mark.slow
@NEEDS_SETUPTOOLS
def test_the_wheel_has_the_packages_and_their_data_only(wheel):
    places = {"yolokd": "yolokd", "cfg": "yolokd_cfg", "deploy/yolokd_edge": "yolokd_edge"}
    places["deploy/yolokd_edge_pytest"] = "yolokd_edge_pytest"
    installed = {
        f"{package}/{name.removeprefix(f'{place}/')}"
        for place, package in places.items()
        for name in checkout_files()
        if name.startswith(f"{place}/")
    }
    assert {name for name in wheel if ".dist-info/" not in name} == installed


@pytest.mark.slow
@NEEDS_SETUPTOOLS
@pytest.mark.parametrize("name", LICENCES)
def test_the_licences_come_along(name, sdist, wheel):
    """Of the code, and of the photos and weights that are bundled."""
    in_wheel = [text for path, text in wheel.items() if ".dist-info/licenses/" in path and path.endswith(name)]
    in_sdist = [text for path, text in sdist.items() if path in (name, f"yolokd/demo/assets/{name}")]
    assert len(in_wheel) == len(in_sdist) == 1
    assert all(LICENCES[name] in text.decode("utf-8") for text in in_wheel + in_sdist)
    assert name in " ".join(metadata(wheel).get_all("License-File"))


@pytest.mark.slow
@NEEDS_SETUPTOOLS
def test_the_description_leads_to_the_files_of_this_version(wheel):
    """The package index knows no other file of the checkout: each link names a file that is there."""
    text = metadata(wheel).get_payload()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)
    ours = [re.match(r"https://github.com/yolokd/yolokd/(?:blob|raw)/v([^/]+)/([^#]+)", t) for t in targets]
    named = {(m[1], m[2]) for m in ours if m}
    assert {version for version, _ in named} == {yolokd.__version__}
    assert {name for _, name in named} <= checkout_files()
    assert ("docs/images/demo.png" in {name for _, name in named}) and "/raw/" in text
    assert len(text) > 0.9 * len(read("README.md"))


@pytest.mark.slow
@NEEDS_SETUPTOOLS
def test_the_project_says_where_it_lives(wheel):
    urls = dict(line.split(", ") for line in metadata(wheel).get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith("https://github.com/yolokd/yolokd") for url in urls.values())
    files = [url.partition("/blob/main/")[2] for url in urls.values() if "/blob/main/" in url]
    assert files and set(files) <= checkout_files()


def test_version_changelog_and_citation_agree():
    """The newest heading of the changelog has the version, or is Unreleased above it; a released one has its date."""
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.M)
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", h) for h in headings if h != "Unreleased"]
    assert released and all(released), headings
    assert released[0][1] == yolokd.__version__
    cited = dict(re.findall(r"^(version|date-released): (.+)$", read("CITATION.cff"), re.M))
    assert cited == {"version": released[0][1], "date-released": released[0][2]}
