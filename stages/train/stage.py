"""The stage: epochs with a measurement, a checkpoint and an early stop after each; what it leaves behind."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from safetensors.torch import save
from torch import Tensor

from edge_demo.errors import InputError
from stages.generalization import Sampled, judge
from stages.graph import Preprocess
from stages.inference import metric_interval
from stages.models import build, macs, network, parameters
from stages.other_run import OtherRun
from stages.spec import DataResult, Gate, OnStep, Step, TrainConfig, TrainResult, ignore
from stages.tasks import TASKS
from stages.train.average import average_of
from stages.train.checkpoint import (
    FILE,
    Identity,
    Progress,
    differences,
    load_checkpoint,
    plain,
    save_checkpoint,
    write_atomic,
)
from stages.train.curves import write_csv, write_png
from stages.train.device import check_compiler, choose_accelerator, choose_precision, keep_freed_memory
from stages.train.distributed import agree, for_many, is_first, local_device, reduce_sums
from stages.train.epoch import Measured, Watch, evaluate, steps_of, train_epoch
from stages.train.examples import Examples, balanced_weights, check_config, load_examples, streaming_notes
from stages.train.learner import Learner
from stages.train.memory import largest_batch
from stages.train.optim import make_optimizer
from stages.train.sources import load_teacher, read_sources, start
from stages.train.tracking import Log, tracked
from stages.train.val_picture import draw_val
from stages.train.warm_start import INIT_FROM, told
from stages.trained import CHANNELS

# Fabric announces its precision on stderr; a stage prints nothing, and its result says it.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

SAVE_EVERY_S = 60.0  # within an epoch; it decides only when a checkpoint is written, never what the outcome is
TRAIN_SAMPLE = 10_000  # training frames whose metric is measured at the end
TRAIN_PIXELS = 1 << 24  # of those frames, so that large ones do not take as long as an epoch


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
        out_dir: Gets best.safetensors, curves.csv, curves.png, config.json and val.png, and what `track` names; the
            checkpoint only until the end.
        on_step: Called after each epoch, and inside of one about ten times a second.

    Raises:
        InputError: settings that do not fit data, hardware, or the runs they name.
        Error: the loss became NaN or infinite, or the checkpoint is damaged.
    """
    check_config(config, data)
    accelerator = choose_accelerator(config)
    precision = choose_precision(config, accelerator)
    if config.compile:
        check_compiler(accelerator)
    others, said = read_sources(config, data, out_dir)
    sources = {key: other.sha256 for key, other in others.items()}
    notes = (*_choices(config, accelerator, precision), *said)
    for note in notes:
        on_step(Step("train", note=note))
    with torch_settings(config):
        fabric = make_fabric(accelerator, precision)
        train, val = (load_examples(data, split, fabric.device, config.resident_mb) for split in ("train", "val"))
        streamed = streaming_notes(train=train, val=val)
        for note in streamed:
            on_step(Step("train", note=note))
        learner = make_learner(config, data, fabric, others)
        started = (told(learner.core, others[INIT_FROM]),) if INIT_FROM in others else ()
        for note in started:
            on_step(Step("train", note=note))
        identity = _identity(config, data, accelerator, precision, sources)
        progress, kept, resumed = _start(out_dir, identity, learner, on_step)
        agree("the step to go on from", progress.step)
        learner = _with_batch_size(learner, train, progress, on_step)
        track = config.track if is_first() else ()
        with tracked(config.model_copy(update={"track": track}), out_dir, progress.rows) as log:
            _fit(learner, train, val, progress, kept, out_dir, identity, on_step, log)
        learner = replace(learner, average=None)  # what was kept is the average already
        learner.core.load_state_dict(kept)
        on_val = evaluate(learner, val)
        height, width = train.frames.shape[1:3]
        seen = train.sample(min(TRAIN_SAMPLE, max(1, TRAIN_PIXELS // (height * width))), config.seed)
        on_train = evaluate(learner, seen)
        drawn = draw_val(learner.task, data.labels, val, on_val.results, out_dir) if is_first() else ""
        in_channels = learner.pre.scale.shape[1]
        cost = parameters(learner.core), macs(learner.core, in_channels, data.size_wh)
    metric = learner.device_task.metric
    result = TrainResult(
        folder=out_dir,
        task=config.task,
        model=learner.config.model,
        labels=data.labels,
        in_channels=in_channels,
        size_wh=data.size_wh,
        metric=metric,
        val=on_val.metric,
        train=on_train.metric,
        best_epoch=progress.kept_epoch,
        epochs=progress.epoch,
        parameters=cost[0],
        macs=cost[1],
        seconds=progress.seconds,
        cpu_seconds=progress.cpu_seconds,
        precision=precision,
        accelerator=accelerator,
        batch_size=progress.pass_size,
        accumulate=-(-learner.config.batch_size * config.accumulate // progress.pass_size),
        recoveries=progress.recoveries,
        resumed_from_step=resumed,
        sources=sources,
        notes=(*notes, *streamed, *started, *progress.notes),
        gates=_gates(config, metric, on_val.metric, len(val)),
        val_png=drawn,
        generalization=judge(
            config,
            metric,
            _sampled(config.task, on_train, seen),
            _sampled(config.task, on_val, val),
            learner.task.fits_from,
            partial(_is_allowed, data=data),
        ),
    )
    if not is_first():
        return result
    write_atomic(out_dir / result.config_json, config.model_dump_json(indent=1).encode())
    write_atomic(out_dir / result.weights, save(kept))
    write_csv(out_dir / result.curves_csv, progress.rows)
    write_png(out_dir / result.curves_png, progress.rows, metric, progress.kept_epoch)
    shutil.rmtree((out_dir / FILE).parent)
    return result


def _sampled(task: str, measured: Measured, examples: Examples) -> Sampled:
    return Sampled(measured.metric, metric_interval(task, measured.results, examples.truth), len(examples))


def _is_allowed(config: TrainConfig, *, data: DataResult) -> bool:
    """Whether such a training could start."""
    try:
        check_config(config, data)
        with torch.random.fork_rng():
            build(config.model, CHANNELS[data.colour], data.size_wh, len(data.labels))
    except InputError:
        return False
    return True


def _choices(config: TrainConfig, accelerator: str, precision: str) -> tuple[str, ...]:
    notes = []
    if config.accelerator == "auto":
        notes.append(f"trains on {accelerator}")
    if config.precision == "auto":
        why = "the hardware multiplies bf16" if precision == "bf16-mixed" else "the hardware has no fast bf16"
        notes.append(f"trains in {precision}: {why}; measured in float32")
    if config.model.activation == "auto" and (own := network(config.model.name).activation):
        notes.append(f"the activation is {own}, the own one of {config.model.name}")
    return tuple(notes)


def make_fabric(accelerator: str, precision: str) -> Fabric:
    """Fabric for this process's device alone; what several processes share goes through `stages.train.distributed`."""
    alone = LightningEnvironment()  # else Fabric reads the number of processes from torchrun's or SLURM's variables
    return Fabric(accelerator=accelerator, devices=local_device(accelerator), precision=precision, plugins=alone)  # type: ignore[arg-type]


@contextmanager
def torch_settings(config: TrainConfig) -> Iterator[None]:
    """Threads and seed for the time of the training; the caller's are put back. The allocator stays as it then is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            yield
    finally:
        torch.set_num_threads(threads)


def make_learner(config: TrainConfig, data: DataResult, fabric: Fabric, others: Mapping[str, OtherRun]) -> Learner:
    """A network with its optimizer, on the device: freshly initialized, or made from another run's."""
    pre = Preprocess(data.colour, data.mean, data.std).to(fabric.device)
    core, model_config = start(config, data, others)
    config = config.model_copy(update={"model": model_config})
    core = core.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    core = for_many(core, fabric.device)
    network: Any = torch.compile(core) if config.compile else core
    model, optimizer = fabric.setup(network, make_optimizer(core, config))
    post = TASKS[config.task].post(data.size_wh).to(fabric.device)
    weights = balanced_weights(data, fabric.device) if config.class_weights == "balanced" else None
    average = average_of(core, config.ema)
    teacher = load_teacher(config, others, fabric)
    return Learner(config, data.labels, fabric, core, model, optimizer, pre, post, weights, average, teacher)


def _with_batch_size(learner: Learner, train: Examples, progress: Progress, on_step: OnStep) -> Learner:
    """Settles `batch_size = 0`, once per training: an interrupted one goes on with what was found then."""
    config = learner.config
    if not progress.pass_size:
        progress.pass_size = config.batch_size or largest_batch(learner, train)
        if not config.batch_size:
            progress.batch_size = progress.pass_size
            progress.notes.append(f"batches of {progress.batch_size}, the largest power of two that fits")
            on_step(Step("train", note=progress.notes[-1]))
    found = config.batch_size or progress.batch_size
    return replace(learner, config=config.model_copy(update={"batch_size": found}))


def _identity(
    config: TrainConfig, data: DataResult, accelerator: str, precision: str, sources: Mapping[str, str]
) -> dict[str, Any]:
    """Everything the final weights depend on."""
    return {
        "sources": dict(sources),
        "train": config.model_dump(mode="json", exclude={"track", "resident_mb"}),
        "data": data.model_dump(mode="json", include={"labels", "size_wh", "colour", "mean", "std", "digests"}),
        "torch": torch.__version__,
        "accelerator": accelerator,
        "precision": precision,
    }


def _start(
    out_dir: Path, identity: Identity, learner: Learner, on_step: OnStep
) -> tuple[Progress, dict[str, Tensor], int]:
    """Progress, kept weights and step to go on from: those of a checkpoint, or of a fresh start."""
    changed = differences(out_dir, identity)
    if changed is not None and not changed:
        progress, kept = load_checkpoint(out_dir, learner)
        on_step(Step("train", note=f"goes on after epoch {progress.epoch}, step {progress.step}"))
        return progress, kept, progress.step
    if changed:
        more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
        why = f"{'; '.join(changed[:3])}{more}"
        on_step(Step("train", note=f"starts over: the checkpoint is of another training ({why})"))
    return Progress(), plain(learner.shipped.state_dict()), 0


def _fit(
    learner: Learner,
    train: Examples,
    val: Examples,
    progress: Progress,
    kept: dict[str, Tensor],
    out_dir: Path,
    identity: Identity,
    on_step: OnStep,
    log: Log,
) -> None:
    """Epochs until the last or the early stop; updates `progress` and `kept` in place."""
    config, metric = learner.config, learner.device_task.metric
    steps = steps_of(learner, train)
    total = steps * config.epochs

    def tell(note: str) -> None:
        on_step(Step("train", note=note))

    while progress.epoch < config.epochs and not _is_stale(config, progress):
        began, cpu_began = time.perf_counter(), time.process_time()
        epoch, before = progress.epoch + 1, progress.epoch * steps
        saved = time.monotonic()

        def on_batch(done: int, values: dict[str, float], before: int = before, epoch: int = epoch) -> None:
            on_step(Step("train", before + done, total, {"epoch": epoch, **values}))

        def on_good(before: int = before) -> None:
            nonlocal saved
            if time.monotonic() - saved >= SAVE_EVERY_S:
                progress.step = before + progress.index
                save_checkpoint(out_dir, identity, progress, learner, kept)
                saved = time.monotonic()

        row = train_epoch(learner, train, progress, total, Watch(on_batch, tell, on_good))
        measured = evaluate(learner, val)
        progress.epoch, progress.step = epoch, before + steps
        if measured.metric > progress.best:
            progress.best, progress.best_epoch = measured.metric, epoch
        if measured.metric >= progress.best - measured.error:
            progress.kept_epoch = epoch
            kept.update(plain(learner.shipped.state_dict()))
        seconds = time.perf_counter() - began
        cpu_seconds = reduce_sums(time.process_time() - cpu_began)[0]
        progress.seconds += seconds
        progress.cpu_seconds += cpu_seconds
        progress.rows.append(
            {
                "epoch": epoch,
                "lr": row["lr"],
                "train_loss": row["loss"],
                **({f"train_{metric}": row[metric]} if metric in row else {}),
                "val_loss": measured.loss,
                f"val_{metric}": measured.metric,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "images_per_s": row["images_per_s"],
                **{f"val_{name}": value for name, value in measured.others.items()},
            }
        )
        save_checkpoint(out_dir, identity, progress, learner, kept)
        log(progress.rows[-1])
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
