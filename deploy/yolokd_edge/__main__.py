"""Starts the command line: `python3 -m yolokd_edge`, `python3 path/to/yolokd_edge`, or the command `yolokd-edge`."""

import sys

if not __package__:  # started by its path: only the folder above makes this folder a package
    import os.path

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

MISSING = (
    "yolokd_edge: a package is missing or broken ({}): install this board's, "
    "python3 -m pip install -r requirements-cpu.txt, or -jp5, -jp6, -jp7 on a Jetson, -cuda with an NVIDIA GPU."
)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from yolokd_edge import libraries  # noqa: F401 (first, so that its time is that of a cold start)
    except ImportError as missing:
        print(MISSING.format(missing), file=sys.stderr)
        sys.exit(2)
    from yolokd_edge import cli

    sys.exit(cli.main())


if __name__ == "__main__":
    main()
