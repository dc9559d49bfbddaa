"""Sources, the slot, and the capture thread: order, drops, stalls, reconnects, and every source that does not open."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.capture import Item, Status, Timing, capture
from edge_demo.channel import Channel
from edge_demo.errors import InputError
from edge_demo.sources import Captured, Timeouts, capture_time_ns, open_source, redact
from edge_demo.synthetic import FRAMES_PER_DIGIT, SyntheticSource, draw_digit

FAST = Timing(stale_s=0.5, backoff_s=0.05, backoff_max_s=0.2)


@pytest.fixture
def video(tmp_path: Path, camera_module: ModuleType) -> tuple[Path, int]:
    """A video of 45 frames, each carrying its own number."""
    path, count = tmp_path / "numbers.avi", 45
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (640, 480))
    for number in range(count):
        writer.write(camera_module.stamp(number))
    writer.release()
    return path, count


def read_all(source: Any, frames: Channel[Item], *, paced: bool = False) -> tuple[list[Item], Status, list[str]]:
    """Run the capture thread's body on one thread and take its frames on another."""
    states: list[str] = []
    status = Status(lambda state, reason: states.append(state), FAST)
    thread = threading.Thread(target=capture, args=(source, frames, status, threading.Event()), kwargs={"paced": paced})
    thread.start()
    taken = []
    while not frames.ended:
        item = frames.get(0.2)
        if item:
            taken.append(item)
    thread.join()
    return taken, status, states


def wait_for(condition: Callable[[], bool], timeout_s: float = 8.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class TestChannel:
    @settings(max_examples=50)
    @given(st.lists(st.integers(), max_size=50), st.integers(1, 5))
    def test_newest_wins_and_drops_are_counted(self, items: list[int], capacity: int) -> None:
        channel: Channel[int] = Channel(capacity, newest_wins=True)
        for item in items:
            assert channel.put(item)
        channel.close()
        got = []
        while not channel.ended:
            got.append(channel.get(0))
        assert got == items[-capacity:]
        assert channel.dropped == max(0, len(items) - capacity)
        assert not channel.put(1)
        assert channel.get(1) is None

    def test_a_full_queue_makes_the_producer_wait_and_loses_nothing(self) -> None:
        channel: Channel[int] = Channel(2, newest_wins=False)
        producer = threading.Thread(target=lambda: ([channel.put(i) for i in range(200)], channel.close()))
        producer.start()
        got = []
        while not channel.ended:
            item = channel.get(1)
            if item is not None:
                got.append(item)
        producer.join()
        assert got == list(range(200))
        assert channel.dropped == 0

    def test_closing_frees_a_producer_that_waits(self) -> None:
        channel: Channel[int] = Channel(1, newest_wins=False)
        channel.put(0)
        answers: list[bool] = []
        producer = threading.Thread(target=lambda: answers.append(channel.put(1)))
        producer.start()
        channel.close()
        producer.join(5)
        assert answers == [False]

    def test_capacity_must_hold_something(self) -> None:
        with pytest.raises(ValueError, match="below 1"):
            Channel(0, newest_wins=True)


class TestFiles:
    def test_every_frame_of_a_video_once_and_in_order(self, video: tuple[Path, int], camera_module: ModuleType) -> None:
        path, count = video
        taken, status, states = read_all(open_source(str(path)), Channel(4, newest_wins=False))
        assert [camera_module.read_stamp(item.captured.frame) for item in taken] == list(range(count))
        assert [item.frame_id for item in taken] == list(range(count))
        assert states == ["CONNECTING", "LIVE", "ENDED"]
        assert status.reason == ""

    def test_paced_a_video_takes_the_time_it_shows(self, video: tuple[Path, int]) -> None:
        taken, _, _ = read_all(open_source(str(video[0])), Channel(4, newest_wins=False), paced=True)
        between = np.diff([item.captured.t_mono_ns for item in taken]) / 1e6
        assert len(taken) == video[1]
        assert between.sum() >= 0.95 * (video[1] - 1) * 1000 / 30

    def test_a_cut_video_says_how_much_of_it_could_be_read(self, video: tuple[Path, int]) -> None:
        path, count = video
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        taken, status, states = read_all(open_source(str(path)), Channel(4, newest_wins=False))
        assert 0 < len(taken) < count
        assert states[-1] == "ENDED"
        assert status.reason == f"{len(taken)} frames read, {count} announced by the file"

    def test_images_in_natural_order_each_once(self, tmp_path: Path) -> None:
        for number in (10, 2, 1):
            cv2.imwrite(str(tmp_path / f"frame{number}.png"), np.full((8, 8, 3), number, np.uint8))
        (tmp_path / "notes.txt").write_text("not an image")
        taken, _, _ = read_all(open_source(str(tmp_path)), Channel(4, newest_wins=False))
        assert [item.captured.item for item in taken] == ["frame1.png", "frame2.png", "frame10.png"]
        assert [int(item.captured.frame.mean()) for item in taken] == [1, 2, 10]

    def test_an_unreadable_image_ends_the_run_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"no picture")
        status = Status(lambda state, reason: None)
        with pytest.raises(InputError, match=r"broken\.png"):
            capture(open_source(str(tmp_path)), Channel(4, newest_wins=False), status, threading.Event(), paced=False)


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("missing.avi", "missing.avi: no such source; give a file"),
            ("ftp://host/x", "ftp://host/x: not a URL the demo opens"),
            ("concat:a.ts|b.ts", "no such source"),
            ("http://", "not a URL"),
            ("http://[", "not a URL (Invalid IPv6 URL)"),
            ("123456789", "no such source"),
            ("", "--source is empty; give a file"),
        ],
    )
    def test_by_its_name(self, text: str, says: str) -> None:
        with pytest.raises(InputError) as refused:
            open_source(text)
        assert says in str(refused.value)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no images in this folder"):
            open_source(str(tmp_path))

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("99", r"does not open.*; .*synthetic"),
            ("/dev/video98", r"does not open.*; .*synthetic"),
            ("http://name:word@127.0.0.1:9/x.mjpg", r"does not open \(nobody listens at port 9\); check"),
        ],
    )
    def test_a_camera_that_is_not_there(self, text: str, match: str) -> None:
        source = open_source(text, Timeouts(open_ms=1000, read_ms=1000))
        with pytest.raises(InputError, match=match) as refused:
            source.open()
        assert "word" not in str(refused.value)

    def test_a_file_that_is_no_video(self, tmp_path: Path) -> None:
        path = tmp_path / "letter.mp4"
        path.write_text("dear reader, " * 100)
        with pytest.raises(InputError, match=r"letter\.mp4: does not open"):
            open_source(str(path)).open()

    def test_the_libraries_add_nothing_to_our_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "letter.mp4"
        path.write_text("dear reader, " * 100)
        script = """
import sys
from edge_demo.errors import InputError
from edge_demo.sources import open_source
for text in sys.argv[1:]:
    try:
        open_source(text).open()
    except InputError:
        print("refused")
"""
        # A process of its own: FFmpeg's log level is set once, when OpenCV first uses it.
        command = [sys.executable, "-c", script, str(path), "99", "http://127.0.0.1:9/x.mjpg"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.stdout, done.stderr) == ("refused\n" * 3, "")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("rtsp://admin:pa@ss@10.0.0.7:554/h264", "rtsp://***@10.0.0.7:554/h264"),
        ("http://cam/v?user=me&pwd=x&q=1", "http://cam/v?user=***&pwd=***&q=1"),
        ("http://cam/v.mjpg", "http://cam/v.mjpg"),
        ("clip@home.avi", "clip@home.avi"),
    ],
)
def test_credentials_are_left_out(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_a_kernel_stamp_counts_only_when_it_is_plausible() -> None:
    assert capture_time_ns(1000.0, 1_030_000_000) == 1_000_000_000
    assert capture_time_ns(0.0, 50_000_000_000) == 50_000_000_000  # no stamp
    assert capture_time_ns(1.7e12, 50_000_000_000) == 50_000_000_000  # wall clock


class TestSynthetic:
    def test_the_same_number_is_the_same_picture_inside_its_region(self) -> None:
        region = (200, 120, 440, 360)
        seen: set[str] = set()
        for which in range(10):
            frame, digit = draw_digit(which * FRAMES_PER_DIGIT, region)
            again, _ = draw_digit(which * FRAMES_PER_DIGIT, region)
            assert frame.shape == (480, 640, 3)
            assert frame.dtype == np.uint8
            assert np.array_equal(frame, again)
            paper = int(frame[0, 0, 0])
            ink = np.abs(frame[..., 0].astype(int) - paper) > 40
            rows, columns = np.nonzero(ink)
            assert len(rows) > 300
            assert columns.min() >= region[0]
            assert columns.max() < region[2]
            assert rows.min() >= region[1]
            assert rows.max() < region[3]
            assert (paper > 128) == (which % 2 == 0)  # dark on light, light on dark, in turn
            seen.add(digit)
        assert seen == set("0123456789")

    def test_live_it_comes_at_camera_speed(self) -> None:
        source = SyntheticSource((0, 0, 480, 480), live=True)
        frames: Channel[Item] = Channel(1, newest_wins=True)
        stop = threading.Event()
        status = Status(lambda state, reason: None)
        thread = threading.Thread(target=capture, args=(source, frames, status, stop), kwargs={"paced": True})
        start = time.monotonic()
        thread.start()
        wait_for(lambda: status.captured >= 15)
        stop.set()
        assert time.monotonic() - start >= 14 / 30
        thread.join(5)
        assert not thread.is_alive()


class Live:
    """A live capture thread with its newest frame, for the camera tests."""

    def __init__(self, url: str) -> None:
        self.states: list[tuple[str, str]] = []
        self.frames: Channel[Item] = Channel(1, newest_wins=True)
        self.stop = threading.Event()
        self.status = Status(lambda state, reason: self.states.append((state, reason)), FAST)
        self.source = open_source(url, Timeouts(open_ms=1000, read_ms=1000))
        self.thread = threading.Thread(
            target=capture,
            args=(self.source, self.frames, self.status, self.stop),
            kwargs={"paced": True},
            daemon=True,
        )
        self.thread.start()

    def names(self) -> list[str]:
        return [state for state, _ in self.states]

    def watch(self) -> bool:
        self.status.check_stale(time.monotonic())
        return True

    def fresh(self, camera_module: ModuleType) -> bool:
        """Whether a frame arrives that was drawn less than half a second ago."""
        item = self.frames.get(0.1)
        return bool(item) and time.monotonic() * 1000 - camera_module.read_stamp(item.captured.frame) < 500

    def end(self) -> None:
        self.stop.set()
        self.thread.join(5)
        assert not self.thread.is_alive()


class TestCamera:
    def test_a_silent_camera_is_stale_and_recovers(self, camera: Any, camera_module: ModuleType) -> None:
        live = Live(camera.url)
        wait_for(lambda: live.status.captured > 5)
        assert "secret" not in live.source.name
        camera.mode = "stall"
        wait_for(lambda: live.watch() and "STALE" in live.names())
        assert live.status.stalls == 1
        camera.mode = "run"
        wait_for(lambda: live.names()[-1] == "LIVE")
        wait_for(lambda: live.fresh(camera_module))
        live.end()

    def test_a_restarted_camera_is_found_again(self, camera: Any, camera_module: ModuleType) -> None:
        live = Live(camera.url)
        wait_for(lambda: live.status.captured > 5)
        camera.kill()
        wait_for(lambda: live.names().count("BACKOFF") >= 2)
        assert live.names()[:5] == ["CONNECTING", "LIVE", "LOST", "BACKOFF", "CONNECTING"]
        camera.start()
        wait_for(lambda: live.names()[-1] == "LIVE")
        wait_for(lambda: live.fresh(camera_module))
        assert live.status.reconnects == 1
        live.end()

    def test_waits_grow_but_not_without_end(self, camera: Any) -> None:
        live = Live(camera.url)
        wait_for(lambda: live.status.captured > 2)
        camera.mode = "close"  # opens, then hangs up at once: as bad as one that does not open
        wait_for(lambda: live.names().count("BACKOFF") >= 5)
        live.end()
        waits = [float(reason.split()[-2]) for state, reason in live.states if state == "BACKOFF"]
        planned = [0.05, 0.1, 0.2, 0.2, 0.2]
        for wait, plan in zip(waits, planned, strict=False):
            assert plan * (1 - FAST.jitter) - 0.01 <= wait <= plan + 0.01

    def test_an_attempt_that_hung_counts_as_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [100.0]
        monkeypatch.setattr("edge_demo.capture.time.monotonic", lambda: clock[0])
        states: list[tuple[str, str]] = []
        stop = threading.Event()

        class Hanging:
            name, kind, live, pace_s = "hanging", "stream", True, None
            tries = 0

            def open(self) -> str:
                self.tries += 1
                clock[0] += 5.0
                if self.tries == 4:
                    stop.set()
                raise InputError("hanging: does not open")

            def close(self) -> None:
                """Nothing to let go."""

        status = Status(lambda state, reason: states.append((state, reason)), FAST)
        capture(Hanging(), Channel[Item](1, newest_wins=True), status, stop, paced=True, wait=True)
        waits = [float(reason.split()[-2]) for state, reason in states if state == "BACKOFF"]
        assert 0 < waits[0] <= FAST.backoff_s + 0.01
        assert waits[1:] == [0.0, 0.0]

    def test_garbage_is_survived(self, camera: Any, camera_module: ModuleType) -> None:
        live = Live(camera.url)
        wait_for(lambda: live.status.captured > 5)
        camera.mode = "garbage"
        time.sleep(0.7)
        camera.mode = "run"
        wait_for(lambda: live.fresh(camera_module))
        live.end()


def test_a_source_that_fails_is_closed_and_ends_its_channel() -> None:
    class Failing:
        name, kind, live, pace_s = "failing", "video", False, None
        closed = False

        def open(self) -> str:
            return ""

        def read(self) -> Captured | None:
            raise InputError("failing: no more")

        def close(self) -> None:
            self.closed = True

    source, frames = Failing(), Channel[Item](1, newest_wins=True)
    with pytest.raises(InputError):
        capture(source, frames, Status(lambda state, reason: None), threading.Event(), paced=False)
    assert source.closed
    assert frames.ended
