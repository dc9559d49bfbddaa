"""The sweep: its space, trials on tiny stages whose best values are known, resuming, sharing, what it writes."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="the extra `sweep` is not installed")

import pipeline.run
import pipeline.sweep.run
from edge_demo.errors import Error, InputError
from pipeline.cli import call
from pipeline.config import load_config
from pipeline.run import STAGES, Stage
from pipeline.sweep.document import SweepDocument, TrialRow
from pipeline.sweep.picture import write_pareto
from pipeline.sweep.plan import Plan, load_plan
from pipeline.sweep.results import best_of, nearest_to_front, notes_on, pareto
from pipeline.sweep.run import sweep
from pipeline.sweep.study import shown
from pipeline.sweep.trial import sweep_stages
from pipeline.workspace import read_run

NUMBERS = itertools.count()

PACKAGE = """
import time
from pathlib import Path
from pydantic import BaseModel, ConfigDict, Field
from pipeline.run import Stage
from stages.spec import Step

HERE = Path(__file__).parent
CONTROL, LOG = HERE.parent / "control", HERE.parent / "log"

class Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: Path = Field(default=Path(), exclude=True)
    counts: dict[str, int] = {"val": 400}
    digests: dict[str, str]

class Train(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: Path = Field(default=Path(), exclude=True)
    metric: str = "accuracy"
    val: float
    resumed: bool

def log(line):
    with LOG.open("a") as file:
        file.write(line + "\\n")

def order(name):
    return (CONTROL / name).read_text() if (CONTROL / name).exists() else ""

STAGES = (
    Stage(name="data", module=f"{__name__}.data", needs=(), result=Data, libraries=()),
    Stage(name="train", module=f"{__name__}.train", needs=("data",), result=Train, libraries=(), resumable=True),
)
"""

MODULES = {
    "data": """
        from PKG import Data, log, order
        def run(config, *, out_dir, on_step):
            log("data")
            (out_dir / "sub").mkdir()
            (out_dir / "sub" / "frames.npy").write_bytes(b"frames")
            return Data(digests={"val": order("val") or "digest"})
        """,
    # The best learning rate is 0.01; a good one shows after the first epoch.
    "train": """
        import math, os, time
        from edge_demo.errors import Error
        from PKG import CONTROL, Step, Train, log, order
        def run(config, data, *, out_dir, on_step):
            assert (data.folder / "sub" / "frames.npy").read_bytes() == b"frames"
            log(f"train {config.lr!r} {config.model.width} {os.getpid()}")
            resumed = (out_dir / "checkpoint").exists()
            (out_dir / "checkpoint").write_text("half way")
            if order("crash") in ("all", str(config.model.width)):
                raise Error("training diverged: the loss is nan in step 7", "set train.lr lower")
            if order("sleep") and not resumed:
                (CONTROL / "sleeping").touch()
                time.sleep(60)
            time.sleep(float(order("pace") or 0))
            val = 0.9 - 0.2 * abs(math.log10(config.lr) + 2)
            for epoch in range(1, config.epochs + 1):
                now = {"epoch": epoch, "loss": 1.0, "val_accuracy": val * (1 - 0.1 / epoch)}
                on_step(Step("train", epoch, config.epochs, now))
            return Train(val=val, resumed=resumed)
        """,
}

CONFIG = """
name = "tiny"
[train]
epochs = 1
optimizer = "adamw"
[sweep]
trials = 6
[sweep.space]
"train.lr" = {low = 1e-4, high = 1.0, log = true}
"train.model.width" = [8, 16]
"""


@dataclass(frozen=True)
class Tiny:
    """Two stages data -> train with a known optimum, and a folder for their sweeps."""

    root: Path
    package: str

    @property
    def stages(self) -> tuple[Stage, ...]:
        stages: tuple[Stage, ...] = importlib.import_module(self.package).STAGES
        return stages

    def plan(self, *sets: str) -> Plan:
        (self.root / "tiny.toml").write_text(CONFIG)
        return load_plan(self.root / "tiny.toml", sets=sets)

    def sweep(self, *sets: str, folder: str = "sweep", **options: Any) -> SweepDocument:
        return sweep(self.plan(*sets), self.root / folder, stages=self.stages, root=self.root, **options)

    def order(self, name: str, what: str) -> None:
        (self.root / "control" / name).write_text(what)

    def log(self, stage: str) -> list[list[str]]:
        """One line per run of a stage: what it trained with, and its process."""
        lines = [line.split() for line in (self.root / "log").read_text().splitlines()]
        return [line[1:] for line in lines if line[0] == stage]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The program in a process of its own, with these stages."""
        (self.root / "tiny.toml").write_text(CONFIG)
        driver = self.root / "driver.py"
        driver.write_text(
            f"from functools import partial\nfrom pathlib import Path\nimport {self.package}, pipeline.sweep.run as r\n"
            f"r.sweep = partial(r.sweep, stages={self.package}.STAGES, root=Path({str(self.root)!r}))\n"
            "from pipeline.cli import main\nmain()\n"
        )
        command = [sys.executable, str(driver), "sweep", "tiny.toml", "--run", "sweep", *words]
        return subprocess.Popen(command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    package = f"tiny{next(NUMBERS)}"
    (tmp_path / package).mkdir()
    (tmp_path / "control").mkdir()
    (tmp_path / package / "__init__.py").write_text(PACKAGE)
    for name, text in MODULES.items():
        (tmp_path / package / f"{name}.py").write_text(dedent(text).replace("PKG", package))
    monkeypatch.syspath_prepend(tmp_path)
    return Tiny(tmp_path, package)


def row(number: int, val: float, latency_ms: float | None = None, **facts: Any) -> TrialRow:
    values = {"val": val} | ({} if latency_ms is None else {"latency_ms": latency_ms})
    known = {"metric": "accuracy", "val_n": 100, **facts}
    return TrialRow(number=number, state="complete", params={"train.lr": 0.1}, values=values, facts=known)


# --- the space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ('"train.lrr" = [0.1]', "train.lrr: unknown key (in [sweep.space]); did you mean 'lr'?"),
        ('"train.model.widht" = [8]', "did you mean 'width'?"),
        ('"train.lr" = []', "train.lr: must be a list of choices or a table with low and high"),
        ('"train.lr" = 0.1', "train.lr: must be a list of choices or a table with low and high"),
        ('"train.lr" = [0.1, 0.1]', "train.lr: a choice is listed twice"),
        ('"data.size_wh" = [[28, 28]]', "data.size_wh: a choice must be a string, number or boolean"),
        ('"train.lr" = {low = 0.1}', "train.lr: high is missing"),
        ('"train.lr" = {low = 0.1, high = 1.0, stepp = 1}', "train.lr: unknown key 'stepp'; known: low, high"),
        ('"train.lr" = {low = 1.0, high = 0.1}', "train.lr: low must be below high; got 1.0 and 0.1"),
        ('"train.lr" = {low = "a", high = 0.1}', "train.lr: low, high and step must be numbers; got 'a'"),
        ('"train.lr" = {low = 0.1, high = inf}', "must be a finite number; got inf"),
        ('"train.lr" = {low = 0.1, high = 1.0, log = 1}', "train.lr: log must be true or false"),
        ('"train.weight_decay" = {low = 0.0, high = 0.1, log = true}', "log needs a low above 0"),
        ('"train.epochs" = {low = 1, high = 4, step = 2}', "high must be low and a whole number of steps"),
        ('"train.lr" = {low = -1.0, high = 0.1}', "train.lr: must be greater than 0; got -1.0 (in [sweep.space])"),
        ('"train.epochs" = {low = 1.5, high = 4.0}', "train.epochs: must be a valid integer; got 1.5"),
        ('"train.optimizer" = ["adamw", "sdg"]', "train.optimizer: must be"),
        ('"train.momentum" = {low = 0.5, high = 0.8}', 'train.momentum: has no effect with train.optimizer = "adamw"'),
        ('"data.seed" = [1, 2]', "data.seed: changes which images val holds"),
        ('"quantize.images" = [64]', "quantize.images: has no effect on sweep.objectives = val; sweep data, train"),
        ('"name" = ["a"]', "name: has no effect on sweep.objectives"),
        ("", "sweep.space: is empty"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(space: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'[train]\noptimizer = "adamw"\n[sweep.space]\n{space}\n')
    with pytest.raises(InputError) as caught:
        load_plan(file)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no [sweep] section"),
        ("[sweep]\ntrails = 3", "sweep.trails: unknown key (in FILE); did you mean 'trials'?"),
        ("[sweep]\ntrials = 0", "sweep.trials: must be greater than 0; got 0 (in FILE)"),
        ('[sweep]\nobjectives = ["test"]', "sweep.objectives: must be 'val' or 'latency_ms'"),
        ('[sweep]\nobjectives = ["latency_ms"]', "sweep.objectives: must name val"),
        ('[sweep]\nobjectives = ["val", "val"]', "sweep.objectives: must name val, and nothing twice"),
        ("[train]\nepoch = 3\n[sweep]", "train.epoch: unknown key"),
    ],
)
def test_a_wrong_section_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_plan(file)
    assert said in str(caught.value).replace(str(file), "FILE")


def test_keys_may_be_quoted_or_not(tmp_path: Path) -> None:
    for name, key in (("a", '"train.model.width"'), ("b", "train.model.width")):
        (tmp_path / f"{name}.toml").write_text(f'name = "x"\n[sweep.space]\n{key} = {{low = 8, high = 32, step = 8}}\n')
    first, second = (load_plan(tmp_path / f"{name}.toml") for name in "ab")
    assert first.space == second.space


def test_whole_bounds_of_a_float_are_not_its_only_values(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        "[sweep.space]\ntrain.label_smoothing = {low = 0, high = 1}\ntrain.epochs = {low = 1, high = 3}\n"
    )
    smoothing, epochs = load_plan(tmp_path / "a.toml").space
    assert (smoothing.whole, epochs.whole) == (False, True)  # type: ignore[union-attr]


def test_other_commands_refuse_the_section(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[sweep]\ntrials = 3\n")
    with pytest.raises(InputError, match="sweep: is read by `pipeline sweep` only"):
        load_config(tmp_path / "a.toml")


def test_no_trial_evaluates_test() -> None:
    """The stages of a trial are those that read train and val alone."""
    assert [stage.name for stage in sweep_stages(STAGES, ("val",))] == ["data", "train"]
    both = sweep_stages(STAGES, ("val", "latency_ms"))
    assert [stage.name for stage in both] == ["data", "train", "export", "quantize", "bench"]
    assert both[-1].needs == ("quantize",)


# --- what is best ----------------------------------------------------------------------------------------------------

POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    front = pareto([(number, float(val), float(ms)) for number, (val, ms) in enumerate(points)])

    def beaten(number: int) -> bool:
        val, ms = points[number]
        return any(v >= val and t <= ms and (v, t) != (val, ms) for v, t in points)

    assert {points[number] for number in front} == {p for number, p in enumerate(points) if not beaten(number)}
    assert len({points[number] for number in front}) == len(front), "of equal points one"
    assert [points[n] for n in front] == sorted(points[n] for n in front), "from fast to good"


def test_the_best_is_the_highest_val_and_the_earliest_of_equals() -> None:
    assert best_of([row(0, 0.8), row(1, 0.9), row(2, 0.9)]) == (1,)
    assert best_of([TrialRow(number=0, state="failed", params={}, values={})]) == ()


def test_the_front_is_chosen_by_the_times_that_can_be_compared() -> None:
    table = [row(0, 0.9, 1.0), row(1, 0.8, 0.5), row(2, 0.7, 0.6)]
    assert best_of(table) == (1, 0)
    assert best_of(table, {0: 0.4, 1: 0.5, 2: 0.3}) == (2, 0)
    assert nearest_to_front([row(0, 0.9, 1.0), row(1, 0.8, 0.5), row(2, 0.7, 1.5), row(3, 0.6, 0.6)]) == [0, 1, 3, 2]


def test_the_notes_say_how_far_to_trust_the_best() -> None:
    """The standard error of 0.9 on 100 items is sqrt(0.9 0.1 / 100) = 0.03."""
    table = [row(0, 0.9, 1.0), row(1, 0.88, 0.5, host_status="contended"), row(2, 0.86, 0.4, int8_passed=False)]
    notes = notes_on(table, (2, 1, 0))
    assert notes[0].startswith("val is the best of 3 complete trials on the same 100 images, and so too good; test")
    assert notes[1] == "within one standard error (0.0300) of the best val: 1 other trials"
    assert notes[2] == "the host was not quiet while 1 of 3 latencies were measured"
    assert "INT8 loses more than quantize.max_drop in trial 2" in notes[3]


def test_the_picture_is_a_picture(tmp_path: Path) -> None:
    document = SweepDocument(
        name="a",
        storage="b",
        objectives=("val", "latency_ms"),
        trials=(row(0, 0.9, 1.0), row(1, 0.8, 0.5), row(2, 0.7, 1.5)),
        best=(1, 0),
        notes=(),
        files={},
        remeasured_ms={"0": 1.1, "1": 0.4},
    )
    write_pareto(tmp_path / "a.png", document)
    from PIL import Image

    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 900


# --- the loop --------------------------------------------------------------------------------------------------------


def test_a_sweep_finds_the_best_and_writes_what_all_takes(tiny: Tiny) -> None:
    document = tiny.sweep("sweep.trials=8")
    assert [trial.state for trial in document.trials] == ["complete"] * 8
    tried = [float(lr) for lr, _, _ in tiny.log("train")]
    assert [trial.params["train.lr"] for trial in document.trials] == tried
    best = min(range(8), key=lambda number: abs(math.log10(tried[number]) + 2))
    assert document.best == (best,)
    config = load_config(tiny.root / "sweep" / "best.toml")
    assert config.train.lr == tried[best]
    assert config.name == "tiny-best"
    assert json.loads((tiny.root / "sweep" / "sweep.json").read_text())["schema"] == "pipeline.sweep/1"
    assert read_run(tiny.root / "sweep" / "trials" / "3").stage("train") is not None
    assert len(tiny.log("data")) == 1, "the data is prepared once, and lent"


def test_it_goes_on_where_it_was_and_draws_as_if_never_interrupted(tiny: Tiny) -> None:
    whole = tiny.sweep("sweep.trials=5", folder="whole")
    tiny.sweep("sweep.trials=2", folder="parts")
    parts = tiny.sweep("sweep.trials=5", folder="parts")
    assert [trial.params for trial in parts.trials] == [trial.params for trial in whole.trials]
    assert len(tiny.log("train")) == 10
    assert tiny.sweep("sweep.trials=5", folder="parts") == parts, "nothing is left to do"
    other = tiny.sweep("sweep.seed=1", "sweep.trials=1", folder="other")
    assert other.trials[0].params != whole.trials[0].params


def test_poor_trials_are_given_up_early(tiny: Tiny) -> None:
    document = tiny.sweep("train.epochs=9", "sweep.trials=14")
    pruned = [trial for trial in document.trials if trial.state == "pruned"]
    assert pruned
    assert all(trial.epochs in (1, 3) for trial in pruned), "Hyperband's rungs below 9"
    assert all("given up after epoch" in trial.reason for trial in pruned)
    best = document.row(document.best[0]).values["val"]
    assert all(best > 0.9 - 0.2 * abs(math.log10(float(t.params["train.lr"])) + 2) for t in pruned)


def test_a_failed_trial_says_why_and_the_sweep_goes_on(tiny: Tiny) -> None:
    tiny.order("crash", "8")
    document = tiny.sweep()
    assert {trial.params["train.model.width"] for trial in document.trials if trial.state == "failed"} == {8}
    assert {trial.params["train.model.width"] for trial in document.trials if trial.state == "complete"} == {16}
    reasons = {trial.reason for trial in document.trials if trial.state == "failed"}
    assert reasons == {"training diverged: the loss is nan in step 7; set train.lr lower"}


def test_it_stops_when_nothing_works(tiny: Tiny) -> None:
    tiny.order("crash", "all")
    with pytest.raises(Error, match="no trial was completed: training diverged") as caught:
        tiny.sweep()
    assert caught.value.exit_code == 1
    assert len(tiny.log("train")) == 3
    tiny.order("crash", "")
    assert [trial.state for trial in tiny.sweep().trials] == ["failed"] * 3 + ["complete"] * 3


def test_no_trial_begins_after_the_time(tiny: Tiny) -> None:
    tiny.order("pace", "0.3")
    document = tiny.sweep("sweep.timeout_s=0.2", "sweep.trials=1000")
    assert len(document.trials) == 1


def test_a_killed_sweep_goes_on_with_the_same_trial(tiny: Tiny, wait_for: Callable[[Path], None]) -> None:
    tiny.sweep("sweep.trials=2")
    tiny.order("sleep", "yes")
    process = tiny.start()
    wait_for(tiny.root / "control" / "sleeping")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    tiny.order("sleep", "")
    document = tiny.sweep()
    assert [trial.state for trial in document.trials] == ["complete"] * 2 + ["killed"] + ["complete"] * 4
    killed, again = document.trials[2:4]
    assert again.params == killed.params
    record = read_run(tiny.root / "sweep" / "trials" / "3").stage("train")
    assert record is not None
    assert record.result is not None
    assert record.result["resumed"], "inside the training, too"
    assert not (tiny.root / "sweep" / "trials" / "2").exists()
    assert not list((tiny.root / "sweep" / "trials").glob(".*.lock"))


def test_ctrl_c_is_said_in_one_line_and_can_go_on(tiny: Tiny, wait_for: Callable[[Path], None]) -> None:
    tiny.order("sleep", "yes")
    process = tiny.start()
    wait_for(tiny.root / "control" / "sleeping")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted; the same command goes on there"
    tiny.order("sleep", "")
    document = tiny.sweep()
    assert [trial.state for trial in document.trials] == ["killed"] + ["complete"] * 6


def test_two_processes_share_the_work(tiny: Tiny) -> None:
    tiny.order("pace", "0.15")
    words = ("--set", "sweep.trials=16")
    processes = [tiny.start(*words), tiny.start(*words)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    runs = tiny.log("train")
    assert len(runs) == 16, "each trial once, and not one too many"
    assert {pid for _, _, pid in runs} == {str(process.pid) for process in processes}
    assert len({lr for lr, _, _ in runs}) == 16, "no two alike"
    document = SweepDocument.model_validate_json((tiny.root / "sweep" / "sweep.json").read_bytes())
    assert len(document.trials) == 16
    assert document.storage == "sweep/sweep.db"


def test_two_folders_share_a_storage(tiny: Tiny) -> None:
    """As two machines do; what one began the other does not take over."""
    url = f"sqlite:///{tiny.root}/shared.db"
    tiny.sweep("sweep.trials=2", folder="one", storage=url)
    document = tiny.sweep("sweep.trials=5", folder="two", storage=url)
    assert len(document.trials) == 5
    assert sorted(path.name for path in (tiny.root / "two" / "trials").iterdir()) == ["2", "3", "4"]
    tiny.order("val", "another")
    document = tiny.sweep("sweep.trials=6", folder="three", storage=url)
    assert document.trials[5].reason == "its val images are not those of the first trial"


# --- bad input -------------------------------------------------------------------------------------------------------


def test_sweeps_are_not_mixed(tiny: Tiny) -> None:
    tiny.sweep("sweep.trials=1")
    for change, said in (
        ("train.epochs=2", "train.epochs has changed"),
        ("sweep.space.train.epochs=[1, 2]", "sweep.space: train.epochs has changed"),
        ("name=other", "is of sweep 'tiny' in its own storage"),
    ):
        with pytest.raises(InputError) as caught:
            tiny.sweep(change)
        assert said in str(caught.value)
    with pytest.raises(InputError, match="is of sweep 'tiny' in its own storage"):
        tiny.sweep(storage=f"sqlite:///{tiny.root}/shared.db")


def test_a_folder_of_something_else_is_left_alone(tiny: Tiny) -> None:
    (tiny.root / "photos").mkdir()
    (tiny.root / "photos" / "cat.png").touch()
    with pytest.raises(InputError, match="has files, but is not a sweep's folder"):
        tiny.sweep(folder="photos")
    assert [path.name for path in (tiny.root / "photos").iterdir()] == ["cat.png"]
    (tiny.root / "file").touch()
    with pytest.raises(InputError, match="is a file, not a sweep's folder"):
        tiny.sweep(folder="file")


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"{SECRET} nonsense", "--storage: not a database URL"),
        (f"mysql://me:{SECRET}@host/db", "--storage: unknown kind of database 'mysql'"),
        (f"postgresql+nodriver://me:{SECRET}@host/db", "not a database URL"),
        (f"postgresql+psycopg2://me:{SECRET}@127.0.0.1:1/db", "psycopg2"),
        (f"postgresql+psycopg://me@127.0.0.1:1/db?password={SECRET}", "psycopg"),
        (f"sqlite:////no/such/folder/x.db?timeout={SECRET}", "not a database URL"),
        ("sqlite:////no/such/folder/x.db", "sqlite:////no/such/folder/x.db: cannot be used as storage (unable to open"),
    ],
)
def test_a_storage_that_cannot_be_used_is_said_without_its_password(tiny: Tiny, url: str, said: str) -> None:
    """Whether a PostgreSQL driver is installed or not: nothing listens on port 1."""
    with pytest.raises(InputError) as caught:
        tiny.sweep(storage=url)
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_storage_is_shown_without_its_password() -> None:
    url = f"postgresql://me:{SECRET}@host/db?sslpassword={SECRET}"
    assert shown(url, Path("a")) == "postgresql://me:***@host/db"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from functools import partial

    monkeypatch.setattr(pipeline.sweep.run, "sweep", partial(sweep, stages=tiny.stages, root=tiny.root))
    monkeypatch.chdir(tiny.root)
    tiny.plan()
    assert call(["sweep", "tiny.toml"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 1 + 6 + 1
    assert lines[1].endswith("best")
    best = lines[1].split()[0]
    folder = "runs/tiny-sweep"
    assert lines[-1] == f"next     pipeline all {folder}/best.toml --run {folder}/trials/{best}"
    assert err.count("trial ") >= 6
    assert "6 trials: 6 complete" in err
    assert call(["sweep", "tiny.toml", "--json"]) == 0
    out = capsys.readouterr().out
    assert out == (tiny.root / folder / "sweep.json").read_text()
    assert call(["sweep", "tiny.toml", "--set", "sweep.trials=x"]) == 2
    assert capsys.readouterr().err.startswith("error: sweep.trials: must be a valid integer")


def test_help_loads_neither_optuna_nor_what_it_drives() -> None:
    code = "import sys; from pipeline.cli import call; call(['sweep', '--help']); print('@', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[sweep.space]" in done.stdout
    assert not set(done.stdout.rpartition("@")[2].split()) & {"optuna", "sqlalchemy", "torch", "matplotlib"}


def test_without_optuna_it_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(CONFIG)
    code = (
        "import sys; sys.modules['optuna'] = None; from pipeline.cli import call; sys.exit(call(['sweep', 'a.toml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: sweep needs optuna, which is not installed; type: pip install 'train-to-edge[sweep]'\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]


@pytest.mark.slow
def test_a_real_sweep_for_accuracy_and_latency(tmp_path: Path) -> None:
    (tmp_path / "real.toml").write_text(
        dedent(
            """
            name = "real"
            [data]
            limit = 300
            [train]
            epochs = 1
            batch_size = 32
            [sweep]
            trials = 2
            objectives = ["val", "latency_ms"]
            [sweep.space]
            "train.model.width" = {low = 4, high = 24, step = 4}
            """
        )
    )
    started = time.time()
    assert call(["sweep", str(tmp_path / "real.toml"), "--run", str(tmp_path / "run")]) == 0
    document = SweepDocument.model_validate_json((tmp_path / "run" / "sweep.json").read_bytes())
    assert len(document.trials) == 2
    for trial in document.trials:
        run = read_run(tmp_path / "run" / "trials" / str(trial.number))
        assert [record.name for record in run.stages] == ["data", "train", "export", "quantize", "bench"]
        assert trial.values["latency_ms"] > 0
    assert set(document.remeasured_ms) == {"0", "1"}
    assert os.path.getmtime(tmp_path / "run" / "pareto.png") >= started  # noqa: PTH204
    for number in document.best:
        assert load_config(tmp_path / "run" / f"best-{number}.toml").name == f"real-best-{number}"
