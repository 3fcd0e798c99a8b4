"""`python -m yolokd` is `yolokd`."""

from __future__ import annotations

import sys

from yolokd.cli import main

if __name__ == "__main__":
    sys.exit(main())
