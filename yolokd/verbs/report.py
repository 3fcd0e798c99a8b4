"""`yolokd report`: the HTML report of a run, a study, a demo or a measurement."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.arguments import files_and_options, keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="makes the HTML report of a run, a study, a demo or a measurement",
    usage=("yolokd report DIR|report.json [out=FILE]",),
    function="yolokd.reports.make.report",
    options=(
        Option("DIR", "the folder of a run, a study or a demo, or a report.json of `bench`", required=True, bare=True),
    ),
    hidden=("place",),
    notes=(
        "`train`, `study`, `demo` and `bench` make it when they end; this makes it again, in seconds.",
        "The page is one file, without scripts, and loads nothing from the network.",
    ),
    examples=("yolokd report runs/detect/train", "yolokd report runs/bench/bench/report.json out=latency.html"),
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Make it."""
    places, options = files_and_options(words)
    if len(places) != 1:
        raise UsageError(f"report takes one folder or report.json and was given {len(places)}: yolokd report DIR.")
    given = keyed(options, VERB)
    from yolokd.reports.make import report

    report(places[0], **given)
