"""The doctor finds what is broken, and says what to type."""

from __future__ import annotations

import json
from importlib import metadata

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
