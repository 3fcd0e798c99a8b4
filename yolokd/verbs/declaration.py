"""How a verb is called: what its module declares, and what the function behind it says of its own parameters.

A function is read from its source, without importing it: help and completion must not wait for torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

NO_TEXT = ("", "None")  # defaults that tell a reader nothing; the meaning then says what happens


@dataclass(frozen=True)
class Option:
    """One argument of a verb."""

    name: str
    meaning: str
    default: str = ""  # in words; empty where the meaning says it, or where there is none
    required: bool = False
    bare: bool = False  # written as a bare word, not as key=value
    group: str = ""  # under which the help tells it

    @property
    def spelling(self) -> str:
        """As it is written on the command line."""
        return self.name if self.bare else f"{self.name}="


@dataclass(frozen=True)
class Verb:
    """What a verb's module declares."""

    summary: str  # one line
    usage: tuple[str, ...]
    function: str = ""  # "yolokd.onnx.export.export": the rest of the options follow from its signature and docstring
    options: tuple[Option, ...] = ()  # those that are no parameters of the function, or are told in other words
    hidden: tuple[str, ...] = ()  # parameters of the function that are no options of the verb
    notes: tuple[str, ...] = ()  # sentences below the options
    examples: tuple[str, ...] = ()
    passes_on: bool = False  # takes Ultralytics' training arguments too
    stands_on_ultralytics: bool = False  # whether its internals are checked before the verb runs

    def all_options(self) -> list[Option]:
        """What must be given and bare words, the declared ones first; the function's options; what else is declared."""
        declared = {option.name: option for option in self.options}
        read = [o for o in (read_function(self.function) if self.function else ()) if o.name not in self.hidden]
        first = {name: option for name, option in declared.items() if option.required or option.bare}
        merged = first | {o.name: declared.get(o.name, o) for o in read} | declared
        return sorted(merged.values(), key=lambda option: not (option.required or option.bare))


@functools.cache
def read_function(dotted: str) -> tuple[Option, ...]:
    """The parameters of a function, with the meanings that its docstring gives under "Args:".

    Of a ``**`` parameter whose meaning points to a dataclass ("`package.module.Class` says what each means") the fields
    are options too, with the text `help` of their metadata.
    """
    module, _, name = dotted.rpartition(".")
    tree = ast.parse(source(module))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    meanings = read_meanings(ast.get_docstring(function) or "")
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [*[None] * (len(positional) - len(arguments.defaults)), *arguments.defaults]
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    options = [
        Option(a.arg, meanings[a.arg], "" if d is None else _text(d, tree), required=d is None) for a, d in pairs
    ]
    if arguments.kwarg is not None:
        further = re.search(r"`([\w.]+)` says what each\s+means", meanings.get(arguments.kwarg.arg, ""))
        taken = {option.name for option in options}
        options += [o for o in read_dataclass(further[1]) if o.name not in taken] if further else []
    return tuple(options)


def read_dataclass(dotted: str) -> Iterator[Option]:
    """The fields of a dataclass of options, with the text `help` of their metadata; that may end in "(default ...)"."""
    module, _, name = dotted.rpartition(".")
    for field in fields(getattr(importlib.import_module(module), name)):
        default = "" if field.default is MISSING or str(field.default) in NO_TEXT else str(field.default)
        meaning, _, told = field.metadata["help"].partition(" (default ")
        meaning += f": {', '.join(choices)}" if (choices := field.metadata.get("choices")) else ""
        yield Option(field.name, meaning, told.rstrip(")") or default, required=field.default is MISSING)


def read_meanings(docstring: str) -> dict[str, str]:
    """Parameter -> meaning, from the part "Args:" of a docstring; one line may be about several: "json, md: ..."."""
    part = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    found: dict[str, str] = {}
    for names, text in re.findall(r"^    ([*\w][*\w, ]*): (.*(?:\n      .*)*)", part[1] if part else "", re.MULTILINE):
        meaning = " ".join(text.replace("``", "`").split())
        if meaning[1:2].islower():  # a sentence here is a phrase there
            meaning = meaning[0].lower() + meaning[1:]
        found |= dict.fromkeys((name.strip(" *") for name in names.split(",")), meaning)
    return found


def names_in_dict(module: str, variable: str) -> list[str]:
    """The keys of a dictionary that a module writes down, without importing the module."""
    for node in ast.parse(source(module)).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == variable:
            assert isinstance(node.value, ast.Dict)
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise LookupError(f"{module} has no dictionary {variable}")


def source(module: str) -> str:
    """The text of a module, found without importing it (its package is imported)."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"there is no module {module}")
    return Path(spec.origin).read_text(encoding="utf-8")


def _text(default: ast.expr, tree: ast.Module) -> str:
    """A default value in words; of a constant of the module its value."""
    if isinstance(default, ast.Name):
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == default.id for t in node.targets):
                return _text(node.value, tree)
    value = ast.literal_eval(default)
    return "" if str(value) in NO_TEXT else str(value)
