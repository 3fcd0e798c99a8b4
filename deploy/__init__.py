"""The edge side of yolokd; `yolokd_edge.py` is one file that runs on a board without the rest of the package."""
