"""`bench` on a video file or a camera, on a scripted clock and on real files; and measuring on noise without images."""

from __future__ import annotations

import json
import threading

import cv2
import numpy as np
import pytest
from helpers.cli import refusal
from helpers.edge import measured, metadata, toy

from yolokd.latency.bench import bench
from yolokd_edge import cli
from yolokd_edge.bench.options import BenchOptions, Limits
from yolokd_edge.common import EdgeError
from yolokd_edge.images import noise_frames
from yolokd_edge.load import camera as camera_module
from yolokd_edge.load import capture
from yolokd_edge.load.camera import Camera, Captured, Newest
from yolokd_edge.load.capture import STAGES, is_moving, make_results, watch

MS = 1_000_000  # ns
PIXELS = np.zeros((8, 8, 3), np.uint8)


class Scene:
    """A camera that delivers every `every` ms, and a detector that takes (1, ms, 2) ms, on one clock."""

    threads, candidates = 1, 0

    def __init__(self, every: int, ms: int, frames: int) -> None:
        self.every, self.ms, self.frames, self.now = every, ms, frames, 0
        self.newest, self.delivered = Newest(), 0

    def clock(self) -> int:
        return self.now

    def deliver(self, until: int) -> None:
        while self.delivered < self.frames and self.delivered * self.every * MS <= until:
            self.newest.put(Captured(PIXELS, self.delivered * self.every * MS))
            self.delivered += 1
        if self.delivered == self.frames:
            self.newest.end()

    def take(self) -> Captured | None:
        self.deliver(self.now)
        waiting = self.delivered * self.every * MS
        if self.newest.captured - self.newest.dropped == self.taken and self.delivered < self.frames:
            self.now = waiting  # nothing is there: wait for the next one
            self.deliver(self.now)
        frame = self.newest.take(0)
        self.taken += frame is not None
        return frame

    taken = 0

    def preprocess(self, frame):
        self.now += MS
        return None, None

    def infer(self, blob):
        self.now += self.ms * MS

    def postprocess(self, raw, box):
        self.now += 2 * MS
        return []


def test_a_detector_that_is_fast_enough_waits_for_each_frame() -> None:
    scene = Scene(every=33, ms=10, frames=20)
    times, seconds = watch(scene, scene.take, Limits(100, 0, 60), scene.clock)
    assert times.tolist() == [[0, MS, 10 * MS, 2 * MS, 13 * MS]] * 20
    found = make_results(times, seconds, scene.newest.captured, scene.newest.dropped)
    assert (found["captured"], found["dropped"], found["n"]) == (20, 0, 20)
    assert seconds == pytest.approx((19 * 33 + 13) / 1e3) and found["results_per_s"] == pytest.approx(20 / seconds)


def test_a_detector_that_is_too_slow_drops_frames_and_takes_the_newest() -> None:
    """A frame every 10 ms, 25 ms each: of those that came meanwhile the newest is taken, 0 or 5 ms old."""
    scene = Scene(every=10, ms=22, frames=101)
    times, seconds = watch(scene, scene.take, Limits(1000, 0, 60), scene.clock)
    waits = times[:, STAGES.index("wait")] / MS
    assert waits[:6].tolist() == [0, 5, 0, 5, 0, 5]
    assert set(times[:, -1] / MS) == {25, 30}
    newest = scene.newest
    assert newest.captured == 101 == len(times) + newest.dropped and newest.dropped == 60
    found = make_results(times, seconds, newest.captured, newest.dropped)
    assert found["dropped_share"] == 60 / 101 and found["stages"]["total"]["max"] == 30


def test_limits_end_a_camera_that_never_ends() -> None:
    for limits, expected in ((Limits(7, 0, 60), 7), (Limits(1, 0.2, 60), 21), (Limits(1000, 9, 0.1), 11)):
        scene = Scene(every=10, ms=1, frames=10**6)
        assert len(watch(scene, scene.take, limits, scene.clock)[0]) == pytest.approx(expected, abs=1)


def test_the_newest_frame_ends_with_what_ended_it() -> None:
    newest = Newest()
    with pytest.raises(TimeoutError):
        newest.take(0)
    threading.Timer(0.05, newest.put, [Captured(PIXELS, 5)]).start()
    assert newest.take(20).at == 5
    newest.put(Captured(PIXELS, 6))
    newest.end(EdgeError("gone"))
    assert newest.take(0).at == 6  # the last frame is still worth a result
    with pytest.raises(EdgeError, match="gone"):
        newest.take(0)


# --- files and cameras ----------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    return toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 100, (64, 48))
    for k in range(40):
        writer.write(np.full((48, 64, 3), 5 * k, np.uint8))
    writer.release()
    return path


class FakeVideo:
    """A camera that gives some frames and then goes away, or hangs."""

    def __init__(self, frames: int, hangs: bool = False) -> None:
        self.left, self.hangs, self.released = frames, hangs, threading.Event()

    def isOpened(self):  # noqa: N802
        return True

    def get(self, what):
        return 0.0

    def read(self):
        self.left -= 1
        if self.left < 0 and self.hangs:
            self.released.wait(20)
        return self.left >= 0, PIXELS

    def release(self):
        self.released.set()


def test_a_video_file_delivers_at_its_own_rate(model, video, tmp_path, capsys) -> None:
    out = tmp_path / "capture.json"
    words = ["bench", "--model", str(model), "--source", str(video), "--threads", "1", "--out", str(out)]
    assert cli.main([*words, "--time-limit", "5"]) == 0
    text, record = capsys.readouterr().out, json.loads(out.read_text())
    found = record["results"]
    assert record["schema"] == "yolokd.capture/1" and record["protocol"]["source_fps"] == 100
    assert found["captured"] == 40 == found["n"] + found["dropped"]
    assert found["seconds"] >= 0.39  # 40 frames at 100 a second take that long, however fast they are decoded
    assert all(found["stages"][stage]["min"] >= 0 for stage in STAGES)
    assert "40 frames captured" in text and "latency from capture to result" in text
    assert any("at least 100 wanted" in reason for reason in record["stability"]["reasons"])
    assert cli.main(words) == 2 and "exists already" in capsys.readouterr().err


def test_a_camera_that_goes_away_is_one_sentence(model, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *source: FakeVideo(5))
    assert cli.main(["bench", "--model", str(model), "--source", "0", "--time-limit", "1"]) == 2
    assert capsys.readouterr().err == "yolokd_edge: The camera 0 gave no more pictures after 5 frames.\n"
    hanging = FakeVideo(3, hangs=True)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *source: hanging)
    monkeypatch.setattr(camera_module, "SILENCE_S", 0.2)
    take = Newest.take
    monkeypatch.setattr(Newest, "take", lambda self: take(self, 0.2))
    with Camera("0") as camera, pytest.raises(EdgeError, match="gave no picture for 0 s, after 3 frames"):
        while camera.take() is not None:
            pass
    hanging.release()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threads": "1,2"}, "one model with one value of each option"),
        ({"streams": 2}, "one model with one value of each option"),
        ({"power": True}, "power and trtexec go with images"),
        ({"repeats": 3}, "measured in one run"),
    ],
)
def test_what_a_camera_cannot_do_is_refused(model, video, options, sentence) -> None:
    with pytest.raises(EdgeError, match=sentence):
        capture.measure_capture(BenchOptions([model], str(video), **options))


def test_a_file_that_tells_no_rate_or_is_slow_to_decode_is_doubted() -> None:
    found = {"n": 100, "seconds": 5.0, "captured_per_s": 20.0}
    limits = Limits(100, 3, 60)

    class Source:
        is_file, fps = True, None

    texts = capture.doubts(found, limits, Source(), 0.0, True, 1)
    assert texts == [
        "the file tells no rate: taken as 30 frames per second",
        "decoding could not keep up: 20.0 of 30.0 frames per second",
    ]
    Source.is_file = False
    assert capture.doubts(found, limits, Source(), 0.0, True, 1) == []
    assert "warmup_not_stable" in capture.doubts(found, limits, Source(), 0.0, False, 1)[0]


def test_what_moves() -> None:
    assert all(map(is_moving, ("0", "/dev/video0", "rtsp://a", "a.MP4", "b.avi")))
    assert not any(map(is_moving, ("images", "a.jpg", [PIXELS], None)))


def test_the_verb_takes_a_video_too(model, video, tmp_path, capsys) -> None:
    (record,) = bench(model, video, threads=1, time_limit=2, project=tmp_path)
    kept = json.loads((tmp_path / "bench" / "capture.json").read_text())
    assert kept == json.loads(json.dumps(record)) and kept["results"]["captured"] == 40


# --- without images -------------------------------------------------------------------------------------------------


def test_noise_is_the_same_for_the_same_seed() -> None:
    frames = noise_frames((32, 64), 1)
    assert len(frames) == 32 and {f.shape for f in frames} == {(32, 64, 3)} and frames[0].dtype == np.uint8
    assert len({f.tobytes() for f in frames}) == 32 and 120 < np.mean(frames) < 135
    again, other = noise_frames((32, 64), 1), noise_frames((32, 64), 2)
    assert np.array_equal(frames, again) and not np.array_equal(frames, other)


@pytest.mark.parametrize("repeats", [1, 2])
def test_bench_on_noise_says_so(model, repeats) -> None:
    (record,) = measured([model], None, random=True, repeats=repeats, time_limit=0.1, threads=1)
    images = record["protocol"]["images"]
    assert images["random"] and images["source_hw"] == [[32, 64]] and images["n"] == 32
    reasons = record["stability"]["reasons"]
    assert any(reason.startswith("random: frames were noise") for reason in reasons)
    assert not any("different images" in reason for reason in reasons)


def test_images_and_noise_exclude_each_other(model, capsys) -> None:
    with pytest.raises(EdgeError, match="give either random or a source"):
        BenchOptions([model], "images", random=True)
    with pytest.raises(EdgeError, match="at least one model and one image"):
        measured([model], None)
    assert cli.main(["bench", "--model", str(model)]) == 2
    assert "or --random for noise" in capsys.readouterr().err
    assert "or random=True for noise" in refusal(capsys, model.parent, "bench", f"model={model}")
