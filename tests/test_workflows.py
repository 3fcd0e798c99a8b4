"""The files of GitHub's CI and of pre-commit: they parse, and run what a developer runs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.checkout import ROOT

import yolokd

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def load(file: Path) -> dict[str, Any]:
    """A workflow; YAML reads the key `on` as true."""
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


def workflow(name: str) -> dict[str, Any]:
    return load(ROOT / ".github/workflows" / name)


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"].strip() for step in job.get("steps", ()) if "run" in step]


def ci_script() -> list[str]:
    return [line.partition("#")[0].strip() for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()]


def test_ci_calls_the_script_that_developers_call():
    ci = workflow("ci.yml")
    assert commands(ci["jobs"]["suite"]) == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK) and os.access(ROOT / ".ci/versions", os.X_OK)
    assert {"push", "pull_request", "workflow_call"} <= ci["on"].keys()


def test_ci_installs_the_pythons_that_the_script_needs():
    """python3 is the last one; .ci/versions takes the others by their names."""
    (setup,) = [s for s in workflow("ci.yml")["jobs"]["suite"]["steps"] if "setup-python" in s.get("uses", "")]
    installed = setup["with"]["python-version"].split()
    needed = re.findall(r"\(interpreter ([\d.]+)\)", (ROOT / ".ci/versions").read_text(encoding="utf-8"))
    assert needed and set(needed) <= set(installed[:-1])


def test_a_release_is_tested_and_built_before_it_is_published():
    release = workflow("release.yml")
    jobs = release["jobs"]
    assert release["on"] == {"push": {"tags": ["v*"]}}
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert jobs["build"]["needs"] == "ci" and jobs["publish"]["needs"] == "build"
    assert "python -m build" in commands(jobs["build"])
    assert any("pypa/gh-action-pypi-publish@" in step.get("uses", "") for step in jobs["publish"]["steps"])


def test_publishing_needs_no_password():
    """Only the job that publishes may ask for an identity, and no file names a secret."""
    release = workflow("release.yml")
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert all("permissions" not in job for name, job in release["jobs"].items() if name != "publish")
    assert all("secrets." not in file.read_text(encoding="utf-8") for file in WORKFLOWS)


@pytest.mark.parametrize("tag, code", [(f"v{yolokd.__version__}", 0), ("v99.0", 1), (yolokd.__version__, 1)])
def test_a_tag_that_is_not_the_version_stops_the_release(tag, code):
    (script,) = [c for c in commands(workflow("release.yml")["jobs"]["build"]) if "GITHUB_REF_NAME" in c]
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=ROOT,
        env={**os.environ, "GITHUB_REF_NAME": tag},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code and (tag in done.stderr) == bool(code), done.stderr


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_are_careful(file):
    """They may only read, end by themselves, and name versions of what they use."""
    found = load(file)
    assert found["permissions"] == {"contents": "read"}
    for name, job in found["jobs"].items():
        assert "timeout-minutes" in job or "uses" in job, name
        uses = [step["uses"] for step in job.get("steps", ()) if "uses" in step]
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", use) for use in uses), uses


def test_pre_commit_runs_what_ci_runs():
    """Formatting, checking and typing with the developer's own versions; not the tests."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = {hook["entry"] for hook in repository["hooks"]}
    assert repository["repo"] == "local" and {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert entries == {"ruff format", "ruff check", "mypy"}
    in_ci = {line.replace(" --check", "").removesuffix(" .") for line in ci_script()}
    assert entries <= in_ci
