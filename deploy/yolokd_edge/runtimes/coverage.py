"""How much of a graph the provider asked for runs, from a profile, where ONNX Runtime does not tell it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from yolokd_edge.common import PROVIDER, EdgeError, own_command
from yolokd_edge.contract import read_contract
from yolokd_edge.runtimes.onnxruntime_options import session_options


def profile_coverage(events: Sequence[dict[str, Any]], provider: str) -> float | None:
    """Share of the nodes' time that a provider spent, from the events of ONNX Runtime's profile.

    Time, because a provider that fuses the whole graph appears as a single node.
    """
    spent: Counter[str] = Counter()
    for event in events:
        ran = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and ran:
            spent[ran] += event.get("dur", 0)
    total = sum(spent.values())
    return spent[provider] / total if total else None


def coverage_in_new_process(
    path: Path, chain: list[Any], threads: int, provider: str, hw: tuple[int, int] | None
) -> float | None:
    """The provider's share, found in a new process, so that its session costs this one neither memory nor start."""
    done = subprocess.run(
        own_command("_coverage", json.dumps([str(path), chain, threads, provider, hw])),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lines, errors = (text.decode(errors="replace").strip().splitlines() for text in (done.stdout, done.stderr))
    if done.returncode != 0 or not lines:
        why = errors[-1][:200].rstrip(".") if errors else f"code {done.returncode}"
        raise EdgeError(f"What {provider} runs of {path} could not be found out ({why}).", PROVIDER)
    share: float | None = json.loads(lines[-1])
    return share


def profiled_coverage(
    path: Path, chain: Sequence[Any], threads: int, provider: str, hw: Sequence[int] | None = None
) -> float | None:
    """The provider's share in three runs on zeros, of which the first warms up."""
    chain = [name if isinstance(name, str) else tuple(name) for name in chain]  # JSON knows no tuples
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=chain, enable_fallback=0)
        feed, own = {}, (1, 3, *(hw or read_contract(dict(session.get_modelmeta().custom_metadata_map), path).hw))
        for value in session.get_inputs():
            shape = [size if isinstance(size, int) else own[k] for k, size in enumerate(value.shape[:4])]
            feed[value.name] = np.zeros(shape, np.float16 if value.type == "tensor(float16)" else np.float32)
        for _ in range(3):
            session.run(None, feed)
        return profile_coverage(json.loads(Path(session.end_profiling()).read_text()), provider)


def coverage_main(request: str) -> int:
    """The new process of `coverage_in_new_process`: print the share for its request."""
    path, *rest = json.loads(request)
    print(json.dumps(profiled_coverage(Path(path), *rest)))
    return 0
