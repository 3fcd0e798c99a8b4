"""`yolokd throughput`: throughput against latency of an exported model on this machine."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="measures throughput against latency, and how a model does under load",
    usage=(
        "yolokd throughput model=best.onnx source=images/ [batch=1,2,4] [streams=1,2,auto] [provider=cpu|openvino] ...",
        "yolokd throughput model=best.onnx random=True scenario=server rate=20 bound=50 [seconds=60] ...",
    ),
    function="yolokd.latency.throughput.throughput",
    options=(Option("model", "an ONNX file or bundle, or what `yolokd export format=` wrote", required=True),),
    notes=(
        "A curve has a point for each batch and number of streams; those that no other beats are marked.",
        "The scenarios single, multi, server and offline are those of MLPerf, and so are the rules for their validity.",
        "Exit code of the scenario server: 0 the rate is served, 1 it is not, 3 too few queries to say.",
    ),
    examples=(
        "yolokd throughput model=best.onnx source=images/",
        "yolokd throughput model=best.onnx random=True scenario=server rate=20 bound=50 seconds=60",
    ),
)


def run(words: list[str]) -> None:
    """Measure; a server's rate that is not served is raised with its exit code."""
    options = keyed(words, VERB)
    if "model" not in options:
        raise UsageError("no model: give the exported file to load, model=best.onnx.")
    from yolokd.latency.throughput import throughput
    from yolokd_edge.load.report import check_served

    check_served(throughput(**options))
