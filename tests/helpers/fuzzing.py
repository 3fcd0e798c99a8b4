"""Documents that are nearly right, many at a time: a valid one of which a few things are changed.

The number of inputs of a kind is YOLOKD_FUZZ in the environment, 10,000 by default. They are the same in every run.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

INPUTS = int(os.environ.get("YOLOKD_FUZZ", 10_000))
ONE_SIDE = 0.02  # share of the inputs that must be accepted, and that must be refused: else one side is hardly tried

DEEP: Any = 0
for _ in range(300):
    DEEP = [DEEP]
TEXTS = (
    "", " ", "0", "-1", "nan", "None", "true", "a\nyolokd: b", "\x00", "\x1b[2J", "\ud800", "\u202eexe", "é", "٣", "²",
    "🦙", "../x", "a/b", "a\\b", "C:", "{}", "%s", "]]>", "<a&b", "x" * 3000, "9" * 5000, "1e999", "*", "\ufeff", "cpu",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**70, 10**400, -(10**400), 0.0, -0.0, 0.5, 1.0, 1.5, -0.1, 1e-320,
    1e-9, 1e9, 1e40, 1e308, math.nan, math.inf, -math.inf, [], {}, [[]], [{}], {"": None}, [0, 0], [1, "a", None],
    {"a": {"b": []}}, DEEP, *TEXTS,
)  # fmt: skip
PIECES = (
    *TEXTS, "\n", "\t", ":", ",", "[", "]", "{", "}", '"', "'", "-", "&a", "*a", "@", "%", "/", "=", "~", "\\", "#",
    "0x", "!!python/object:x", "!!binary |", "2020-01-01", "1_0", "NaN", "-Infinity", "[" * 1200, "(" * 300, "\\u0000",
)  # fmt: skip
PICKLED = [pickle.dumps(value) for value in VALUES]  # a copy of each costs little

# --- what is changed ------------------------------------------------------------------------------------------------

Change = tuple[int, int, int]


class Wish(NamedTuple):
    """What is to be changed. It is drawn as bytes, four to a change: a strategy of tuples takes three times as long."""

    edits: list[Change]  # a place; a number of VALUES or EDITS; a number of a text
    typos: list[Change]  # a place in the text; how many characters go there; a number of what comes there

    @classmethod
    def of(cls, drawn: bytes) -> Wish:
        """The changes that bytes stand for: three of four in the document, one in its text."""
        fours = [drawn[k : k + 4].ljust(4, b"\0") for k in range(0, len(drawn), 4)]
        numbers = [(four[0] << 8 | four[1], four[2], four[3]) for four in fours]
        return cls([n for n in numbers if n[1] < 192], [n for n in numbers if n[1] >= 192])


wishes = st.binary(min_size=1, max_size=20).map(Wish.of)


def changed(document: Any, edits: list[Change]) -> Any:
    """A copy of a document with these changes; what is changed may be the document as a whole."""
    whole = {"": pickle.loads(pickle.dumps(document))}
    for where, what, text in edits:
        container, key = place(whole, where)
        if what < 128:
            container[key] = pickle.loads(PICKLED[what % len(VALUES)])
        elif container is not whole:
            EDITS[what % len(EDITS)](container, key, TEXTS[text % len(TEXTS)])
    return whole[""]


def place(whole: dict[str, Any], where: int) -> tuple[Any, Any]:
    """(container, key) of something in a document, from a number: at each level one time in eight stay, else go on."""
    container: Any = whole
    key: Any = ""
    while (inside := container[key]) and is_container(inside) and (where := hash((where, 1))) % 8:
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        container, key = inside, keys[(where >> 8) % len(keys)]
    return container, key


def mistyped(text: str, typos: list[Change]) -> str:
    """The text with these changes: something is put in, in place of nothing, of a few characters or of the rest."""
    for where, gone, piece in typos:
        where %= len(text) + 1
        text = text[:where] + PIECES[piece % len(PIECES)] + text[where + (0, 0, 1, 1, 5, len(text))[gone % 6] :]
    return text


def as_yaml(document: Any) -> str:
    """A document as YAML in one line, fast; numbers that are keys stay numbers."""
    if isinstance(document, dict):
        keys = (str(k) if isinstance(k, int) else json.dumps(k) for k in document)
        inner = zip(keys, map(as_yaml, document.values()), strict=True)
        return "{" + ", ".join(f"{key}: {value}" for key, value in inner) + "}"
    if isinstance(document, (list, tuple)):
        return "[" + ", ".join(map(as_yaml, document)) + "]"
    return json.dumps(document)


def strict(text: str) -> Any:
    """What a JSON text says, which holds nothing that only Python reads."""
    return json.loads(text, parse_constant=refuse)


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


# --- changes of one place -------------------------------------------------------------------------------------------


def is_container(value: Any) -> bool:
    return isinstance(value, (dict, list))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def rename(container: Any, key: Any, text: str) -> None:
    if isinstance(container, dict):
        container[text] = container.pop(key)
    else:
        container.insert(key, text)


def drop(container: Any, key: Any, _: str) -> None:
    del container[key]


def double(container: Any, key: Any, text: str) -> None:
    if isinstance(container, dict):
        container[text] = container[key]
    else:
        container.insert(key, container[key])


def wrap(container: Any, key: Any, _: str) -> None:
    container[key] = [container[key]]


def unwrap(container: Any, key: Any, _: str) -> None:
    if is_container(value := container[key]) and value:
        container[key] = next(iter(value.values() if isinstance(value, dict) else value))


def write_out(container: Any, key: Any, _: str) -> None:
    container[key] = str(container[key])[:1000]


def grow(container: Any, key: Any, _: str) -> None:
    if is_number(value := container[key]) or isinstance(value, str):
        container[key] = value * 1000


def lessen(container: Any, key: Any, _: str) -> None:
    if is_number(value := container[key]):
        container[key] = value - 1
    elif isinstance(value, str):
        container[key] = value[:-1]
    elif is_container(value) and value:
        value.pop(next(iter(value)) if isinstance(value, dict) else -1)


EDITS: tuple[Callable[[Any, Any, str], None], ...] = (rename, drop, double, wrap, unwrap, write_out, grow, lessen)

# --- the run --------------------------------------------------------------------------------------------------------


def fuzz(use: Callable[[Wish], object], refusals: Any, inputs: int = INPUTS) -> None:
    """Use this many wishes: nothing but refusals may be raised, and these neither almost always nor almost never.

    Where there is no refusal, all are accepted.
    """
    seen: Counter[str] = Counter(accepted=0, refused=0)

    @settings(
        max_examples=inputs,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(wishes)
    def one(wish: Wish) -> None:
        try:
            use(wish)
        except refusals:
            seen["refused"] += 1
        else:
            seen["accepted"] += 1

    one()
    assert seen.total() >= inputs
    assert not refusals or min(seen.values()) >= ONE_SIDE * inputs, f"one side is hardly tried: {dict(seen)}"
