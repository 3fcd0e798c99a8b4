"""Latency tests that run on the board: `pytest --pyargs yolokd_edge.jetson --bundle name-edge.zip`."""
