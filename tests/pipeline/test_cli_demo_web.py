"""The demo command's outputs on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_demo import app
from pipeline.cli import call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The options with which the demo was started."""
    options: list[Any] = []
    monkeypatch.setattr(app, "run_demo", options.append)
    monkeypatch.setattr("pipeline.bundles.bundle_of", lambda path: path)
    return options


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ([], None),
        (["--web"], "127.0.0.1:8080"),
        (["--web", "--show", "none"], "127.0.0.1:8080"),
        (["--web", "0.0.0.0:80"], "0.0.0.0:80"),
        (["--web=[::1]:80"], "[::1]:80"),
        (["--web", "8080"], "8080"),
        (["--web", "nonsense:x"], "nonsense:x"),
    ],
)
def test_web_takes_an_address_or_none(arguments: list[str], address: str | None, asked: list[Any]) -> None:
    assert call(["demo", "digits.edge", *arguments]) == 0
    assert asked[0].web == address


def test_web_may_stand_before_the_bundle(asked: list[Any]) -> None:
    assert call(["demo", "--web", "runs/digits/bundle"]) == 0
    assert (asked[0].web, asked[0].bundle) == ("127.0.0.1:8080", Path("runs/digits/bundle"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--web", "8080"], "--web 8080: not HOST:PORT"),
        (["--web-token-file", "x"], "--web-token-file has no effect without --web"),
        (["--record-cap-mb", "50"], "--record-cap-mb has no effect without --record DIR"),
        (["--record-format", "webm"], "--record-format has no effect without --record DIR"),
        (["--mqtt-password-file", "x"], "--mqtt-password-file has no effect without --mqtt URL"),
        (["--record", "x", "--record-cap-mb", "2"], "too small to record"),
        (["--mqtt", "nohost"], "not a broker's address"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    assert call(["demo", str(tmp_path / "bundle"), *arguments]) == 2
    assert words in capsys.readouterr().err
