"""The engine on four tiny stages: what runs again and what does not, failures, gates, interruption."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from edge_demo.errors import Error, InputError
from pipeline.config import load_config
from pipeline.run import STAGES, Event, Stage, needed
from pipeline.workspace import digests, read_run

ALL = ["data", "train", "export", "report"]


def test_a_second_run_runs_nothing(fakes: Any) -> None:
    first = fakes.run()
    assert fakes.ran() == ALL
    assert set(fakes.statuses(first).values()) == {"ran"}
    second = fakes.run()
    assert fakes.ran() == []
    assert set(fakes.statuses(second).values()) == {"cached"}
    assert [record.outputs for record in first.stages] == [record.outputs for record in second.stages]
    assert [record.seconds for record in first.stages] == [record.seconds for record in second.stages]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("train.epochs=3", ["train", "export", "report"]),
        ("export.opset=19", ["export", "report"]),
        ("data.seed=5", ALL),
        ("data.val_fraction=0.2", ["data"]),  # the fake reads its seed only: same output, so nothing after it runs
        ("report.title=new", ["report"]),
        ("quantize.images=8", []),
        ("name=other", []),
    ],
)
def test_a_changed_knob_runs_what_depends_on_it(fakes: Any, change: str, again: list[str]) -> None:
    fakes.run()
    fakes.ran()
    fakes.run(change)
    assert fakes.ran() == again


def test_values_flow_through_the_stages(fakes: Any) -> None:
    """Export = 1000 * seed + (seed + epochs) + opset, worked by hand."""
    document = fakes.run("data.seed=2", "train.epochs=3", "export.opset=20")
    record = document.stage("report")
    assert record is not None
    assert record.result == {"value": 2025.0, "gates": []}
    assert float((fakes.folder / "report" / "value.txt").read_text()) == 2025


def test_going_back_to_an_earlier_config_runs_again(fakes: Any) -> None:
    """Only the last state of a stage is kept; an old key must not find new files."""
    for epochs in (1, 2, 1):
        document = fakes.run("data.seed=0", f"train.epochs={epochs}")
        assert document.stage("train").result["value"] == epochs  # type: ignore[union-attr,index]


def test_changed_code_and_changed_source_run_again(fakes: Any) -> None:
    fakes.run()
    fakes.ran()
    with (fakes.root / fakes.package / "train.py").open("a") as file:
        file.write("# another version\n")
    fakes.run()
    assert fakes.ran() == ["train"], "its output is the same, so nothing after it runs"
    import_module(fakes.package).OUTSIDE[0] = "source two"
    fakes.run()
    assert fakes.ran() == ["data"]


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "folder missing"])
def test_a_damaged_output_is_made_again(fakes: Any, damage: str) -> None:
    before = fakes.run()
    fakes.ran()
    file = fakes.folder / "train" / "sub" / "more.bin"
    if damage == "changed":
        file.write_bytes(b"\x01" + file.read_bytes()[1:])
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        (fakes.folder / "train").rename(fakes.root / "elsewhere")
    after = fakes.run()
    assert fakes.ran() == ["train"]
    assert [record.outputs for record in after.stages] == [record.outputs for record in before.stages]


def test_only_what_is_needed_runs(fakes: Any) -> None:
    document = fakes.run(until="train")
    assert fakes.ran() == ["data", "train"]
    assert list(fakes.statuses(document)) == ["data", "train"]
    assert needed("export", fakes.stages) == {"data", "train", "export"}


def test_an_early_command_keeps_the_account_of_later_stages_that_are_still_valid(fakes: Any) -> None:
    fakes.run()
    assert list(fakes.statuses(fakes.run(until="train"))) == ALL
    assert list(fakes.statuses(fakes.run("train.epochs=3", until="train"))) == ["data", "train"]


@pytest.mark.parametrize(
    ("order", "kind", "said"),
    [
        ("refuse", InputError, "photo.png: truncated; replace it"),
        ("full", Error, "export: no space left on the disk"),
        ("wrapped", Error, "export: no space left on the disk"),
        ("crash", ValueError, "a bug"),
        ("module", InputError, "no_such_library"),
        ("nan", Error, "stage 'export': its result cannot be saved"),
    ],
)
def test_a_failed_stage_leaves_everything_else_intact(fakes: Any, order: str, kind: type[Exception], said: str) -> None:
    """Its former result, too; run.json names it; the next run goes on there."""
    fakes.run()
    before = {name: digests(fakes.folder / name) for name in ALL}
    fakes.ran()
    fakes.order("export", order)
    if order == "module":
        (fakes.root / fakes.package / "export.py").write_text("import no_such_library\n")
        del sys.modules[f"{fakes.package}.export"]
    with pytest.raises(kind, match=said) as caught:
        fakes.run("export.opset=19")
    assert not isinstance(caught.value, Error) or caught.value.exit_code == (2 if kind is InputError else 1)
    assert {name: digests(fakes.folder / name) for name in ALL} == before
    assert not list(fakes.folder.glob(".partial-*"))
    document = read_run(fakes.folder)
    assert fakes.statuses(document) == {"data": "cached", "train": "cached", "export": "failed"}
    assert document.stage("export").error  # type: ignore[union-attr]
    if order != "module":
        fakes.order("export", "")
        fakes.ran()
        fakes.run("export.opset=19")
        assert fakes.ran() == ["export", "report"]


def test_missing_source_of_the_data_is_the_data_stages_failure(fakes: Any) -> None:
    """What is found while the key is made ends up in run.json, too."""

    def missing(config: object) -> str:
        raise InputError("mnist: not found", "set PIPELINE_DATA")

    from dataclasses import replace

    from pipeline.run import run_pipeline

    fakes.run()
    stages = (replace(fakes.stages[0], outside=missing), *fakes.stages[1:])
    with pytest.raises(InputError, match="mnist: not found"):
        run_pipeline(load_config(), fakes.folder, stages=stages, root=fakes.root)
    assert fakes.statuses(read_run(fakes.folder)) == {"data": "failed"}


def test_a_gate_that_stops_ends_the_run_after_its_stage(fakes: Any) -> None:
    fakes.order("train", "stop")
    for _ in range(2):
        document = fakes.run()
        assert list(fakes.statuses(document)) == ["data", "train"]
        assert [(gate.stage, gate.name, gate.stop) for gate in document.missed] == [("train", "floor", True)]
    assert fakes.ran() == ["data", "train"], "a cached stage's gate still counts"
    assert (fakes.folder / "train" / "value.txt").exists()


def test_a_gate_that_does_not_stop_is_told_at_the_end(fakes: Any) -> None:
    fakes.order("train", "gate")
    for status in ("ran", "cached"):
        document = fakes.run()
        assert fakes.statuses(document) == dict.fromkeys(ALL, status)
        assert [gate.name for gate in document.missed] == ["floor"]
    saved = json.loads((fakes.folder / "run.json").read_text())
    assert saved["gates"] == [
        {"stage": "train", "name": "floor", "value": 0.1, "limit": 0.2, "passed": False, "stop": False,
         "message": "0.1 < 0.2, n = 9"}
    ]  # fmt: skip


def test_the_gates_of_later_stages_do_not_count_for_an_early_command(fakes: Any) -> None:
    fakes.order("export", "gate")
    assert fakes.run().missed
    assert not fakes.run(until="train").missed


def test_the_run_folder_tells_the_whole_story(fakes: Any) -> None:
    """config.toml reads back equal; run.json has the promised keys; events.jsonl is JSON, line by line."""
    events: list[Event] = []
    document = fakes.run("data.seed=3", watch=events.append)
    assert load_config(fakes.folder / "config.toml") == load_config(sets=["name=fake", "data.seed=3"])
    saved = json.loads((fakes.folder / "run.json").read_text())
    assert saved["schema"] == "pipeline.run/1"
    assert list(saved) == ["schema", "name", "config", "stages", "system", "software", "gates"]
    assert saved["software"]["python"] == sys.version.split()[0]
    assert saved["system"]["cores_logical"] >= 1
    for record in saved["stages"]:
        assert record["outputs"] == digests(fakes.folder / record["name"])
        assert set(record["outputs"]) == {"value.txt", "sub/more.bin"}
    assert read_run(fakes.folder) == document
    lines = [json.loads(line) for line in (fakes.folder / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", *["run", "ran"] * 4, "end"]
    assert [event.kind for event in events] == ["start", "step", "end"] * 4


@pytest.mark.parametrize(("stage", "resumes"), [("train", True), ("export", False)])
def test_a_killed_training_resumes_and_another_stage_starts_over(
    fakes: Any, wait_for: Callable[[Path], None], stage: str, resumes: bool
) -> None:
    """SIGKILL, the hardest: nothing of ours runs any more."""
    fakes.order(stage, "sleep")
    process = fakes.start("all", "--run", str(fakes.folder), "--set", "name=fake")
    wait_for(fakes.root / "control" / "sleeping")
    process.kill()
    process.communicate()
    assert not (fakes.folder / stage).exists()
    assert len(list(fakes.folder.glob(f".partial-{stage}-*"))) == 1
    fakes.order(stage, "sleep" if resumes else "")
    fakes.ran()
    notes: list[str] = []
    document = fakes.run(watch=lambda event: notes.append(event.step.note if event.step else ""))
    assert ("resumed" in notes) == resumes
    assert document.stage(stage).status == "ran"
    assert "data" not in fakes.ran()
    assert not list(fakes.folder.glob(".partial-*"))


def test_a_partial_stage_of_another_config_is_not_resumed(fakes: Any, wait_for: Callable[[Path], None]) -> None:
    fakes.order("train", "sleep")
    process = fakes.start("train", "--run", str(fakes.folder), "--set", "name=fake")
    wait_for(fakes.root / "control" / "sleeping")
    process.kill()
    process.communicate()
    fakes.order("train", "")
    notes: list[str] = []
    fakes.run("train.epochs=3", watch=lambda event: notes.append(event.step.note if event.step else ""))
    assert "resumed" not in notes
    assert not list(fakes.folder.glob(".partial-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("stage", "kept"), [("train", True), ("export", False)])
def test_an_interruption_is_one_line_and_keeps_what_can_resume(
    fakes: Any, wait_for: Callable[[Path], None], number: int, stage: str, kept: bool
) -> None:
    fakes.order(stage, "sleep")
    process = fakes.start("all", "--run", str(fakes.folder), "--set", "name=fake")
    wait_for(fakes.root / "control" / "sleeping")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; the same command goes on there"
    assert "Traceback" not in err
    assert bool(list(fakes.folder.glob(f".partial-{stage}-*"))) == kept
    assert fakes.statuses(read_run(fakes.folder))[stage] == "failed"


def test_a_second_process_is_told_who_works_there(fakes: Any, wait_for: Callable[[Path], None]) -> None:
    fakes.order("train", "sleep")
    process = fakes.start("all", "--run", str(fakes.folder), "--set", "name=fake")
    wait_for(fakes.root / "control" / "sleeping")
    try:
        with pytest.raises(InputError, match=f"process {process.pid} works in this run folder"):
            fakes.run()
    finally:
        process.kill()
        process.communicate()
    fakes.order("train", "")
    fakes.run()  # the lock went with its process


def test_a_file_size_limit_while_a_stage_writes_is_one_line(fakes: Any) -> None:
    """A real limit of the system, not a raised fake: RLIMIT_FSIZE gives EFBIG, as a full quota would."""
    fakes.order("export", "big")
    command = fakes.command("all", "--run", str(fakes.folder), "--set", "name=fake")
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *command]
    done = subprocess.run(limited, cwd=fakes.root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: export: no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert fakes.statuses(read_run(fakes.folder)) == {"data": "ran", "train": "ran", "export": "failed"}
    assert not list(fakes.folder.glob(".partial-*"))
    fakes.order("export", "")
    fakes.ran()
    fakes.run()
    assert fakes.ran() == ["export", "report"]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_real_stage_takes_what_the_table_gives(stage: Stage) -> None:
    """run(config, *needs, out_dir, on_step) -> result, with a config section of the stage's name."""
    pytest.importorskip("torch")
    signature = inspect.signature(import_module(stage.module).run)
    names = list(signature.parameters)
    assert names == ["config", *stage.needs, "out_dir", "on_step"]
    assert signature.return_annotation == stage.result.__name__
    section = type(getattr(load_config(), stage.name)).__name__
    assert signature.parameters["config"].annotation == section


def test_needs_come_before_the_stages_that_need_them() -> None:
    for index, stage in enumerate(STAGES):
        assert set(stage.needs) <= {earlier.name for earlier in STAGES[:index]}
