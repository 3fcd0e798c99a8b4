"""Makes the options known to `pytest --pyargs yolokd_edge.jetson`, which reads no conftest before the command line.

pytest loads this module wherever the runtime is installed, so it adds nothing to any other session. It lies outside
`yolokd_edge`, because in an unpacked bundle that name means the bundle's own runtime.
"""

from __future__ import annotations

from typing import Any

import pytest

PACKAGE = "yolokd_edge.jetson"


def pytest_load_initial_conftests(early_config: Any, parser: Any, args: Any) -> None:
    """Add options and exit code if the package is among the things to test."""
    if any(str(argument).split("::")[0].startswith(PACKAGE) for argument in args):
        try:
            from yolokd_edge.jetson import options
        except ImportError:  # python -m pytest takes the package from the folder it runs in
            raise pytest.UsageError(f"{PACKAGE} is not here: in an unpacked bundle run `pytest jetson`.") from None
        early_config.pluginmanager.register(options, PACKAGE + ".options")
