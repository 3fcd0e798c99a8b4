"""Latency tests that run on the board: `pytest --pyargs yolokd.deploy.jetson --bundle name-edge.zip`."""
