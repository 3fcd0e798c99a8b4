"""How the code lies: which folder may import which, what is installed, and how large files are."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = 500
# Folder or module of yolokd -> what it may import of yolokd beside its own; "yolokd" itself gives its version.
MAY_IMPORT = {
    "yolokd": set(),
    "errors": set(),
    "quiet": set(),
    "views": set(),
    "compat": {"errors"},
    "methods": {"views"},
    "detectors": {"errors", "views", "methods"},
    "data": {"errors", "compat", "detectors"},
    "config": {"errors", "methods", "detectors", "data"},
    "init": {"errors", "detectors"},
    "distill": {"yolokd", "errors", "views", "methods", "detectors", "data", "config", "init"},
    "labelling": {"errors", "compat", "detectors", "data", "config"},
    "checks": {"yolokd", "errors", "quiet", "detectors", "data", "config", "distill", "init", "studies"},
    "onnx": {"yolokd", "errors", "compat", "config", "detectors", "data", "distill"},
    "latency": {"errors"},
    "studies": {"yolokd", "errors", "methods", "detectors", "data", "config", "distill", "latency"},
    "reports": {"yolokd", "errors", "quiet", "methods", "detectors", "data", "config", "distill", "latency", "studies"},
    "tuning": {"errors", "compat", "config", "detectors", "distill", "studies"},
    "fitting": {
        "errors",
        "quiet",
        "compat",
        "config",
        "data",
        "detectors",
        "distill",
        "init",
        "onnx",
        "latency",
        "studies",
    },
    "demo": {"errors", "config", "data", "detectors", "distill", "onnx", "latency", "reports"},
    "verbs": {
        "yolokd",
        "errors",
        "compat",
        "checks",
        "config",
        "labelling",
        "onnx",
        "latency",
        "studies",
        "reports",
        "demo",
        "fitting",
    },
    "cli": {"errors", "compat", "config", "verbs"},
    "__main__": {"cli"},
}


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module_name(file: Path, root: Path = ROOT) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(file): file for file in python_files("yolokd")}
RUNTIME = {module_name(file, ROOT / "deploy"): file for file in python_files("deploy")}
TESTS = python_files("tests")


def imported(file: Path, module: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a file, those in functions and for type checking too; relative ones resolved.

    The name is empty for a plain `import module`.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield from ((source, alias.name) for alias in node.names)


def imported_modules(module: str) -> set[str]:
    """Modules of yolokd that one of them imports: the submodule where a name is one, else the module it is from."""
    found = set()
    for source, name in imported(FILES[module], module):
        target = f"{source}.{name}" if f"{source}.{name}" in FILES else source
        if target in FILES:
            found.add(target)
    return found - {module}


GRAPH = {module: imported_modules(module) for module in FILES}


def folder(module: str) -> str:
    return module.split(".")[1] if "." in module else "yolokd"


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle in their order, or none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def test_modules_import_each_other_in_one_direction():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"], "the search finds one"
    assert not cycle(GRAPH), " -> ".join(cycle(GRAPH))


def test_the_graph_is_not_empty():
    """Imports in functions, of submodules and of the package itself are seen."""
    assert "yolokd.reports.trained" in GRAPH["yolokd.verbs.train"], "in a function"
    assert "yolokd.config.options" in GRAPH["yolokd.distill.training"], "a submodule"
    assert "yolokd" in GRAPH["yolokd.verbs.version"]
    assert sum(map(len, GRAPH.values())) > 200


def test_folders_import_only_what_they_may():
    odd = {
        f"{module} -> {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if folder(module) != folder(target) and folder(target) not in MAY_IMPORT[folder(module)]
    }
    assert not odd


def test_the_table_of_folders_is_whole_and_has_no_cycle():
    assert MAY_IMPORT.keys() == {folder(module) for module in FILES}
    assert not cycle(MAY_IMPORT)
    used = {(folder(m), folder(t)) for m, targets in GRAPH.items() for t in targets if folder(m) != folder(t)}
    unused = {(a, b) for a, may in MAY_IMPORT.items() for b in may} - used
    assert not unused, "an arrow that nobody takes need not be allowed"


def test_the_runtime_knows_nothing_of_the_package():
    odd = [m for m, file in RUNTIME.items() for source, _ in imported(file, m) if source.split(".")[0] == "yolokd"]
    assert RUNTIME and not odd


def test_the_list_of_packages_is_that_of_the_folders():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    holding = {".".join(f.parent.relative_to(ROOT).parts) for f in python_files("yolokd") if f.name == "__init__.py"}
    for name, place in setup["package-dir"].items():
        folders = {f.parent.relative_to(ROOT / place) for f in python_files(place) if f.name == "__init__.py"}
        holding |= {".".join([name, *f.parts]) for f in folders}
    without_code = {"yolokd_cfg"}  # recipes
    assert set(setup["packages"]) == holding | without_code
    assert len(setup["packages"]) == len(set(setup["packages"]))
    assert (ROOT / "yolokd" / "py.typed").is_file() and setup["package-data"]["yolokd"] == ["py.typed"]
    for name, patterns in setup["package-data"].items():
        place = ROOT / setup["package-dir"].get(name, name.replace(".", "/"))
        assert all(list(place.glob(pattern)) for pattern in patterns), name


def test_no_test_module_imports_another():
    """What several share is in tests/helpers."""
    names = {file.stem for file in TESTS if file.name.startswith(("test_", "conftest"))}
    for file in TESTS:
        sources = {part for source, name in imported(file, file.stem) for part in (*source.split("."), name)}
        assert not sources & names - {file.stem}, file


@pytest.mark.parametrize("file", [*FILES.values(), *TESTS], ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_changes_the_path_of_imports(file):
    assert not path_changes(file.read_text(encoding="utf-8"))


def path_changes(text: str) -> list[int]:
    """Lines that call a method of sys.path, assign to it or to a part of it, or import it under a name of their own."""
    found = []
    for node in ast.walk(ast.parse(text)):
        targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else [getattr(node, "target", None)]
        changed = [ast.unparse(t) for t in targets if isinstance(t, ast.expr)]
        called = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sys.path"
        taken = isinstance(node, ast.ImportFrom) and node.module == "sys" and "path" in {a.name for a in node.names}
        if called or taken or any(re.match(r"sys\.path\b", target) for target in changed):
            found.append(node.lineno)
    return found


def test_changes_of_the_path_are_seen():
    changes = [
        "sys.path.insert(0, 'a')",
        "sys.path += ['a']",
        "sys.path[:0] = ['a']",
        "sys.path = []",
        "del sys.path[0]",
    ]
    assert all(path_changes(line) == [1] for line in [*changes, "from sys import path"])
    assert not path_changes("[p for p in sys.path if p]; x = sys.path[0]")


@pytest.mark.parametrize("name", [*FILES, *RUNTIME])
def test_a_file_is_short_and_says_what_it_is_for(name):
    file = (FILES | RUNTIME)[name]
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    lines = len(text.splitlines())
    assert lines <= LINES


def test_benchmarks_import_what_is_there():
    """They are run by hand, long after what they import may have moved."""
    scripts = python_files("benchmarks")
    asked = {(source, name) for file in scripts for source, name in imported(file, file.stem) if name}
    ours = {(source, name) for source, name in asked if source.partition(".")[0] in ("yolokd", "yolokd_edge")}
    assert len(ours) > 20
    gone = {(s, n) for s, n in ours if not hasattr(importlib.import_module(s), n) and f"{s}.{n}" not in FILES | RUNTIME}
    assert not gone


def test_private_names_stay_in_their_module():
    crossing: dict[str, set[str]] = {}
    for module, file in (FILES | RUNTIME | {module_name(f): f for f in TESTS}).items():
        for name in private_names(module, file):
            crossing.setdefault(module, set()).add(name)
    assert not crossing


def dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def private_names(module: str, file: Path) -> Iterator[str]:
    """`_name` of `from yolokd.x import _name`, and of `x._name` where `x` is an imported module of ours."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = {}  # as they are called here
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for source, name in imported(file, module):
        if source.split(".")[0] in ("yolokd", "yolokd_edge") and name.startswith("_") and not dunder(name):
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not dunder(node.attr):
            if modules.get(ast.unparse(node.value)) in FILES | RUNTIME:
                yield node.attr
