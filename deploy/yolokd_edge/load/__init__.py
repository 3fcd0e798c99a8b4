"""Several inputs at the same time: throughput against latency, scenarios of load, and frames of a camera."""
