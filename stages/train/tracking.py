"""Curves for other programs, only where asked for: TensorBoard's event file, MLflow's local file store.

Nothing leaves the machine: both are plain files in the stage's folder. `train.track = ["tensorboard"]`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edge_demo.errors import missing_extra
from stages.spec import TrainConfig
from stages.train.distributed import rank

Row = dict[str, float]
Log = Callable[[Row], None]
"""Notes one epoch: a row of curves.csv."""


@contextmanager
def tracked(config: TrainConfig, out_dir: Path, rows: Sequence[Row]) -> Iterator[Log]:
    """Everything that `train.track` names, open; the rows of epochs done before an interruption are written first.

    Raises:
        InputError: a library that is not installed.
    """
    with ExitStack() as stack:
        names = config.track if rank() == 0 else ()  # of several processes the first one writes
        logs = [stack.enter_context(TRACKERS[name](config, out_dir / name)) for name in names]

        def log(row: Row) -> None:
            for each in logs:
                each(row)

        for row in rows:
            log(row)
        yield log


@contextmanager
def _tensorboard(config: TrainConfig, folder: Path) -> Iterator[Log]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_extra("train.track", "tensorboard", "tensorboard") from error
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted training
    writer: Any = SummaryWriter(str(folder))
    writer.add_text("config", f"```json\n{config.model_dump_json(indent=1)}\n```")

    def log(row: Row) -> None:
        for name, value in _values(row).items():
            writer.add_scalar(name, value, int(row["epoch"]))
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _mlflow(config: TrainConfig, folder: Path) -> Iterator[Log]:
    with _environment(
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_ALLOW_FILE_STORE="true",  # plain files are what a run folder keeps; MLflow itself now prefers databases
    ):
        try:
            from mlflow.store.tracking.file_store import FileStore
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise missing_extra("train.track", "mlflow", "mlflow") from error
        shutil.rmtree(folder, ignore_errors=True)
        FileStore(str(folder), folder.resolve().as_uri())  # makes the folders, which the client's cached one may not
        client = MlflowClient(tracking_uri=folder.resolve().as_uri())
        run_id = client.create_run("0", run_name=config.model.name).info.run_id
        for name, value in _flat(config.model_dump(mode="json")).items():
            client.log_param(run_id, name, value)

        def log(row: Row) -> None:
            for name, value in _values(row).items():
                client.log_metric(run_id, name, value, step=int(row["epoch"]))

        status = "FAILED"
        try:
            yield log
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _values(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "epoch"}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as `section.key`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


TRACKERS = {"tensorboard": _tensorboard, "mlflow": _mlflow}
