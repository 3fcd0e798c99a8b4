"""`yolokd explain`: what a run or a study shows, in one paragraph."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.arguments import files_and_options, keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="says in one paragraph whether distilling helped, for what, what limited it, and what to try next",
    usage=("yolokd explain DIR",),
    function="yolokd.reports.explain.explain",
    options=(Option("DIR", "the folder of a study, a run or a demo", required=True, bare=True),),
    hidden=("run",),
    notes=("Every figure was measured; what was not measured is said to be so. Nothing is measured or written here.",),
    examples=("yolokd explain runs/study", "yolokd explain runs/detect/train"),
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Explain."""
    places, options = files_and_options(words)
    if len(places) != 1:
        raise UsageError(f"explain takes one folder and was given {len(places)}: yolokd explain DIR.")
    given = keyed(options, VERB)
    from yolokd.reports.explain import explain

    explain(places[0], **given)
