"""The systemd unit that `pipeline service` prints, and the camera list."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_demo.errors import InputError
from pipeline.cli import call
from pipeline.demo_commands import quoted, unit


def parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",), strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return parser


def test_the_unit_notifies_restarts_and_is_hardened(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["service", str(tiny_bundle), "--source", "rtsp://10.0.0.7/live", "--name", "door"]) == 0
    service = parsed(capsys.readouterr().out)["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[0].endswith("/pipeline")
    assert words[1:5] == ["demo", str(tiny_bundle), "--source", "rtsp://10.0.0.7/live"]
    assert {"--wait", "--show", "--web"} <= set(words)
    assert (service["Type"], service["Restart"], service["WatchdogSec"]) == ("notify", "on-failure", "60")
    assert service["RestartPreventExitStatus"] == "2 3"
    for key, value in {"DynamicUser": "yes", "ProtectSystem": "strict", "CapabilityBoundingSet": ""}.items():
        assert service[key] == value
    assert service["DeviceAllow"] == "char-video4linux rw"


def test_systemd_itself_has_no_complaint(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("no systemd-analyze here")
    file = tmp_path / "train-to-edge.service"
    file.write_text(unit(tmp_path / "b", "digits", ["0"], "train-to-edge", "127.0.0.1:8080"))
    done = subprocess.run([analyze, "verify", "--man=no", str(file)], capture_output=True, text=True)
    assert "Unknown" not in done.stderr


@given(st.text(st.characters(min_codepoint=32, exclude_characters="%$", exclude_categories=("Cs",)), min_size=1))
def test_a_word_stays_one_word(word: str) -> None:
    """Of systemd and a POSIX shell, which read double quotes and backslashes alike; % and $ are systemd's own."""
    assert shlex.split(quoted(word).replace("`", "\\`")) == [word.replace("`", "`")] or "`" in word


def test_signs_that_mean_something_to_systemd_are_doubled() -> None:
    assert quoted("100%") == "100%%"
    assert quoted("a$b") == '"a$$b"'
    assert quoted('my "own" folder') == '"my \\"own\\" folder"'


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"name": "a b"}, "not a name for a service"),
        ({"name": "../x"}, "not a name for a service"),
        ({"sources": ["rtsp://me:word@10.0.0.7/"]}, "holds a password"),
        ({"sources": ["a\nExecStartPre=/bin/sh"]}, "cannot stand in a unit file"),
    ],
)
def test_what_cannot_be_in_a_unit_is_refused(given_: dict[str, object], says: str, tmp_path: Path) -> None:
    options = {"bundle": tmp_path, "bundle_name": "x", "sources": ["0"], "name": "x", "web": "127.0.0.1:1", **given_}
    with pytest.raises(InputError, match=says) as refused:
        unit(**options)  # type: ignore[arg-type]
    assert "word" not in str(refused.value).replace("password", "")


def test_a_bundle_that_is_none_gets_no_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["service", "nothing"]) == 2
    assert capsys.readouterr().out == ""


def test_the_cameras_are_listed_without_a_bundle(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edge_demo.cameras.list_cameras", lambda open_camera: [("0", "HD Webcam", "640x480, MJPG, 30 FPS")]
    )
    assert call(["demo", "--list-cameras"]) == 0
    assert capsys.readouterr().out == "0\tHD Webcam\t640x480, MJPG, 30 FPS\n"
    monkeypatch.setattr("edge_demo.cameras.list_cameras", lambda open_camera: [])
    assert call(["demo", "--list-cameras"]) == 0
    assert "no camera here" in capsys.readouterr().err
