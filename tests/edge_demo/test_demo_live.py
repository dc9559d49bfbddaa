"""The demo as a whole with several sources, limits, teaching, the latency test, and the automatic choice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from edge_demo.app import DemoOptions, DemoSummary, Parts, run_demo
from edge_demo.capture import Timing
from edge_demo.errors import GateError, InputError
from edge_demo.mosaic import CANVAS_WH
from edge_demo.source import Timeouts


class Screen:
    """A window that keeps what it is shown; `script(shown)` returns the key to press or `close`."""

    def __init__(self, script: Callable[[int], str] = lambda shown: "") -> None:
        self.script, self.shown, self.pressed = script, [], ""
        self.closed = False

    def show(self, frame: Any) -> bool:
        time.sleep(0.003)
        if frame is not None:
            self.shown.append(frame)
            self.pressed = self.script(len(self.shown))
        return self.pressed != "close"

    def key(self) -> str:
        key, self.pressed = self.pressed, ""
        return key

    def close(self) -> None:
        self.closed = True


class Demo:
    """run_demo on a fake bundle and runtime."""

    def __init__(self, bundle: Any, runtime: Any, folder: Path) -> None:
        self.bundle, self.runtime, self.said = bundle, runtime, []
        self.lines, self.screen = folder / "lines.jsonl", None

    def __call__(self, source: str | Path, stop: threading.Event | None = None, **options: Any) -> DemoSummary:
        screen = self.screen
        parts = Parts(
            open_bundle=lambda path: self.bundle,
            open_runtime=lambda *given: self.runtime,
            why_no_window=lambda: "" if screen else "there is no display",
            open_window=lambda: screen,
            say=self.said.append,
            timeouts=Timeouts(1000, 1000),
            timing=Timing(stale_s=0.5, backoff_s=0.05, backoff_max_s=0.2),
        )
        given = {"bundle": Path("digits.edge"), "source": str(source), "jsonl": str(self.lines), **options}
        return run_demo(DemoOptions(**given), stop=stop, parts=parts)

    def results(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.lines.read_text().splitlines()]
        return [line for line in lines if line["type"] == "result"]


@pytest.fixture
def demo(fake_bundle: Any, brightness_runtime: Callable[..., Any], tmp_path: Path) -> Demo:
    return Demo(fake_bundle, brightness_runtime(), tmp_path)


class TestSeveral:
    def test_two_cameras_get_equal_turns_and_one_that_dies_does_not_stop_the_other(
        self, demo: Demo, camera: Any, camera_module: ModuleType
    ) -> None:
        other = camera_module.FakeCamera(fps=15)
        demo.runtime.delay_s = 0.08  # slower than either camera
        stop = threading.Event()

        def trouble() -> None:
            while len(demo.runtime.batches) < 16:
                time.sleep(0.02)
            other.kill()
            before = len(demo.runtime.batches)
            while len(demo.runtime.batches) < before + 8:
                time.sleep(0.02)
            stop.set()

        threading.Thread(target=trouble).start()
        summary = demo(camera.url, stop, more_sources=(other.url,))
        results = demo.results()
        names = {line["source"] for line in results}
        assert len(names) == 2
        first = [line["source"] for line in results[2:14]]
        assert 5 <= first.count(next(iter(names))) <= 7
        for name in names:
            own = [line for line in results if line["source"] == name]
            assert sum(line["dropped_since_last"] for line in own) == own[-1]["frame_id"] + 1 - len(own)
        assert len({line["source"] for line in results[-5:]}) == 1
        assert summary.stats.ended == "stopped"
        assert any(": LOST" in sentence for sentence in demo.said)

    def test_files_side_by_side_are_each_complete(self, demo: Demo, levels_video: Path, tmp_path: Path) -> None:
        second = tmp_path / "second.avi"
        second.write_bytes(levels_video.read_bytes())
        summary = demo(levels_video, more_sources=(str(second),))
        assert summary.stats.processed == 80
        for path in (levels_video, second):
            assert [line["frame_id"] for line in demo.results() if line["source"] == str(path)] == list(range(40))

    def test_the_window_shows_all_of_them(self, demo: Demo, camera: Any, camera_module: ModuleType) -> None:
        other = camera_module.FakeCamera()
        demo.screen = Screen(lambda shown: "close" if shown > 6 else "")
        demo(camera.url, more_sources=(other.url,))
        other.kill()
        assert demo.screen.shown[-1].shape[1] == CANVAS_WH[0]

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            (("synthetic",), "the same source twice"),
            (tuple(str(number) for number in range(20)), "21 sources; at most 16"),
        ],
    )
    def test_too_many_are_refused(self, demo: Demo, more: tuple[str, ...], says: str) -> None:
        with pytest.raises(InputError, match=says):
            demo("synthetic", more_sources=more)

    def test_cameras_and_files_need_a_policy(self, demo: Demo, levels_video: Path) -> None:
        with pytest.raises(InputError, match="cameras and files at once; say --policy"):
            demo("synthetic", more_sources=(str(levels_video),))


class TestLimits:
    def test_a_run_that_keeps_its_limits_says_so(self, demo: Demo, camera: Any) -> None:
        demo(camera.url, max_frames=30, expect_p95_ms=5000.0, expect_fps=1.0)
        assert demo.said[-1].startswith("accepted: age at the result p95 ")

    def test_a_slow_model_is_exit_3_with_its_lines_written(self, demo: Demo) -> None:
        demo.runtime.delay_s = 0.06
        with pytest.raises(GateError, match="expected at most 1 ms") as missed:
            demo("synthetic", max_frames=25, expect_p95_ms=1.0)
        assert missed.value.exit_code == 3
        assert len(demo.results()) == 25

    def test_the_age_of_shown_frames_counts_where_there_is_a_window(self, demo: Demo) -> None:
        demo.screen = Screen()
        summary = demo("synthetic", max_frames=40)
        assert summary.stats.shown_p50_ms is not None
        assert summary.stats.age_p50_ms is not None
        assert summary.stats.shown_p50_ms > summary.stats.age_p50_ms


class TestLatency:
    def test_reported_ages_are_true_within_ten_ms(self, demo: Demo) -> None:
        summary = demo("synthetic", max_frames=60, latency_test=True)
        latency = summary.latency
        assert latency is not None
        assert (latency.n, latency.without_code) == (60, 0)
        assert latency.error_p95_ms is not None
        assert latency.error_p95_ms < 10
        assert demo.said[-1] == latency.line()

    def test_over_the_network_it_finds_the_way_to_the_capture_call(self, demo: Demo, camera: Any) -> None:
        latency = demo(camera.url, max_frames=45, latency_test=True).latency
        assert latency is not None
        assert latency.true_p50_ms is not None
        assert latency.error_p95_ms is not None
        assert latency.error_p95_ms < 100


class TestSmooth:
    def test_every_captured_frame_is_shown_although_the_model_is_slow(self, demo: Demo, camera: Any) -> None:
        demo.runtime.delay_s = 0.25
        counts = {}
        for display in ("synced", "smooth"):
            demo.screen = Screen()
            demo(camera.url, duration_s=2.5, display=display)
            counts[display] = len(demo.screen.shown)
        assert counts["smooth"] > 2 * counts["synced"]

    @pytest.mark.parametrize("show", ["auto", "none"])
    def test_without_a_window_it_has_no_effect_and_is_refused(self, demo: Demo, show: str) -> None:
        with pytest.raises(InputError, match="--display smooth has no effect without a window"):
            demo("synthetic", display="smooth", show=show)


@pytest.fixture
def bundle_demo(tiny_bundle: Path, tmp_path: Path) -> Callable[..., tuple[DemoSummary, list[str], Path]]:
    """run_demo on a real bundle with a window that is scripted."""

    def run(source: Path, screen: Screen | None = None, **options: Any) -> tuple[DemoSummary, list[str], Path]:
        said: list[str] = []
        parts = Parts(
            why_no_window=lambda: "" if screen else "there is no display",
            open_window=lambda: screen,
            say=said.append,
        )
        lines = tmp_path / "out.jsonl"
        given = {"bundle": tiny_bundle, "source": str(source), "jsonl": str(lines), "threads": 1, **options}
        return run_demo(DemoOptions(**given), parts=parts), said, lines

    return run


class TestTeach:
    def test_keys_teach_a_class_that_the_next_run_knows(
        self, bundle_demo: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        frame = tmp_path / "cup.png"
        cv2.imwrite(str(frame), np.random.default_rng(2).integers(0, 255, (8, 10, 3), dtype=np.uint8))
        file = tmp_path / "taught.npz"
        screen = Screen()
        pressed = iter(["t", "close"])

        def show(picture: Any) -> bool:
            if picture is not None:
                screen.shown.append(picture)
            elif screen.shown:
                screen.pressed = next(pressed)
            return screen.pressed != "close"

        screen.show = show
        _, said, _ = bundle_demo(frame, screen, teach=file, teach_label="cup")
        assert any(sentence.startswith("taught cup (1)") for sentence in said)
        assert file.exists()
        _, said, lines = bundle_demo(frame, teach=file)
        answers = [json.loads(line) for line in lines.read_text().splitlines()]
        result = next(line["result"] for line in answers if line["type"] == "result")
        assert "cup" in [label for label, _ in result["top"]]
        assert sum(score for _, score in result["top"]) <= 1 + 1e-5

    def test_a_label_needs_a_file(self, demo: Demo) -> None:
        with pytest.raises(InputError, match="--teach-label has no effect without --teach"):
            demo("synthetic", teach_label="cup")


def test_auto_measures_on_the_spot_and_says_what_it_took(bundle_demo: Callable[..., Any], tiny_bundle: Path) -> None:
    summary, said, _ = bundle_demo(tiny_bundle / "golden", runtime="auto")
    told = next(sentence for sentence in said if sentence.startswith("auto: "))
    assert "onnxruntime fp32 " in told
    assert "openvino fp32 " in told
    assert summary.stats.runtime in ("onnxruntime", "openvino")
    assert told.startswith(f"auto: {summary.stats.runtime} {summary.stats.precision}")


def test_insecure_tls_without_tls_is_refused(demo: Demo) -> None:
    with pytest.raises(InputError, match="--insecure-tls has no effect"):
        demo("synthetic", insecure_tls=True)
