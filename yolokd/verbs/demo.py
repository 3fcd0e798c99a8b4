"""`yolokd demo`: the whole job on bundled data without a network."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="does the whole job on bundled data without a network",
    usage=("yolokd demo [seed=0] [out=DIR]", "yolokd demo --data-only DIR"),
    function="yolokd.demo.run.demo",
    options=(Option("--data-only DIR", "write just the data set, DIR/scenes.yaml", bare=True),),
    examples=("yolokd demo", "yolokd demo --data-only my-scenes"),
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Run the demo, or write its data only."""
    from yolokd.demo.run import demo, write_data

    if words and words[0] == "--data-only":
        if len(words) != 2:
            raise UsageError(f"--data-only takes one new folder and was given {' '.join(words[1:]) or 'none'}.")
        print(write_data(words[1]))
    else:
        demo(**keyed(words, VERB))
