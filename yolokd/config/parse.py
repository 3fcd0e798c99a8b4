"""key=value in, typed values out; a mistake is one sentence with the nearest known word."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from yolokd.errors import UsageError, one_line

MAX_PIXELS = 2**16  # of a side; more is a slip of the keyboard
# What PyYAML raises at a text: of its own, and what Python's int, date and so on say to a value that is none.
MALFORMED = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError)
AS_TYPED = ("name", "project")  # name=3 is a folder's name, not a number


def parse_pairs(arguments: Iterable[str]) -> dict[str, Any]:
    """{"imgsz": 640, ...} from ["imgsz=640", ...], values typed as `yolo` types them."""
    from ultralytics.cfg import smart_value  # imports torch, for which a word that is no verb need not wait

    found: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals or not key or not value:
            raise UsageError(f"argument {argument!r} is not of the form key=value, such as epochs=100.")
        if key in found:
            raise UsageError(f"argument {key}= is given twice: {found[key]} and {value}; keep one.")
        found[key] = value if key in AS_TYPED else smart_value(value)
    return found


def check_keys(given: Iterable[str], known: Iterable[str], what: str = "option") -> None:
    """Refuse the first unknown key, naming the nearest known one."""
    known = list(known)
    for key in given:
        if key not in known:
            raise UsageError(f"unknown {what} {key!r}{did_you_mean(key, known)}.")


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """ ", did you mean 'epochs'" or, with nothing near, the whole list."""
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f", did you mean {close[0]!r}"
    if len(known) <= 24:
        return f"; known are {', '.join(known)}"
    return "; see `yolokd help`, `yolokd methods` and `yolo cfg`"


def one_of(key: str, value: Any, known: tuple[str, ...]) -> str:
    """The value, which must be one of the known."""
    if value not in known:
        raise UsageError(f"{key}={value} is not one of {', '.join(known)}.")
    return str(value)


def true_or_false(key: str, value: Any) -> bool:
    """A flag; a word such as `no` would count as yes."""
    if not isinstance(value, bool):
        raise UsageError(f"{key}={value} is neither True nor False: write one of the two.")
    return value


def pixels(key: str, value: Any) -> int:
    """A number of pixels, 32 or more."""
    if type(value) is not int or not 32 <= value <= MAX_PIXELS:
        raise UsageError(f"{key}={shortened(value)} is not a number of pixels: give a whole number of 32 or more.")
    return value


def is_file_name(value: Any) -> bool:
    """Whether a value names a YAML file."""
    return isinstance(value, (str, Path)) and str(value).endswith((".yaml", ".yml"))


def non_negative(key: str, value: Any) -> float:
    """A finite number >= 0, or a UsageError that names the key."""
    if not is_number(value) or value < 0:
        raise UsageError(f"{key}={shortened(value)} is not a number of 0 or more.")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, also as a float: Python's integers have no end."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def shortened(value: Any) -> str:
    """A value as a sentence shows it; Python refuses to write a number of thousands of digits."""
    if type(value) is int and abs(value) > sys.float_info.max:
        return "a number beyond 1e308"
    return str(value)


def typed(value: Any) -> Any:
    from ultralytics.cfg import smart_value

    return smart_value(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a word


def read_yaml(key: str, value: Any, file: Any) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, RecursionError, *MALFORMED) as error:
        raise UsageError(f"{key}={value} is not a readable YAML file: {one_line(error)}.") from error
