"""The commands: one table, from which dispatch, help, shell completion and the test of all of them follow.

Each is a thin module of this folder with `VERB`, which says how it is called, and `run(arguments)`. To add one, write
the module and add its line below. Importing a verb's module costs neither torch nor Ultralytics: `run` imports the
work.
"""

from __future__ import annotations

import importlib
from typing import Any

VERBS = {  # name -> its group in the help
    "train": "train",
    "study": "train",
    "fit": "train",
    "label": "train",
    "check": "train",
    "methods": "train",
    "steptime": "train",
    "export": "export",
    "bundle": "export",
    "inspect": "export",
    "bench": "measure",
    "throughput": "measure",
    "compare": "measure",
    "pareto": "measure",
    "plot": "measure",
    "report": "understand",
    "explain": "understand",
    "demo": "try",
    "completion": "about",
    "version": "about",
    "help": "about",
}


def load(name: str) -> Any:
    """The module of a verb of the table."""
    return importlib.import_module(f"yolokd.verbs.{name}")
