"""Latency of exported models, measured so that the figures can be trusted and compared."""
