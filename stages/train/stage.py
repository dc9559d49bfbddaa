"""The stage: epochs with a measurement, a checkpoint and an early stop after each; what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from torch import Tensor

from stages.graph import Preprocess
from stages.models import build, macs, parameters
from stages.spec import DataResult, Gate, OnStep, Step, TrainConfig, TrainResult, ignore
from stages.tasks import TASKS
from stages.train.checkpoint import FILE, Progress, load_checkpoint, plain, save_checkpoint, write_atomic
from stages.train.curves import write_csv, write_png
from stages.train.device import choose_accelerator, choose_precision
from stages.train.epoch import Learner, evaluate, train_epoch
from stages.train.examples import Examples, check_config, load_examples
from stages.train.optim import make_optimizer

# Fabric announces its precision on stderr; a stage prints nothing, and its result says it.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

TRAIN_SAMPLE = 10_000  # training frames whose metric is measured at the end


def run(config: TrainConfig, data: DataResult, *, out_dir: Path, on_step: OnStep = ignore) -> TrainResult:
    """Trains a network and keeps the weights of the epoch that val speaks for.

    Which is the latest epoch whose metric is at most one standard error below the highest. Differences within the
    error are chance, and while the learning rate falls, later is better; measured on 5,000 digits with 500 for val,
    taking the highest alone lost 0.4 to 1 points on 12,000 others. Source: the 1-SE rule of Breiman et al. 1984,
    "Classification and Regression Trees", section 3.4.3.

    Continues from `out_dir/checkpoint` when an equal training left one there; on a CPU the weights are then the same,
    bit by bit, as without the interruption.

    Args:
        config: Settings.
        data: The data stage's result.
        out_dir: Gets best.safetensors, curves.csv and curves.png; the checkpoint only until the end.
        on_step: Called after each epoch, and inside of one about ten times a second.

    Raises:
        InputError: settings that do not fit data or hardware.
        Error: the loss became NaN or infinite, or the checkpoint is damaged.
    """
    check_config(config, data)
    accelerator = choose_accelerator(config)
    precision = choose_precision(config, accelerator)
    notes = _choices(config, accelerator, precision)
    for note in notes:
        on_step(Step("train", note=note))
    with _torch_settings(config):
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
        train, val = (load_examples(data, split, fabric.device) for split in ("train", "val"))
        learner = _learner(config, data, fabric)
        identity = _identity(config, data, accelerator, precision)
        progress, kept, resumed = _start(out_dir, identity, learner, on_step)
        _fit(learner, train, val, progress, kept, out_dir, identity, on_step)
        learner.core.load_state_dict(kept)
        val_metric = evaluate(learner, val).metric
        train_metric = evaluate(learner, train.sample(TRAIN_SAMPLE, config.seed)).metric
        in_channels = learner.pre.scale.shape[1]
        cost = parameters(learner.core), macs(learner.core, in_channels, data.size_wh)
    metric = learner.device_task.metric
    result = TrainResult(
        folder=out_dir,
        task=config.task,
        model=config.model,
        labels=data.labels,
        in_channels=in_channels,
        size_wh=data.size_wh,
        metric=metric,
        val=val_metric,
        train=train_metric,
        best_epoch=progress.kept_epoch,
        epochs=progress.epoch,
        parameters=cost[0],
        macs=cost[1],
        seconds=progress.seconds,
        cpu_seconds=progress.cpu_seconds,
        precision=precision,
        accelerator=accelerator,
        resumed_from_step=resumed,
        notes=notes,
        gates=_gates(config, metric, val_metric, len(val)),
    )
    write_atomic(out_dir / result.weights, save(kept))
    write_csv(out_dir / result.curves_csv, progress.rows)
    write_png(out_dir / result.curves_png, progress.rows, metric, progress.kept_epoch)
    shutil.rmtree((out_dir / FILE).parent)
    return result


def _choices(config: TrainConfig, accelerator: str, precision: str) -> tuple[str, ...]:
    notes = []
    if config.accelerator == "auto":
        notes.append(f"trains on {accelerator}")
    if config.precision == "auto":
        why = "the hardware multiplies bf16" if precision == "bf16-mixed" else "the hardware has no fast bf16"
        notes.append(f"trains in {precision}: {why}; measured in float32")
    return tuple(notes)


@contextmanager
def _torch_settings(config: TrainConfig) -> Iterator[None]:
    """Threads and seed for the time of the training; the caller's are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _learner(config: TrainConfig, data: DataResult, fabric: Fabric) -> Learner:
    pre = Preprocess(data.colour, data.mean, data.std).to(fabric.device)
    core = build(config.model, pre.scale.shape[1], data.size_wh, len(data.labels))
    core = core.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model, optimizer = fabric.setup(core, make_optimizer(core, config))
    post = TASKS[config.task].post().to(fabric.device)
    return Learner(config, data.labels, fabric, core, model, optimizer, pre, post)


def _identity(config: TrainConfig, data: DataResult, accelerator: str, precision: str) -> str:
    """Digest of everything the final weights depend on."""
    parts = {
        "config": config.model_dump(mode="json"),
        "data": data.model_dump(mode="json", include={"labels", "size_wh", "colour", "mean", "std", "digests"}),
        "torch": torch.__version__,
        "runs": [accelerator, precision],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _start(out_dir: Path, identity: str, learner: Learner, on_step: OnStep) -> tuple[Progress, dict[str, Tensor], int]:
    """Progress, kept weights and step to go on from: those of a checkpoint, or of a fresh start."""
    optimizer = learner.optimizer.optimizer
    found = load_checkpoint(out_dir, identity, learner.core, optimizer)
    if found is not None:
        progress, kept = found
        learner.fabric.strategy.precision.load_state_dict(progress.scaler)
        on_step(Step("train", note=f"goes on after epoch {progress.epoch}, step {progress.step}"))
        return progress, kept, progress.step
    if (out_dir / FILE).is_file():
        on_step(Step("train", note="starts over: the checkpoint is of other settings, data or libraries"))
    return Progress(), plain(learner.core.state_dict()), 0


def _fit(
    learner: Learner,
    train: Examples,
    val: Examples,
    progress: Progress,
    kept: dict[str, Tensor],
    out_dir: Path,
    identity: str,
    on_step: OnStep,
) -> None:
    """Epochs until the last or the early stop; updates `progress` and `kept` in place."""
    config, metric = learner.config, learner.device_task.metric
    steps = len(train) // config.batch_size
    total = steps * config.epochs
    while progress.epoch < config.epochs and not _is_stale(config, progress):
        began, cpu_began = time.perf_counter(), time.process_time()
        epoch, before = progress.epoch + 1, progress.step

        def on_batch(done: int, values: dict[str, float], before: int = before, epoch: int = epoch) -> None:
            on_step(Step("train", before + done, total, {"epoch": epoch, **values}))

        row = train_epoch(learner, train, epoch, total, on_batch)
        measured = evaluate(learner, val)
        progress.epoch, progress.step = epoch, before + steps
        if measured.metric > progress.best:
            progress.best, progress.best_epoch = measured.metric, epoch
        if measured.metric >= progress.best - measured.error:
            progress.kept_epoch = epoch
            kept.update(plain(learner.core.state_dict()))
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        progress.cpu_seconds += time.process_time() - cpu_began
        progress.rows.append(
            {
                "epoch": epoch,
                "lr": row["lr"],
                "train_loss": row["loss"],
                f"train_{metric}": row[metric],
                "val_loss": measured.loss,
                f"val_{metric}": measured.metric,
                "seconds": seconds,
                "images_per_s": row["images_per_s"],
            }
        )
        progress.scaler = learner.fabric.strategy.precision.state_dict()
        save_checkpoint(out_dir, identity, progress, learner.core, learner.optimizer.optimizer, kept)
        values = {key: value for key, value in row.items() if key != "lr"}
        on_step(Step("train", progress.step, total, {"epoch": epoch, **values, f"val_{metric}": measured.metric}))


def _is_stale(config: TrainConfig, progress: Progress) -> bool:
    return bool(config.patience) and progress.epoch - progress.best_epoch >= config.patience


def _gates(config: TrainConfig, metric: str, value: float, n: int) -> tuple[Gate, ...]:
    if not config.min_accuracy:
        return ()
    passed = value >= config.min_accuracy
    message = f"val {metric} is {value:.2%} of n = {n}, the limit is {config.min_accuracy:.2%}"
    gate = Gate(
        name="train.min_accuracy", value=value, limit=config.min_accuracy, passed=passed, stop=True, message=message
    )
    return (gate,)
