"""Words of the latency report that others read too: its schema, the stages of a frame and the percentiles."""

SCHEMA = "yolokd.latency/1"
STAGES = ("pre", "infer", "post", "total")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
