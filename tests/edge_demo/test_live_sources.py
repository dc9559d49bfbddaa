"""Sources that come over a network or from a driver, against servers and devices whose behaviour is known."""

from __future__ import annotations

import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from edge_demo.cameras import CameraRequest, configure, list_cameras, parse_camera, why_closed
from edge_demo.capture import Item, Status, Timing, capture
from edge_demo.channel import Channel
from edge_demo.errors import InputError
from edge_demo.source import Source, Timeouts
from edge_demo.sources import open_source
from edge_demo.stills import SnapshotSource
from edge_demo.video import Backlog

QUICK = Timeouts(open_ms=2000, read_ms=1000)
FAST = Timing(stale_s=0.5, backoff_s=0.05, backoff_max_s=0.2)


def wait_for(condition: Callable[[], bool], timeout_s: float = 8.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Running:
    """A capture thread on a live source."""

    def __init__(self, source: Source, *, wait: bool = False) -> None:
        self.states: list[tuple[str, str]] = []
        self.frames: Channel[Item] = Channel(1, newest_wins=True)
        self.stop = threading.Event()
        self.status = Status(lambda state, reason: self.states.append((state, reason)), FAST)
        arguments = {"paced": True, "wait": wait}
        self.thread = threading.Thread(
            target=capture, args=(source, self.frames, self.status, self.stop), kwargs=arguments, daemon=True
        )
        self.thread.start()

    def reasons(self) -> str:
        return " ".join(reason for _, reason in self.states)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(5)
        assert not self.thread.is_alive()


class TestRtsp:
    @pytest.fixture
    def rtsp(self, rtsp_module: ModuleType, camera_module: ModuleType) -> Iterator[Any]:
        camera = rtsp_module.FakeRtsp(lambda: camera_module.stamp(time.monotonic_ns() // 1_000_000))
        yield camera
        camera.kill()

    def test_fresh_frames_and_a_true_backlog(self, rtsp: Any, camera_module: ModuleType) -> None:
        source = open_source(rtsp.url, QUICK)
        assert source.open() == "640x480"
        assert "secret" not in source.name

        def read() -> tuple[float, float]:
            got = source.read()
            assert got is not None
            assert got.behind_ms is not None
            return time.monotonic() * 1000 - camera_module.read_stamp(got.frame), got.behind_ms

        fresh = [read() for _ in range(30)]
        assert np.median([age for age, _ in fresh]) < 150  # FFmpeg's own buffer alone would be a second
        time.sleep(1.0)
        late = [read() for _ in range(8)]
        assert late[3][0] > 500
        usual = np.median([age for age, _ in fresh])
        for age, behind in late:
            assert behind == pytest.approx(age - usual, abs=60)
        source.close()

    def test_a_stall_is_noticed_within_the_read_timeout_and_a_restart_is_found(self, rtsp: Any) -> None:
        running = Running(open_source(rtsp.url, QUICK))
        wait_for(lambda: running.status.captured > 3)
        rtsp.mode = "stall"
        start = time.monotonic()
        wait_for(lambda: ("LOST", "the source gives no more frames") in running.states)
        assert time.monotonic() - start < QUICK.read_ms / 1000 + 1.5
        rtsp.kill()
        rtsp.mode = "run"
        rtsp.start()
        wait_for(lambda: running.status.reconnects >= 1 and running.states[-1][0] == "LIVE")
        running.end()


class TestSnapshot:
    def test_a_picture_per_request_with_the_password_in_a_header(self, camera: Any) -> None:
        source = open_source(camera.snapshot_url, QUICK)
        assert isinstance(source, SnapshotSource)
        assert source.open() == "640x480, one picture per request"
        assert "secret" not in source.name
        got = source.read()
        assert got is not None
        assert got.frame.shape == (480, 640, 3)
        assert camera.seen[-1] == ("/snapshot.jpg", "Basic dXNlcjpzZWNyZXQ=")  # base64 of user:secret, RFC 7617

    @pytest.mark.parametrize(
        ("mode", "says"), [("close", "answers 404"), ("garbage", "is no picture"), ("stall", "does not open")]
    )
    def test_what_is_no_picture_is_told(self, camera: Any, mode: str, says: str) -> None:
        camera.mode = mode
        with pytest.raises(InputError, match=says):
            open_source(camera.snapshot_url, Timeouts(500, 500)).open()

    def test_it_is_lost_and_found_like_any_camera(self, camera: Any) -> None:
        running = Running(open_source(camera.snapshot_url, QUICK))
        wait_for(lambda: running.status.captured > 1)
        camera.kill()
        wait_for(lambda: running.states[-1][0] in ("LOST", "BACKOFF"))
        camera.start()
        wait_for(lambda: running.states[-1][0] == "LIVE")
        running.end()


def make_certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate with its key for a subject alternative name."""
    folder.mkdir()
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=camera -keyout key.pem -out cert.pem"
    try:
        words = [*command.split(), "-addext", f"subjectAltName={name}"]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl command here")
    path = folder / "both.pem"
    path.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return path


class TestTls:
    @pytest.fixture
    def encrypted(self, camera_module: ModuleType) -> Iterator[Callable[[Path], Any]]:
        cameras = []

        def start(certificate: Path) -> Any:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            cameras.append(camera_module.FakeCamera(tls=context))
            return cameras[-1]

        yield start
        for camera in cameras:
            camera.kill()

    @pytest.mark.parametrize("address", ["url", "snapshot_url"])
    def test_an_unknown_certificate_is_refused_unless_told_otherwise(
        self, address: str, tmp_path: Path, encrypted: Callable[[Path], Any]
    ) -> None:
        url = getattr(encrypted(make_certificate(tmp_path / "one", "IP:127.0.0.1")), address)
        with pytest.raises(InputError, match=r"certificate|CERTIFICATE_VERIFY_FAILED") as refused:
            open_source(url, QUICK).open()
        assert "secret" not in str(refused.value)
        source = open_source(url, QUICK, verify_tls=False)
        assert source.open().startswith("640x480")
        source.close()

    def test_a_trusted_one_is_taken_only_with_the_right_name(
        self,
        tmp_path: Path,
        encrypted: Callable[[Path], Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        right, wrong = (make_certificate(tmp_path / name, name) for name in ("IP:127.0.0.1", "DNS:elsewhere.example"))
        monkeypatch.setenv("SSL_CERT_FILE", str(right))
        source = open_source(encrypted(right).url, QUICK)
        assert source.open() == "640x480"
        assert source.read() is not None
        source.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(wrong))
        with pytest.raises(InputError, match=r"not accepted .*127\.0\.0\.1"):
            open_source(encrypted(wrong).url, QUICK).open()


class Device:
    """A V4L2 camera as its driver behaves: every format change resets the rest; 1280x720 only as MJPG."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.values: dict[int, float] = {}

    def set(self, key: int, value: float) -> bool:
        self.asked.append(key)
        if key == cv2.CAP_PROP_FOURCC:
            self.values = {}
        self.values[key] = value
        return True

    def get(self, key: int) -> float:
        fourcc = self.values.get(cv2.CAP_PROP_FOURCC, float(cv2.VideoWriter_fourcc(*"YUYV")))
        small = fourcc != cv2.VideoWriter_fourcc(*"MJPG")
        return {
            cv2.CAP_PROP_FOURCC: fourcc,
            cv2.CAP_PROP_FRAME_WIDTH: 640.0 if small else self.values.get(cv2.CAP_PROP_FRAME_WIDTH, 640.0),
            cv2.CAP_PROP_FRAME_HEIGHT: 480.0 if small else self.values.get(cv2.CAP_PROP_FRAME_HEIGHT, 480.0),
            cv2.CAP_PROP_FPS: min(self.values.get(cv2.CAP_PROP_FPS, 30.0), 30.0),
        }[key]


class TestCameras:
    def test_the_format_is_asked_for_first_and_what_is_granted_is_told(self) -> None:
        device = Device()
        told = configure(cv2, device, CameraRequest(0, size_wh=(1280, 720)))
        assert told == "1280x720, MJPG, 30 FPS"
        assert device.asked[0] == cv2.CAP_PROP_FOURCC
        assert device.asked.index(cv2.CAP_PROP_FRAME_WIDTH) < device.asked.index(cv2.CAP_PROP_FPS)
        told = configure(cv2, Device(), CameraRequest(0, "YUYV", (1280, 720), 60.0))
        assert told == "640x480, YUYV, 30 FPS (asked for 1280x720, 60 FPS)"

    def test_options_are_read_in_any_order(self) -> None:
        assert parse_camera("3") == CameraRequest(3)
        assert parse_camera("/dev/video12") == CameraRequest(12)
        asked = CameraRequest(1, "YUYV", (1280, 720), 7.5)
        assert parse_camera("v4l2:/dev/video1,fps=7.5,fourcc=yuyv,size=1280x720") == asked
        assert parse_camera("v4l2:1,size=1280x720,fourcc=YUYV,fps=7.5") == asked
        assert open_source("v4l2:1,size=1280x720").name == "camera 1"

    @pytest.mark.parametrize(
        "text", ["v4l2:", "v4l2:x", "v4l2:0,size=big", "v4l2:0,fps=0", "v4l2:0,fps=1,fps=2", "v4l2:0,zoom=1", "v4l2:0,"]
    )
    def test_what_is_not_understood_is_refused_with_the_form(self, text: str) -> None:
        with pytest.raises(InputError, match="form: v4l2:DEVICE"):
            open_source(text)

    def test_why_a_camera_does_not_open(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert why_closed(0, tmp_path) == (
            f"there is no {tmp_path}/video0",
            "there is no camera at all; or try --source synthetic",
        )
        (tmp_path / "video2").touch()
        assert "there are: 2" in why_closed(0, tmp_path)[1]
        assert why_closed(2, tmp_path)[0] == "busy, or not a camera"
        monkeypatch.setattr("os.access", lambda *_: False)
        reason, hint = why_closed(2, tmp_path)
        assert reason == f"no permission for {tmp_path}/video2"
        assert "usermod -aG video" in hint

    def test_the_list_names_each_and_says_what_it_grants(self, tmp_path: Path) -> None:
        dev, names = tmp_path / "dev", tmp_path / "sys"
        for name in ("video10", "video2", "video-old"):
            (dev / name).mkdir(parents=True)
        (names / "video2").mkdir(parents=True)
        (names / "video2" / "name").write_text("HD Webcam\n")

        def open_camera(asked: CameraRequest) -> str:
            if asked.index == 10:
                raise InputError("camera 10: does not open (busy, or not a camera)", "wait")
            return "640x480, MJPG, 30 FPS"

        assert list_cameras(open_camera, dev=dev, sysfs=names) == [
            ("2", "HD Webcam", "640x480, MJPG, 30 FPS"),
            ("10", "unknown", "does not open (busy, or not a camera)"),
        ]


class TestSequence:
    def test_by_number_with_gaps_told(self, tmp_path: Path) -> None:
        for number in (3, 4, 7, 12):
            cv2.imwrite(str(tmp_path / f"f{number:03d}.png"), np.full((8, 8, 3), number, np.uint8))
        (tmp_path / "f12.png").write_bytes(b"fewer digits than the pattern says")
        source = open_source(str(tmp_path / "f%03d.png"))
        assert source.open() == "4 images, 6 numbers between them are missing"
        levels = []
        while (got := source.read()) is not None:
            levels.append(int(got.frame.mean()))
        assert levels == [3, 4, 7, 12]

    @pytest.mark.parametrize("pattern", ["%04d.png", "a%db%d.png", "%s.png", "%d.txt", "none/%d.png"])
    def test_a_pattern_without_files_is_refused(self, tmp_path: Path, pattern: str) -> None:
        with pytest.raises(InputError):
            open_source(str(tmp_path / pattern))


class TestMetadata:
    @pytest.mark.parametrize("fps", [0, 90_000])
    def test_an_unbelievable_rate_is_not_used(self, fps: int, levels_video: Path) -> None:
        content = bytearray(levels_video.read_bytes())
        at = content.index(b"strh") + 8  # AVISTREAMHEADER: dwScale at 20, dwRate at 24
        content[at + 20 : at + 24] = (1).to_bytes(4, "little")
        content[at + 24 : at + 28] = fps.to_bytes(4, "little")
        levels_video.write_bytes(content)
        source = open_source(str(levels_video))
        told = source.open()
        frames = 0
        while source.read() is not None:
            frames += 1
        source.close()
        assert frames == 40
        assert source.pace_s is None or 1 / 240 <= source.pace_s <= 1
        if source.pace_s is None:
            assert "not believed" in told

    def test_the_backlog_is_zero_at_its_least(self) -> None:
        backlog = Backlog()
        assert backlog.behind_ms(0.0, 5000.0) is None
        gaps = [
            backlog.behind_ms(position, position + 5000 + late) for position, late in ((33, 80), (66, 20), (99, 520))
        ]
        assert gaps == [0, 0, 500]


class TestTrouble:
    def scene(self, camera_module: ModuleType) -> Callable[[], Any]:
        """A textured picture with a sensor's noise."""
        random = np.random.default_rng(1)
        base = cv2.resize(random.integers(0, 255, (12, 16, 3), dtype=np.uint8), (640, 480)).astype(np.int16)

        def picture() -> Any:
            return np.clip(base + random.integers(-6, 7, base.shape, dtype=np.int16), 0, 255).astype(np.uint8)

        return picture

    def test_cut_off_frames_are_told_although_the_decoder_is_content(
        self, camera: Any, camera_module: ModuleType
    ) -> None:
        camera.picture, camera.fps = self.scene(camera_module), 60.0
        running = Running(open_source(camera.url, QUICK))
        wait_for(lambda: running.status.captured > 45)
        assert running.status.warning == ""
        camera.mode = "garbage"
        wait_for(lambda: "garbled picture" in running.reasons())
        camera.mode = "run"
        wait_for(lambda: running.status.warning == "")
        running.end()

    def test_another_size_is_survived_and_told_once_the_stream_opens_again(self, camera: Any) -> None:
        """OpenCV goes on in the old size, stretched, and does not tell; a new connection has the new one."""
        running = Running(open_source(camera.url, QUICK))
        wait_for(lambda: running.status.captured > 3)
        camera.picture = lambda: np.full((360, 640, 3), time.monotonic_ns() // 10**7 % 256, np.uint8)
        before = running.status.captured
        wait_for(lambda: running.status.captured > before + 10)
        assert running.states[-1][0] == "LIVE"
        camera.kill()
        camera.start()
        wait_for(lambda: "the picture is now 640x360" in running.reasons())
        running.end()

    def test_a_camera_that_is_not_there_yet_is_waited_for(self, camera: Any) -> None:
        camera.kill()
        running = Running(open_source(camera.url, QUICK), wait=True)
        wait_for(lambda: [state for state, _ in running.states].count("BACKOFF") >= 2)
        camera.start()
        wait_for(lambda: running.status.captured > 3)
        running.end()
