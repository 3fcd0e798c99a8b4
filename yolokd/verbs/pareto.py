"""`yolokd pareto`: which measured models are worth having?"""

from __future__ import annotations

from yolokd.verbs.arguments import files_and_options, keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="shows which measured models are worth having",
    usage=("yolokd pareto reports/*.json [x=latency|energy|size] [metric=total.p50] [out=pareto.png] ...",),
    function="yolokd.latency.pareto.pareto",
    options=(Option("report.json ...", "reports, or folders of them", required=True, bare=True),),
    hidden=("files",),
    notes=("Options may be written --out pareto.png or out=pareto.png.",),
    examples=("yolokd pareto reports/*.json out=pareto.png", "yolokd pareto reports/ x=energy md=table.md"),
)


def run(words: list[str]) -> None:
    """Gather the reports, print the table and draw."""
    from yolokd.latency.pareto import pareto

    files, options = files_and_options(words)
    pareto(files, **keyed(options, VERB))
