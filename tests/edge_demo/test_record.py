"""Recordings: every frame with its time, room on the disk, and what is left after the process was killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_demo.app import DemoOptions, Parts, run_demo
from edge_demo.capture import Item
from edge_demo.errors import InputError
from edge_demo.events import StateEvent
from edge_demo.loop import Prediction, Processed
from edge_demo.record import Recorder, RecordOptions, make_room, measured_fps, record_options, recordings
from edge_demo.sources import Captured

EVENT = StateEvent(seq=0, source="x", t_wall="", state="LIVE", reason="")


def spawn(name: str, body: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


def frame_of(number: int, size_wh: tuple[int, int] = (160, 120)) -> Any:
    """A flat frame whose grey level is ten times its number."""
    return np.full((size_wh[1], size_wh[0], 3), number * 10 % 250, dtype=np.uint8)


class Tape:
    """A recorder of numbered frames."""

    def __init__(self, folder: Path, fps: float = 20.0, **options: Any) -> None:
        self.said: list[str] = []
        self.fps = fps
        recorder_options = {key: options.pop(key) for key in ("free",) if key in options}
        self.recorder = Recorder(
            RecordOptions(folder, **options),
            lambda processed: processed.item.captured.frame,
            self.said.append,
            spawn=spawn,
            stop=threading.Event(),
            lossless=True,
            **recorder_options,
        )

    def put(self, numbers: range, size_wh: tuple[int, int] = (160, 120)) -> None:
        for number in numbers:
            captured = Captured(frame_of(number, size_wh), 1_000_000_000 + int(number / self.fps * 1e9), 1.0)
            processed = Processed(Item(number, captured), Prediction(None, 0, 0, 0), 1.0, 0)
            self.recorder.heard(EVENT, json.dumps({"frame_id": number}) + "\n", processed)

    def wait(self, state: str) -> None:
        deadline = time.monotonic() + 5
        while self.recorder.now().state != state and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.recorder.now().state == state


def played(path: Path) -> tuple[list[int], float]:
    """The frame numbers a video shows, and its rate."""
    capture = cv2.VideoCapture(str(path))
    numbers = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return numbers, capture.get(cv2.CAP_PROP_FPS)
        numbers.append(round(float(frame.mean()) / 10))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


def videos(folder: Path, form: str = "avi") -> list[Path]:
    return sorted(folder.glob(f"*.{form}"))


@pytest.mark.parametrize(("form", "rate"), [("avi", 12.0), ("webm", 12.5)])
def test_every_frame_is_there_in_order_with_its_line_and_the_true_rate(form: Any, rate: float, tmp_path: Path) -> None:
    tape = Tape(tmp_path, fps=12.5, format=form)
    tape.put(range(20))
    assert tape.recorder.close(10)
    (video,) = videos(tmp_path, form)
    numbers, fps = played(video)
    assert numbers == list(range(20))
    assert fps == pytest.approx(rate, abs=0.1)  # avi holds whole rates only
    head, *rest = lines(video)
    assert head == {"schema": "edge-recording/1", "video": video.name, "fps": rate}
    assert [line["frame_id"] for line in rest] == list(range(20))
    now = tape.recorder.now()
    assert (now.frames, now.segments, now.dropped) == (20, 1, 0)
    assert now.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("size_wh", [(161, 121), (28, 28), (1, 1)])
def test_odd_and_tiny_frames(size_wh: tuple[int, int], tmp_path: Path) -> None:
    tape = Tape(tmp_path)
    tape.put(range(10), size_wh)
    assert tape.recorder.close(10)
    (video,) = videos(tmp_path)
    assert len(played(video)[0]) == 10


def test_fewer_frames_than_the_rate_needs_are_kept(tmp_path: Path) -> None:
    tape = Tape(tmp_path, fps=4)
    tape.put(range(3))
    assert tape.recorder.close(10)
    assert played(videos(tmp_path)[0]) == ([0, 1, 2], 4.0)


def test_a_change_of_size_begins_a_new_file(tmp_path: Path) -> None:
    tape = Tape(tmp_path)
    tape.put(range(10))
    tape.put(range(10, 15), (320, 240))
    tape.recorder.close(10)
    assert [played(video)[0] for video in videos(tmp_path)] == [list(range(10)), list(range(10, 15))]


def test_files_are_closed_after_their_time_and_switched_by_hand(tmp_path: Path) -> None:
    tape = Tape(tmp_path, segment_s=0.3)
    tape.put(range(10))
    tape.wait("recording")
    time.sleep(0.4)
    tape.put(range(10, 12))
    time.sleep(0.1)
    tape.recorder.switch(False)
    deadline = time.monotonic() + 5
    while tape.recorder.now().segments < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert tape.recorder.now().state == "stopped"
    assert not list(tmp_path.glob("*.part.*"))
    tape.put(range(12, 15))  # not recorded
    tape.recorder.switch(True)
    tape.put(range(15, 18))
    tape.recorder.close(10)
    assert [played(video)[0] for video in videos(tmp_path)] == [list(range(10)), [10, 11], [15, 16, 17]]


def test_the_oldest_give_way_and_nothing_else_is_touched(tmp_path: Path) -> None:
    mine = tmp_path / "holiday.avi"
    mine.write_bytes(b"x" * 100_000)
    for minute in range(5):
        for suffix in ("avi", "jsonl"):
            (tmp_path / f"edge-20200101T0{minute}0000000Z.{suffix}").write_bytes(b"x" * 10_000)
    assert sum(size for _, size in recordings(tmp_path)) == 100_000
    assert make_room(tmp_path, 45_000) == 40_000
    left = [path.name for path, _ in recordings(tmp_path)]
    assert left == [f"edge-20200101T0{minute}0000000Z.{suffix}" for minute in (3, 4) for suffix in ("avi", "jsonl")]
    assert mine.exists()


def size_of(folder: Path) -> int:
    """Bytes of the files in it; one that the recorder renames meanwhile is left out."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_the_cap_holds_while_recording(tmp_path: Path) -> None:
    cap = 400_000
    tape = Tape(tmp_path, cap_bytes=cap)
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    most = 0
    for number in range(60):
        captured = Captured(noise, 1_000_000_000 + number * 50_000_000, 1.0)
        tape.recorder.heard(EVENT, "{}\n", Processed(Item(number, captured), Prediction(None, 0, 0, 0), 1.0, 0))
        most = max(most, size_of(tmp_path))
    tape.recorder.close(10)
    assert tape.recorder.now().segments > 4
    assert cap / 2 < most <= cap * 1.1  # one frame more than its share may end a file
    assert tape.recorder.now().frames == 60


def test_a_disk_without_room_is_said_once_and_recording_goes_on_when_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_demo.record.RETRY_S", 0.1)
    room = [10_000_000]
    tape = Tape(tmp_path, free=lambda folder: room[0])
    tape.put(range(20))
    tape.wait("failed")
    time.sleep(0.2)
    tape.put(range(20, 30))
    time.sleep(0.2)
    assert tape.recorder.now().reason.endswith("only 10 MB free on this disk, recording keeps 200 MB free")
    assert len(tape.said) == 1
    assert "the demo goes on" in tape.said[0]
    room[0] = 10**12
    tape.put(range(30, 40))
    tape.wait("recording")
    assert tape.said[1:] == [f"recording again: {tmp_path}"]
    tape.recorder.close(10)
    assert played(videos(tmp_path)[0])[0][-1] == 39 % 25


def test_a_folder_that_cannot_be_written_is_a_state_not_an_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    tape = Tape(file / "recordings")
    tape.put(range(20))
    tape.wait("failed")
    assert str(file) in tape.said[0]
    assert tape.recorder.close(5)


def test_a_format_that_opencv_cannot_write_is_said(tmp_path: Path) -> None:
    tape = Tape(tmp_path, format="webm")
    tape.put(range(10), (160, 120))
    tape.put(range(10, 20), (40_000, 2))
    tape.wait("failed")
    assert "try --record-format avi" in tape.recorder.now().reason
    tape.recorder.close(5)


@pytest.mark.parametrize(("form", "cap_mb"), [("mp4", 2000), ("avi", 1), ("avi", float("nan")), ("avi", -5)])
def test_options_that_make_no_sense(form: str, cap_mb: float) -> None:
    with pytest.raises(InputError, match=r"--record-"):
        record_options(Path("x"), form, cap_mb)


@given(st.lists(st.integers(1_000_000, 2_000_000_000), min_size=1, max_size=20))
def test_a_measured_rate_is_the_mean_within_what_players_take(gaps_ns: list[int]) -> None:
    times = [0, *np.cumsum(gaps_ns).tolist()]
    assert measured_fps(times) == pytest.approx(min(max(1e9 / float(np.mean(gaps_ns)), 0.5), 240.0), abs=0.01)


def test_without_a_span_there_is_a_usual_rate() -> None:
    assert measured_fps([5]) == measured_fps([5, 5]) == 30.0


class TestDemo:
    def test_a_video_file_is_recorded_whole_at_its_own_rate(
        self, fake_bundle: Any, brightness_runtime: Callable[..., Any], levels_video: Path, tmp_path: Path
    ) -> None:
        said: list[str] = []
        parts = Parts(
            open_bundle=lambda path: fake_bundle,
            open_runtime=lambda *given: brightness_runtime(),
            why_no_window=lambda: "no display",
            say=said.append,
        )
        run_demo(DemoOptions(Path("x"), str(levels_video), record=tmp_path / "out"), parts=parts)
        (video,) = videos(tmp_path / "out")
        capture = cv2.VideoCapture(str(video))
        levels = []
        while (got := capture.read())[0]:
            levels.append(got[1][200:, :60].mean())  # beside the region that is drawn on
        assert len(levels) == 40
        assert np.abs(np.array(levels) - np.arange(40) * 6).max() < 3
        assert capture.get(cv2.CAP_PROP_FPS) == 30
        results = lines(video)[1:]
        assert [line["frame_id"] for line in results] == list(range(40))
        assert {line["type"] for line in results} == {"result"}
        assert "recorded 40 frames in 1 file" in said

    @pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is for POSIX")
    def test_after_a_kill_closed_files_and_the_open_one_play(self, tmp_path: Path) -> None:
        script = """
import sys, threading, time
from pathlib import Path
import numpy as np
from edge_demo.capture import Item
from edge_demo.events import StateEvent
from edge_demo.loop import Prediction, Processed
from edge_demo.record import Recorder, RecordOptions
from edge_demo.sources import Captured

def spawn(name, body):
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread

recorder = Recorder(RecordOptions(Path(sys.argv[1]), segment_s=0.7), lambda processed: processed.item.captured.frame,
    print, spawn=spawn, stop=threading.Event(), lossless=True)
event = StateEvent(seq=0, source="x", t_wall="", state="LIVE", reason="")
random = np.random.default_rng(0)
for number in range(10_000):
    frame = np.repeat(random.integers(0, 255, (60, 80, 3), np.uint8), 4, axis=0).repeat(4, axis=1)
    recorder.heard(event, '{"frame_id": %d}\\n' % number,
        Processed(Item(number, Captured(frame, time.monotonic_ns(), 1.0)), Prediction(None, 0, 0, 0), 1.0, 0))
    time.sleep(0.02)
"""
        with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as process:
            deadline = time.monotonic() + 20
            while len(list(tmp_path.glob("*Z.avi"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.4)
            os.kill(process.pid, signal.SIGKILL)
        closed, part = sorted(tmp_path.glob("*Z.avi")), list(tmp_path.glob("*.part.avi"))
        assert len(closed) >= 2
        for video in closed:
            assert len(played(video)[0]) == len(lines(video)) - 1 > 5
        if part:  # killed within the instant between two files there is none
            side = part[0].with_name(part[0].name.replace(".part.avi", ".jsonl"))
            written = len(side.read_text().splitlines()) - 1
            assert len(played(part[0])[0]) >= written - 2
