"""`yolokd plot`: draw the pictures of a report."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.arguments import files_and_options, keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="draws the pictures of a report",
    usage=("yolokd plot report.json [out=DIR]",),
    function="yolokd.latency.plot_report.plot",
    options=(Option("report.json", "a report of `bench`, with its raw samples (.npz) beside it", required=True,
                    bare=True),),
    hidden=("report",),
    examples=("yolokd plot runs/bench/bench/report.json out=pictures",),
)  # fmt: skip


def run(words: list[str]) -> None:
    """Draw."""
    from yolokd.latency.plot_report import plot

    files, options = files_and_options(words)
    if len(files) != 1:
        raise UsageError(f"plot draws one report and was given {len(files)}: yolokd plot report.json.")
    plot(*files, **keyed(options, VERB))
