"""What a refused command looks like: exit code 2, one sentence on stderr, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

from yolokd import cli


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file under a folder with its bytes, and every folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refusal(capsys, folder: Path, *argv: object) -> str:
    """Run a command that must be refused and must leave the folder as it is; return its sentence."""
    before = contents(folder)
    capsys.readouterr()
    code = cli.main([str(a) for a in argv])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("yolokd: ") and error.count("\n") == 1 and error.endswith(".\n"), error
    assert contents(folder) == before
    return error


def processes_with(variable: str, value: str) -> list[int]:
    """Processes that have this in their environment, by /proc."""
    mark = f"{variable}={value}\0".encode()
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mark in _environment(pid)]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""
