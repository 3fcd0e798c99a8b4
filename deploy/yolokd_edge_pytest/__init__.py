"""Makes the options known to `pytest --pyargs yolokd_edge.jetson`, which reads no conftest before the command line.

pytest loads this module wherever the runtime is installed, so it adds nothing to any other session. It lies outside
`yolokd_edge`, because in an unpacked bundle that name means the bundle's own runtime.
"""

from __future__ import annotations

from typing import Any

PACKAGE = "yolokd_edge.jetson"


def pytest_load_initial_conftests(early_config: Any, parser: Any, args: Any) -> None:
    """Add options and exit code if the package is among the things to test."""
    if any(str(argument).split("::")[0].startswith(PACKAGE) for argument in args):
        from yolokd_edge.jetson import options

        early_config.pluginmanager.register(options, PACKAGE + ".options")
