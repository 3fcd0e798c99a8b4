"""`yolokd_edge profile`: where the time goes, which kinds of operators take it, and what left the accelerator."""

from __future__ import annotations

import json

import pytest
from helpers.edge import colour_frames, export

from yolokd_edge import cli, profiling
from yolokd_edge.common import EdgeError
from yolokd_edge.detector import Detector


@pytest.fixture(scope="module")
def model(tmp_path_factory, teacher):
    return export(teacher, tmp_path_factory.mktemp("onnx") / "teacher.onnx", imgsz=96)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    colour_frames(folder)
    return folder / "scenes" / "images" / "val"


def event(name: str, op: str, provider: str, duration: int) -> dict:
    return {
        "cat": "Node", "name": f"{name}_kernel_time", "dur": duration, "args": {"op_name": op, "provider": provider},
    }  # fmt: skip


def test_medians_shares_and_what_left_the_accelerator():
    """Five runs warm up; other events of a profile do not count."""
    gpu, cpu = "TensorrtExecutionProvider", "CPUExecutionProvider"
    events = [event("engine", "TRTKernel", gpu, 9000) for _ in range(5)] + [
        {"cat": "Session", "name": "model_run", "dur": 1}
    ]
    events += [event("engine", "TRTKernel", gpu, duration) for duration in (3000, 2000, 4000)]
    events += [event("nms", "NonMaxSuppression", cpu, 1000) for _ in range(8)]
    nodes = profiling.ranked(events)
    assert [tuple(n) for n in nodes] == [
        ("engine", "TRTKernel", gpu, 3.0, 0.75),
        ("nms", "NonMaxSuppression", cpu, 1.0, 0.25),
    ]
    assert profiling.summed([*nodes, nodes[1]], "provider") == [(gpu, 1, 3.0, 0.75), (cpu, 2, 2.0, 0.5)]
    found = {
        "model": "a.onnx", "provider": gpu, "threads": 2, "runs": 3, "images": 1, "ms": 4.0,
        "nodes": [n._asdict() for n in nodes], "operators": {}, "left": [nodes[1]._asdict()],
    }  # fmt: skip
    assert f"not on {gpu}: 1 nodes, 25.0% of the time" in profiling.as_text(found, 10)
    assert profiling.ranked([]) == []


def test_the_command_names_the_nodes_that_take_the_time(model, images, capsys):
    assert cli.main(["profile", "--model", str(model), "--source", str(images), "--runs", "3", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "slowest nodes" in text and "operators" in text and "Conv" in text and "not on" not in text
    words = ["profile", "--model", str(model), "--source", str(images), "--runs", "2", "--json"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(n["share"] for n in found["nodes"]) == pytest.approx(1) and found["left"] == []
    assert found["ms"] == pytest.approx(sum(n["ms"] for n in found["nodes"]))
    assert sum(row["nodes"] for row in found["operators"].values()) == len(found["nodes"])
    assert "Conv" in found["operators"], "which operator is slowest, the machine decides"


def test_what_cannot_be_profiled_is_one_sentence(model, images, tmp_path, capsys):
    for words, said in (
        (["--source", str(tmp_path / "gone")], "no image file or folder"),
        (["--source", str(images), "--provider", "cuda"], "CUDAExecutionProvider"),
    ):
        assert cli.main(["profile", "--model", str(model), *words]) in (2, 4)
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
    detector = Detector(model, threads=1)
    detector.active = "openvino:CPU"
    with pytest.raises(EdgeError, match="tells no times of nodes"):
        profiling.profile(detector, [], 1)
    with pytest.raises(EdgeError, match="so nothing is timed"):
        profiling.timed_nodes(tmp_path / "gone.onnx", ["CPUExecutionProvider"], 1, [{}], 1)
