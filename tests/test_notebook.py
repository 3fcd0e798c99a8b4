"""The documentation's notebook: stored without outputs, and its cells run one after the other without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from helpers.checkout import ROOT, as_a_user

NOTEBOOK = ROOT / "docs" / "yolokd.ipynb"
SMALL = 'SCENES = {"train": 24, "val": 12}\nEPOCHS = 1\nOUT = "out"\n'
# Each cell is compiled by itself, as a kernel does; sockets to other machines are refused.
KERNEL = """
import json, socket, sys

def refused(self, address, *rest):
    raise OSError(f"the notebook wants the network: {address}")

socket.socket.connect = refused
space = {"__name__": "__main__"}
for k, cell in enumerate(json.load(sys.stdin)):
    exec(compile(cell, f"cell {k}", "exec"), space)
print(json.dumps({"paragraph": space["paragraph"], "page": str(space["page"]), "maps": space["maps"],
                  "files": [str(f) for f in space["files"]], "records": len(space["records"])}))
"""


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_it_is_a_notebook_without_outputs():
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in document["cells"]]
    assert len(set(names)) == len(names) > 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    assert "".join(cells("markdown")[0]["source"]).startswith("# ")


def test_the_first_cell_holds_the_parameters():
    """Those that the test below makes small, and no other."""
    given: dict[str, Any] = {}
    exec("".join(cells("code")[0]["source"]), given)
    small: dict[str, Any] = {}
    exec(SMALL, small)
    assert given.keys() == small.keys() and given["SCENES"].keys() == small["SCENES"].keys()


@pytest.mark.slow
def test_its_cells_run_one_after_the_other(tmp_path):
    code = [SMALL, *("".join(cell["source"]) for cell in cells("code")[1:])]
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(code),
        cwd=tmp_path,
        env=as_a_user(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["paragraph"] in done.stdout and "teacher" in found["paragraph"]
    assert set(found["maps"]) == {"teacher", "alone", "distilled"} and found["maps"]["teacher"] > 0.1
    assert found["records"] == 3 and all(file.startswith(str(tmp_path / "out")) for file in found["files"])
    assert "<html" in (tmp_path / found["page"]).read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}, "all is in the notebook's own folder"
