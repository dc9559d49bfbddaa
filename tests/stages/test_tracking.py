"""TensorBoard and MLflow get the curves, read back by their own readers; nothing is imported unless asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge_demo.errors import InputError
from stages import train
from stages.spec import DataResult, ModelConfig, TrainConfig
from stages.train.tracking import tracked

ROWS = [{"epoch": 1.0, "lr": 0.1, "val_loss": 1.5}, {"epoch": 2.0, "lr": 0.05, "val_loss": 1.25}]


def needs(library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install 'train-to-edge[{library}]'")


def write(name: str, folder: Path) -> None:
    """An epoch before an interruption, after it once more the whole, as a resumed training does."""
    config = TrainConfig(track=(name,))
    for known in ([], ROWS[:1]):
        with tracked(config, folder, known) as log:
            log(ROWS[len(known)])


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["lr", "val_loss"]
    assert [(e.step, e.value) for e in events.Scalars("val_loss")] == [(1, 1.5), (2, 1.25)]


def test_mlflow_reads_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    before = dict(os.environ)
    write("mlflow", tmp_path)
    assert dict(os.environ) == before
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.name"] == "resnet"
    history = client.get_metric_history(run.info.run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.5), (2, 1.25)]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_missing_extra_says_what_to_type(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [loaded for loaded in sys.modules if loaded.split(".")[0] in ("tensorboard", "mlflow")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    says = rf"train.track needs {name}.*pip install 'train-to-edge\[{name}\]'"
    with pytest.raises(InputError, match=says), tracked(TrainConfig(track=(name,)), tmp_path, []):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_imported_unless_asked(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.spec import TrainConfig;"
        "from stages.train.tracking import tracked\n"
        f"with tracked(TrainConfig(), Path({str(tmp_path)!r}), []) as log: log({{'epoch': 1}})\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorboard', 'mlflow')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_a_training_writes_what_was_asked_for(small_data: DataResult, tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(epochs=2, batch_size=200, model=ModelConfig(width=4), track=("tensorboard",))
    train.run(config, small_data, out_dir=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("val_accuracy")] == [1, 2]
