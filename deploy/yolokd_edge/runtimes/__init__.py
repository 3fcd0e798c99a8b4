"""Runtimes that can run a model. A new one is a file here with `open_session`, and its line in `table.PROVIDERS`."""
