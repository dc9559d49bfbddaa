"""`pipeline train --list-models`: a table for people, JSON for programs, nothing trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline.cli import call
from stages.models import MODELS


def test_every_network_is_in_the_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["train", "--list-models"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert set(MODELS) <= set(lines)
    # 34,826 parameters: keras.io/examples/vision/mnist_convnet; 10 px: 3x3, pool, 3x3, pool without padding
    assert "34,826 / " in lines["convnet"]
    assert "10 / 10" in lines["convnet"]
    assert "silu and hardswish" in out
    assert list(tmp_path.iterdir()) == [], "no run folder"


def test_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["train", "--list-models", "--json"]) == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert list(cards) == list(MODELS)
    small, colour = cards["perceptron"]["costs"]
    assert small == {"in_channels": 1, "size_wh": [28, 28], "parameters": 7850, "macs": 7840, "receptive_field": 28}
    assert colour["parameters"] == 3 * 32 * 32 * 10 + 10
    assert cards["perceptron"]["dials"] == ["dropout"]


@pytest.mark.parametrize(
    "words", [["--preset", "mnist"], ["x.toml"], ["--run", "x"], ["--set", "train.epochs=1"], ["--devices", "2"]]
)
def test_it_takes_no_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["train", "--list-models", *words]) == 2
    assert capsys.readouterr().err.startswith("error: --list-models: takes no config, preset, run, --set or --devices")


def test_without_torch_it_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "stages.models" or name.startswith("stages.models.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert call(["train", "--list-models"]) == 2
    assert "train --list-models needs torch, which is not installed" in capsys.readouterr().err
