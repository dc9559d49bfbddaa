"""What people see: plain lines that are not too many, bars on a terminal, a table at the end."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

import pipeline.console as shown
from pipeline.run import Event
from pipeline.workspace import StageRecord
from stages.spec import Step


@pytest.fixture(params=["pipe", "terminal"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(file=io.StringIO(), width=140, force_terminal=request.param == "terminal", highlight=False)
    monkeypatch.setattr(shown, "console", console)
    return console


def record(**changes: Any) -> StageRecord:
    values = {"name": "x", "key": "k", "status": "ran", "seconds": 1.25, "outputs": {}, "result": {}, **changes}
    return StageRecord.model_validate(values)


def text(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_thousand_steps_are_shown_and_a_pipe_is_not_flooded(screen: Console) -> None:
    with shown.watching() as watch:
        watch(Event("start", "x"))
        watch(Event("step", "x", step=Step("work", note="chose [the] default")))
        for done in range(1, 1001):
            watch(Event("step", "x", step=Step("work", done, 1000, {"loss": 0.123456, "images_per_s": 5120.4})))
        watch(Event("end", "x", record=record()))
    out = text(screen)
    assert "chose [the] default" in out
    assert "1.2 s" in out
    if screen.is_terminal:
        assert "work" in out
        assert "/1000" in out
    else:
        assert len(out.splitlines()) <= 4


def test_a_pipe_shows_progress_now_and_then(screen: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    if screen.is_terminal:
        pytest.skip("bars show every step")
    monkeypatch.setattr(shown, "PLAIN_EVERY_S", 0.0)
    with shown.steps("bench") as on_step:
        on_step(Step("round 1", 1, 2, {"loss": 0.5}))
    assert text(screen).strip() == "bench     round 1 1/2  loss 0.5"


def test_values_have_the_digits_that_say_something() -> None:
    assert (
        shown.values({"loss": 0.123456, "images_per_s": 5120.4, "epoch": 3})
        == "loss 0.1235  images_per_s 5120  epoch 3"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"status": "cached"}, "x           cached"),
        ({"status": "failed", "result": None}, "x         failed after 1.2 s"),
        ({"status": "failed", "result": None, "error": "interrupted"}, "x         interrupted after 1.2 s"),
        (
            {"name": "train", "result": {"metric": "accuracy", "val": 0.98, "best_epoch": 3, "epochs": 5}},
            "train        1.2 s  val accuracy 0.9800, epoch 3 of 5",
        ),
        (
            {"name": "data", "result": {"name": "scenes", "composed": True, "counts": {"train": 8, "val": 2}}},
            "data         1.2 s  scenes (composed): train 8, val 2",
        ),
    ],
)
def test_a_stages_line(changes: dict[str, Any], line: str, screen: Console) -> None:
    with shown.watching() as watch:
        watch(Event("end", "x", record=record(**changes)))
    assert line in text(screen)


def test_composed_data_is_always_called_so() -> None:
    assert "composed" in shown.headline(record(name="data", result={"name": "s", "composed": True, "counts": {}}))
