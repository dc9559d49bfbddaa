"""`pipeline find-lr` on the embedded digits: text, JSON, picture; no run folder is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import call

SMALL = ["--set", "data.limit=400", "--set", "data.test_set=own", "--set", "train.model.width=4"]


def test_json_and_picture_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["find-lr", *SMALL, "--picture", "lr.png", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 1e-6 < found["suggested"] < found["lowest"] <= 10
    assert len(found["lrs"]) == len(found["losses"])
    assert [file.name for file in tmp_path.iterdir()] == ["lr.png"]


def test_text_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["find-lr", *SMALL, "--set", "train.optimizer=sgd"]) == 0
    out = capsys.readouterr().out
    assert "next       pipeline train --set train.lr=" in out
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_a_png(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["find-lr", "--picture", "lr.pdf"]) == 2
    assert "type: --picture lr.png" in capsys.readouterr().err
