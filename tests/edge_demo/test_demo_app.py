"""The demo as a person runs it: JSON lines, sentences, window, signals, and every option that is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import TypeAdapter

from edge_demo import events, render
from edge_demo.app import DemoOptions, DemoSummary, Parts, run_demo
from edge_demo.capture import Timing
from edge_demo.errors import Error, InputError
from edge_demo.sources import Timeouts
from edge_demo.window import PAINT_MS, Window, why_no_window

EVENT: TypeAdapter[events.Event] = TypeAdapter(events.Event)
FAST = Timing(stale_s=0.5, backoff_s=0.05, backoff_max_s=0.2)


class Screen:
    """A window that keeps what it is shown and is closed by hand after `patience` looks."""

    def __init__(self, patience: int = 10**9) -> None:
        self.patience = patience
        self.shown: list[Any] = []
        self.closed = False
        self.keys: list[str] = []

    def show(self, frame: Any) -> bool:
        time.sleep(0.005)
        if frame is not None:
            self.shown.append(frame)
        self.patience -= 1
        return self.patience > 0

    def key(self) -> str:
        return self.keys.pop(0) if self.keys else ""

    def close(self) -> None:
        self.closed = True


class Demo:
    """run_demo on a fake bundle and runtime, with what it said and wrote."""

    def __init__(self, bundle: Any, runtime: Any, folder: Path) -> None:
        self.said: list[str] = []
        self.runtime = runtime
        self.opened: list[tuple[str, bytes, int]] = []
        self.lines = folder / "events.jsonl"
        self.parts = Parts(
            open_bundle=lambda path: bundle,
            open_runtime=self._open,
            why_no_window=lambda: "there is no display",
            say=self.said.append,
            timeouts=Timeouts(open_ms=1000, read_ms=1000),
            timing=FAST,
        )

    def _open(self, name: str, model: bytes, threads: int) -> Any:
        self.opened.append((name, model, threads))
        return self.runtime

    def __call__(self, source: str | Path, stop: threading.Event | None = None, **options: Any) -> DemoSummary:
        given = {"bundle": Path("digits.edge"), "source": str(source), "jsonl": str(self.lines), **options}
        return run_demo(DemoOptions(**given), stop=stop, parts=self.parts)

    def wait_for(self, words: str, times: int = 1) -> None:
        """Until that many sentences contain the words."""
        deadline = time.monotonic() + 10
        while sum(words in sentence for sentence in self.said) < times and time.monotonic() < deadline:
            time.sleep(0.02)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """The lines written, each valid against the schema."""
        lines = self.lines.read_text(encoding="utf-8").splitlines()
        for line in lines:
            EVENT.validate_json(line)
        parsed = [json.loads(line) for line in lines]
        assert [event["seq"] for event in parsed] == list(range(len(parsed)))
        return [event for event in parsed if kind in ("", event["type"])]


@pytest.fixture
def demo(fake_bundle: Any, brightness_runtime: Callable[..., Any], tmp_path: Path) -> Demo:
    return Demo(fake_bundle, brightness_runtime(), tmp_path)


class TestLines:
    def test_a_video_gives_one_right_line_per_frame_in_order(self, demo: Demo, levels_video: Path) -> None:
        summary = demo(levels_video)
        results = demo.events("result")
        assert [line["frame_id"] for line in results] == list(range(40))
        # JPEG may move a flat grey by one level.
        for number, line in enumerate(results):
            assert line["result"]["class_id"] in {max(0, number * 6 + d) // 26 for d in (-1, 0, 1)}
            assert line["result"]["label"] == str(line["result"]["class_id"])
        first = results[0]
        assert (first["schema"], first["task"], first["source"]) == ("edge-event/1", "classify", str(levels_video))
        assert (first["width"], first["height"], first["dropped_since_last"]) == (320, 240, 0)
        assert set(first["stage_ms"]) == {"capture", "pre", "infer", "post"}
        assert first["t_wall"].endswith("Z")
        last = demo.events()[-1]
        assert last["type"] == "stats"
        assert (last["captured"], last["processed"], last["dropped"], last["ended"]) == (40, 40, 0, "source ended")
        assert last["age_p99_ms"] is None  # 40 frames have no 99th percentile
        assert last["policy"] == "every"
        assert last["fps"] > 0
        assert summary.stats.processed == 40
        assert summary.line().startswith("source ended: 40 frames in ")
        assert demo.said[-1] == summary.line()
        assert demo.runtime.closed

    def test_stated_ages_and_stages_agree_with_the_clock(self, demo: Demo, levels_video: Path) -> None:
        demo.runtime.delay_s = 0.02
        demo(levels_video, max_frames=10)
        for line in demo.events("result"):
            assert line["stage_ms"]["infer"] >= 20
            assert line["age_ms"] >= line["stage_ms"]["infer"] + line["stage_ms"]["pre"]

    def test_images_carry_their_names_and_are_read_whole(self, demo: Demo, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for number in (1, 2, 10):
            frame = np.full((40, 60, 3), 240, dtype=np.uint8)
            frame[10:30, 20:40] = 0  # the bundle's own centred square would see only black
            cv2.imwrite(str(folder / f"{number}.png"), frame)
        demo(folder)
        lines = demo.events("result")
        assert [line["item"] for line in lines] == ["1.png", "2.png", "10.png"]
        assert {line["result"]["class_id"] for line in lines} == {int(240 * (1 - 400 / 2400)) // 26}
        assert "the whole frame" in demo.said[1]
        demo(folder / "1.png", roi=0.5)
        assert demo.events("result")[0]["result"]["class_id"] == 0
        assert "50%" in "".join(demo.said)

    def test_synthetic_carries_its_truth_and_stops_at_the_limit(self, demo: Demo) -> None:
        demo("synthetic", max_frames=20, policy="every")
        results = demo.events("result")
        assert len(results) == 20
        assert {line["truth"] for line in results} <= set("0123456789")
        assert demo.events("stats")[0]["ended"] == "frame limit reached"
        assert demo("synthetic", max_frames=9, policy="every").stats.fps is None  # too few frames to have a rate

    def test_live_a_slow_model_drops_frames_and_says_so(self, demo: Demo) -> None:
        demo.runtime.delay_s = 0.1
        summary = demo("synthetic", duration_s=1.2)
        results = demo.events("result")
        assert summary.stats.dropped > 0
        assert sum(line["dropped_since_last"] for line in results) == results[-1]["frame_id"] + 1 - len(results)
        assert summary.stats.ended == "duration reached"

    def test_a_camera_that_stalls_and_dies_is_told_in_states(self, demo: Demo, camera: Any) -> None:
        stop = threading.Event()

        def trouble() -> None:
            while not demo.runtime.batches:
                time.sleep(0.02)
            camera.mode = "stall"
            demo.wait_for(": STALE")
            camera.mode = "run"
            demo.wait_for(": LIVE")
            camera.kill()
            demo.wait_for(": LOST")
            camera.start()
            demo.wait_for(": LIVE", times=2)
            stop.set()

        threading.Thread(target=trouble).start()
        summary = demo(camera.url, stop=stop)
        states = [event["state"] for event in demo.events("state")]
        stale = states.index("STALE")
        assert "LIVE" in states[stale:]
        assert "BACKOFF" in states[stale:]
        assert states[-2:] == ["LIVE", "STOPPED"]
        assert (summary.stats.stalls, summary.stats.ended) == (1, "stopped")
        assert summary.stats.reconnects >= 1
        assert "secret" not in demo.lines.read_text() + "".join(demo.said)
        assert "1 stalls" in summary.line()

    def test_a_result_json_has_no_word_for_is_an_error(self, demo: Demo, levels_video: Path) -> None:
        demo.runtime.bind = lambda feeds, bind=demo.runtime.bind: replace(
            bind(feeds),
            outputs={"scores": np.full((1, 10), np.nan, np.float32), "embedding": np.zeros((1, 4), np.float32)},
        )
        with pytest.raises(Error, match="not finite"):
            demo(levels_video)
        assert [event["type"] for event in demo.events()][-2:] == ["error", "stats"]

    def test_an_unreadable_image_ends_the_run_with_earlier_lines_intact(self, demo: Demo, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        cv2.imwrite(str(folder / "1.png"), np.zeros((8, 8, 3), np.uint8))
        (folder / "2.png").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"2\.png"):
            demo(folder)
        kinds = [event["type"] for event in demo.events()]
        assert kinds.count("error") == 1
        assert kinds[-1] == "stats"

    def test_a_full_disk_ends_the_run(self, demo: Demo) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        with pytest.raises(Error, match="/dev/full: cannot write") as failed:
            demo("synthetic", jsonl="/dev/full", max_frames=200, policy="every")
        assert failed.value.exit_code == 1


class TestChoices:
    def test_the_recommended_precision_is_the_default(self, demo: Demo, levels_video: Path) -> None:
        demo(levels_video, threads=2)
        demo(levels_video, precision="fp32", runtime="openvino", threads=1)
        assert demo.opened == [("onnxruntime", b"int8", 2), ("openvino", b"fp32", 1)]
        assert "every frame" in demo.said[1]

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"precision": "int4"}, "--precision int4: not in this bundle; it has: fp32, int8"),
            ({"roi": 0.0}, "decode.roi: 0.0 is not in"),
            ({"duration_s": 0}, "--duration 0: must be above 0"),
            ({"duration_s": float("nan")}, "--duration nan"),
            ({"max_frames": -1}, "--max-frames -1: must be above 0"),
            ({"threads": 0}, "--threads 0"),
            ({"show": "yes"}, "--show yes: unknown; known: auto, window, none"),
            ({"policy": "some"}, "--policy some: unknown"),
            ({"show": "window"}, "--show window: there is no display"),
            ({"jsonl": "/nowhere/events.jsonl"}, "/nowhere/events.jsonl: cannot write"),
            ({"source": "missing.avi"}, "missing.avi: no such source"),
            ({"source": "99"}, "camera 99: does not open"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, demo: Demo, options: dict[str, Any], says: str) -> None:
        with pytest.raises(InputError) as refused:
            demo(**{"source": "synthetic", "max_frames": 1, **options})
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)
        assert refused.value.exit_code == 2

    def test_the_runtime_is_closed_when_the_source_is_refused(self, demo: Demo) -> None:
        with pytest.raises(InputError):
            demo("99")
        assert demo.runtime.closed


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_bundle_gives_its_own_golden_answers(runtime: str, tiny_bundle: Path, tmp_path: Path) -> None:
    lines = tmp_path / "events.jsonl"
    said: list[str] = []
    options = DemoOptions(
        tiny_bundle, str(tiny_bundle / "golden"), show="none", jsonl=str(lines), runtime=runtime, threads=1
    )
    run_demo(options, parts=Parts(say=said.append))
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    got = [line["result"] for line in results if line["type"] == "result"]
    want = json.loads((tiny_bundle / "golden" / "decoded.fp32.json").read_text())
    assert [result["label"] for result in got] == [result["label"] for result in want]
    for ours, golden in zip(got, want, strict=True):
        assert ours["score"] == pytest.approx(golden["score"], abs=1e-4)
    assert said[0].startswith(f"tiny 1.0.0 (classify): {runtime} fp32, 1 thread; every frame; looks at the whole frame")


def test_importing_the_demo_loads_no_heavy_library() -> None:
    heavy = {"torch", "onnx", "cv2", "onnxruntime", "openvino"}
    script = f"import sys, edge_demo.app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


class TestWindow:
    def test_frames_are_shown_and_closing_it_ends_the_run(self, demo: Demo) -> None:
        screen = Screen(patience=60)
        demo.parts = replace(demo.parts, why_no_window=lambda: "", open_window=lambda: screen)
        summary = demo("synthetic", show="window")
        assert summary.stats.ended == "window closed"
        assert screen.closed
        assert len(screen.shown) > 1
        height, width, channels = screen.shown[0].shape
        assert (width, channels) == (640, 3)
        assert height > 480  # the strip is below the picture

    def test_a_still_image_stays_until_the_window_is_closed(self, demo: Demo, tmp_path: Path) -> None:
        screen = Screen(patience=300)
        demo.parts = replace(demo.parts, why_no_window=lambda: "", open_window=lambda: screen)
        cv2.imwrite(str(tmp_path / "one.png"), np.zeros((28, 28, 3), np.uint8))
        summary = demo(tmp_path / "one.png")
        assert (summary.stats.ended, summary.stats.processed) == ("window closed", 1)
        assert len(screen.shown) == 1

    def test_a_frozen_picture_says_that_it_is_frozen(self, demo: Demo, camera: Any) -> None:
        screen = Screen()
        stop = threading.Event()
        demo.parts = replace(demo.parts, why_no_window=lambda: "", open_window=lambda: screen)

        def freeze() -> None:
            while len(screen.shown) < 5:
                time.sleep(0.02)
            camera.mode = "stall"
            demo.wait_for(": STALE")
            time.sleep(0.6)
            stop.set()

        threading.Thread(target=freeze).start()
        demo(camera.url, stop=stop)
        # One more line in the strip: the warning.
        assert screen.shown[-1].shape[0] > screen.shown[0].shape[0]

    def test_without_one_auto_goes_on_and_says_why(self, demo: Demo, levels_video: Path) -> None:
        assert demo(levels_video).stats.processed == 40
        assert demo.said[0] == "no window: there is no display; going on without"

    def test_no_display_is_noticed_without_asking_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        assert why_no_window() != ""

    def test_a_display_that_aborts_the_process_costs_only_the_probe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cv2, "currentUIFramework", lambda: "QT5", raising=False)
        monkeypatch.setenv("DISPLAY", ":98765")
        monkeypatch.setattr("edge_demo.window.PROBE", "import os; os.abort()")
        assert why_no_window() == "the display cannot be used"
        monkeypatch.setattr("edge_demo.window.PROBE", "pass")
        assert why_no_window() == ""

    def test_the_toolkit_gets_its_time_right_after_a_frame_and_keys_are_kept(self) -> None:
        waited: list[int] = []
        codes = iter([-1, ord("t"), -1, ord("q")])

        def wait_key(ms: int) -> int:
            waited.append(ms)
            return next(codes)

        library = SimpleNamespace(
            imshow=lambda title, frame: None,
            waitKey=wait_key,
            getWindowProperty=lambda title, which: 1.0,
            WND_PROP_VISIBLE=4,
        )
        window = Window(library)
        kept = [window.show(frame) for frame in (np.zeros((2, 2, 3), np.uint8), None, None)]
        assert kept == [True, True, True]
        assert waited == [1, PAINT_MS, 1]
        assert (window.key(), window.key()) == ("t", "")
        assert not window.show(None)


class TestRender:
    OVERLAY = render.Overlay(
        answer="7  99%",
        capture_fps=30.0,
        fps=29.8,
        shown_fps=None,
        age_ms=12.4,
        age_p95_ms=18.6,
        stage_ms={"capture": 1.93, "infer": 0.3},
        dropped=4,
        state="LIVE",
        engine="onnxruntime int8",
    )

    def test_the_strip_says_how_fast_how_old_how_many_lost_and_in_what_state(self) -> None:
        assert render.lines(self.OVERLAY) == [
            "LIVE  camera 30.0  model 29.8  shown - FPS  4 dropped",
            "12 ms old (p50), 19 ms (p95)  onnxruntime int8",
            "capture 1.9  infer 0.3 ms",
        ]

    @pytest.mark.parametrize("width", [320, 640, 1280])
    def test_the_strip_fits_and_hides_nothing(self, width: int) -> None:
        frame = np.full((width * 3 // 4, width, 3), 77, dtype=np.uint8)
        shown = render.compose(frame, self.OVERLAY)
        assert np.array_equal(shown[: frame.shape[0]], frame)
        strip = shown[frame.shape[0] :]
        text = np.abs(strip.astype(int) - render.STRIP).max(axis=2) > 60
        columns = np.nonzero(text.any(axis=0))[0]
        assert columns.max() < 0.99 * width  # no line runs out of the picture
        rows = np.nonzero(text.any(axis=1))[0]
        lines = np.split(rows, np.nonzero(np.diff(rows) > 1)[0] + 1)
        assert len(lines) == 4
        assert min(len(line) for line in lines) >= 8  # px: glyphs of a readable height

    def test_a_small_frame_is_enlarged_by_a_whole_number(self) -> None:
        frame = np.arange(28 * 20 * 3, dtype=np.uint8).reshape(28, 20, 3)
        large = render.enlarge(frame)
        assert large.shape == (336, 240, 3)
        assert np.array_equal(large[::12, ::12], frame)
        assert render.enlarge(large) is large

    def test_the_answer_of_any_task_is_one_line(self) -> None:
        assert render.answer({"label": "7", "score": 0.987, "top": []}) == "7  99%"
        assert render.answer({"detections": [1, 2]}) == "2 detections"
        assert render.answer({"caption": "a red ball"}) == "caption a red ball"


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from types import SimpleNamespace
from edge_demo.app import DemoOptions, Parts, run_demo
from edge_demo.manifest import InputContract
from edge_demo.runtime import Bound

manifest = SimpleNamespace(task="classify", name="digits", version="1", labels=tuple("0123456789"), decode={"roi": 0.5},
    recommended="int8", variants=(), input=InputContract(size_wh=(28, 28), colour="gray", mean=(0.0,), std=(1.0,)))
outputs = {"scores": np.eye(10, dtype=np.float32)[[3]], "embedding": np.zeros((1, 4), np.float32)}
runtime = SimpleNamespace(name="onnxruntime", close=lambda: None,
    bind=lambda feeds: Bound(dict(feeds), outputs, lambda: None))
parts = Parts(open_bundle=lambda path: SimpleNamespace(manifest=manifest, model_bytes=lambda precision: b""),
    open_runtime=lambda *given: runtime)
run_demo(DemoOptions(Path("x"), sys.argv[1], jsonl="-", policy=sys.argv[2]), parts=parts)
"""


def start(source: str, policy: str = "auto", **options: Any) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, source, policy],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )
