"""Tiny stages for tests of the engine: each writes one number; a file in `control` makes one misbehave."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.run import Stage, run_pipeline
from pipeline.workspace import RunDocument

NUMBERS = itertools.count()

PACKAGE = '''
import errno, time
from pathlib import Path
from pydantic import BaseModel, ConfigDict, Field
from edge_demo.errors import InputError
from pipeline.run import Stage
from stages.spec import Gate, Step

HERE = Path(__file__).parent
CONTROL = HERE.parent / "control"
LOG = HERE.parent / "log"

class Number(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: Path = Field(default=Path(), exclude=True)
    value: float
    gates: tuple[Gate, ...] = ()

def work(name, value, out_dir, on_step):
    """Write the value; do what the control file says."""
    with LOG.open("a") as log:
        log.write(name + "\\n")
    order = (CONTROL / name).read_text() if (CONTROL / name).exists() else ""
    (out_dir / "sub").mkdir(exist_ok=True)
    resumed = (out_dir / "checkpoint").exists()
    (out_dir / "value.txt").write_text(str(value))
    on_step(Step("work", 1, 2, {"loss": 0.5}, note="resumed" if resumed else ""))
    (out_dir / "sub" / "more.bin").write_bytes(bytes(range(256)))
    if order == "sleep" and not resumed:
        (out_dir / "checkpoint").write_text("half way")
        (CONTROL / "sleeping").touch()
        time.sleep(60)
    if order == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if order == "wrapped":
        raise RuntimeError("cannot save: No space left on device (os error 28)")
    if order == "big":
        (out_dir / "big.bin").write_bytes(bytes(1_000_000))
    if order == "crash":
        raise ValueError("a bug\\nin two lines")
    if order == "refuse":
        raise InputError("photo.png: truncated", "replace it")
    if order == "module":
        import no_such_library
    if order == "nan":
        return Number(value=float("nan"))
    gates = ()
    if order in ("gate", "stop"):
        said = "0.1 < 0.2, n = 9"
        gates = (Gate(name="floor", value=0.1, limit=0.2, passed=False, stop=order == "stop", message=said),)
    return Number(value=value, gates=gates)

STAGES = tuple(
    Stage(name=name, module=f"{__name__}.{name}", needs=needs, result=Number, libraries=("numpy",),
          resumable=name == "train", **({"outside": lambda config: OUTSIDE[0]} if name == "data" else {}))
    for name, needs in (("data", ()), ("train", ("data",)), ("export", ("data", "train")), ("report", ("export",)))
)
OUTSIDE = ["source one"]
'''

MODULES = {
    "data": "def run(config, *, out_dir, on_step):\n    return work('data', config.seed, out_dir, on_step)\n",
    "train": """
        def run(config, data, *, out_dir, on_step):
            seed = int((data.folder / "value.txt").read_text())
            return work("train", seed + config.epochs, out_dir, on_step)
        """,
    "export": """
        def run(config, data, train, *, out_dir, on_step):
            return work("export", 1000 * data.value + train.value + config.opset, out_dir, on_step)
        """,
    "report": """
        def run(config, export, *, out_dir, on_step):
            return work("report", export.value, out_dir, on_step)
        """,
}

DRIVER = """
from functools import partial
from pathlib import Path
import {package}
import pipeline.console
import pipeline.run
from pipeline.cli import main
pipeline.console.HEADLINES.clear()
pipeline.run.run_pipeline = partial(pipeline.run.run_pipeline, stages={package}.STAGES, root=Path({root!r}))
main()
"""


@dataclass(frozen=True)
class Fakes:
    """Four stages data -> train -> export -> report in a package of their own, and the folder they run in."""

    root: Path
    package: str

    @property
    def stages(self) -> tuple[Stage, ...]:
        stages: tuple[Stage, ...] = importlib.import_module(self.package).STAGES
        return stages

    @property
    def folder(self) -> Path:
        return self.root / "run"

    def run(self, *sets: str, until: str = "report", **options: Any) -> RunDocument:
        config = load_config(sets=["name=fake", *sets])
        return run_pipeline(config, self.folder, until=until, stages=self.stages, root=self.root, **options)

    def order(self, stage: str, what: str) -> None:
        """Make a stage misbehave; empty: behave."""
        (self.root / "control" / stage).write_text(what)

    def ran(self) -> list[str]:
        """The stages that ran since the last call."""
        log = self.root / "log"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def statuses(self, document: RunDocument) -> dict[str, str]:
        return {record.name: record.status for record in document.stages}

    def command(self, *arguments: str) -> list[str]:
        """The pipeline program with these stages, to run in a process of its own."""
        driver = self.root / "driver.py"
        driver.write_text(DRIVER.format(package=self.package, root=str(self.root)))
        return [sys.executable, str(driver), *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments), cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    package = f"fakes{next(NUMBERS)}"
    folder = tmp_path / package
    folder.mkdir()
    (tmp_path / "control").mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(f"from {package} import work\n{dedent(text)}")
    monkeypatch.syspath_prepend(tmp_path)
    return Fakes(tmp_path, package)


@pytest.fixture
def wait_for() -> Callable[[Path], None]:
    """Wait until a file appears."""
    import time

    def wait(file: Path) -> None:
        end = time.monotonic() + 30
        while not file.exists():
            assert time.monotonic() < end, f"{file} never came"
            time.sleep(0.02)

    return wait
