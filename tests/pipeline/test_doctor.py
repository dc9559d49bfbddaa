"""The doctor finds what is broken, and says what to type."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.cli import call


def found(name: str) -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.name == name)


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Distributions with these versions; an empty one is not installed."""
    real = doctor.installed_version
    names = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "installed_version", lambda name: names.get(name, real(name)))


def test_versions_are_the_installed_ones() -> None:
    assert found("numpy").found == metadata.version("numpy")
    assert all(finding.hint for finding in doctor.examine() if finding.status != "ok")


def test_both_opencv_wheels_are_broken_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, opencv_python="4.9", opencv_python_headless="4.9")
    assert found("opencv").status == "broken"
    assert "pip uninstall" in found("opencv").hint
    assert call(["doctor", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is False
    assert err.startswith("error: opencv: both wheels are installed and overwrite each other; type: pip uninstall")


@pytest.mark.parametrize(
    ("versions", "name", "status", "said"),
    [
        ({"opencv_python": "4.9", "opencv_python_headless": ""}, "opencv", "ok", "with windows"),
        ({"opencv_python": "", "opencv_python_headless": "4.9"}, "opencv", "ok", "headless"),
        ({"opencv_python": "", "opencv_python_headless": ""}, "opencv", "absent", "not installed"),
        ({"torch": ""}, "torch", "absent", "not installed"),
        ({"torch": "2.9+cpu"}, "torch", "ok", "CPU build"),
        ({"torch": "2.9+cu128"}, "torch", "ok", "GPU build cu128"),
        ({"onnxruntime": ""}, "onnxruntime", "broken", "not installed"),
    ],
)
def test_what_is_there_and_what_is_not(
    versions: dict[str, str], name: str, status: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **versions)
    finding = found(name)
    assert finding.status == status
    assert said in finding.found
    assert bool(finding.hint) == (status != "ok")


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FREE_BYTES", 1 << 62)
    assert found("disk").status == "absent"


class TestDevice:
    def test_cameras_and_their_permissions(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not sys.platform.startswith("linux"):
            pytest.skip("device files of Linux")
        assert doctor._cameras(tmp_path).status == "absent"
        (tmp_path / "video0").touch()
        assert doctor._cameras(tmp_path) == doctor.Finding("cameras", "ok", "video0")
        monkeypatch.setattr("os.access", lambda *_: False)
        assert "usermod -aG video" in doctor._cameras(tmp_path).hint

    def test_what_this_opencv_writes_is_tried_out(self) -> None:
        reading, encoders = doctor._video()
        assert "FFMPEG" in reading.found
        assert encoders.found == "avi (MJPG), webm (VP8)"

    def test_an_opencv_that_does_not_import_is_broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "VIDEO_PROBE", "raise ImportError('libGL.so.1')")
        (finding,) = doctor._video()
        assert (finding.status, "libGL" in finding.hint) == ("broken", True)

    def test_a_32_bit_board_with_an_old_library_that_is_hot(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "thermal_zone0").mkdir()
        (tmp_path / "thermal_zone0" / "temp").write_text("85100\n")
        monkeypatch.setattr(doctor, "THERMAL", tmp_path)
        monkeypatch.setattr("platform.machine", lambda: "armv7l")
        monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
        told = {finding.name: finding for finding in doctor._board()}
        assert told["architecture"].status == "broken"
        assert told["glibc"].found == "2.31"
        assert (told["temperature"].found, told["temperature"].status) == ("85 C", "absent")
