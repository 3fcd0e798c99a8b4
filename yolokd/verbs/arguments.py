"""A verb's words: key=value, --key value, and bare words; unknown keys are refused."""

from __future__ import annotations

from typing import Any

from yolokd.errors import UsageError
from yolokd.verbs.declaration import Verb


def keyed(words: list[str], verb: Verb) -> dict[str, Any]:
    """key=value arguments of a verb, typed; an unknown key is refused with the nearest, a missing one with its
    meaning."""
    from yolokd.config.parse import check_keys, parse_pairs

    arguments = parse_pairs(words)
    options = [option for option in verb.all_options() if not option.bare]
    check_keys(arguments, [option.name for option in options])
    require(arguments, verb)
    return arguments


def require(arguments: dict[str, Any], verb: Verb) -> None:
    """Refuse a missing argument."""
    for option in verb.all_options():
        if option.required and not option.bare and option.name not in arguments:
            raise UsageError(f"no {option.name}: give {option.spelling}, {option.meaning.rstrip('.')}.")


def nothing(words: list[str], name: str) -> None:
    """Refuse whatever is given to a verb that takes nothing."""
    if words:
        raise UsageError(f"{name} takes no arguments and was given {' '.join(words)}: leave them out.")


def files_and_options(words: list[str]) -> tuple[list[str], list[str]]:
    """Bare words, and options as key=value: also `--max-regress 5%`, as CI scripts are used to."""
    files, options, rest = [], [], iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if word.startswith("--") and not equals:
            value = next(rest, "")
            if not value:
                raise UsageError(f"{word} is given without a value.")
        elif not equals:
            files.append(word)
            continue
        options.append(f"{key.removeprefix('--').replace('-', '_')}={value}")
    return files, options
