"""FP32 to INT8: a search for one QDQ file that both runtimes run in integers, that stays accurate and is faster.

What it costs is measured on val, from the saved files; FP32 is kept, with the reason, where no recipe is worth it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edge_demo import tasks
from edge_demo.errors import Error
from stages import onnx_graph
from stages.arrays import load_frames
from stages.quantize import verdict
from stages.quantize.calibration import Calibration, collect, preprocessed
from stages.quantize.comparison import Stand, at_chance, measured, open_stand, reference_row
from stages.quantize.fine_tune import fine_tuned
from stages.quantize.front import Front, straight
from stages.quantize.half import HALVED, halved
from stages.quantize.recipes import Recipe, Source, batch_readers, prepared
from stages.quantize.search import Found, Tools, search
from stages.quantize.target import caveat, host_target, reduce_range, resolved
from stages.spec import (
    Candidate,
    DataResult,
    ExportResult,
    Gate,
    OnStep,
    QuantizeConfig,
    QuantizeResult,
    Step,
    TrainResult,
    ignore,
)
from stages.tasks import TASKS

__all__ = ["run"]


def run(
    config: QuantizeConfig,
    data: DataResult,
    train: TrainResult,
    export: ExportResult,
    *,
    out_dir: Path,
    on_step: OnStep = ignore,
) -> QuantizeResult:
    """Write `core.int8.onnx` and `model.int8.onnx`: the chosen recipe's, or the best one's when FP32 is kept.

    Raises:
        InputError: too few calibration images, or of another size; an exported file that is no model.
        Error: calibration data that is not what training saw; not one recipe works in both runtimes.
    """
    target = resolved(config.target)
    on_step(Step("calibrate", note=f"INT8 for {target}: {config.search} search, {config.images} training images"))
    calibration = collect(config, data)
    front = _front(data, export)
    source = _source(front, calibration, export.core)
    files = export.folder / export.pre, export.folder / export.core, export.folder / export.model
    frames, truth = load_frames(data, "val"), TASKS[data.task].truths(data, "val")
    deploy = partial(deployed, export=export, task=train.task, front=front)
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_stand(train.task, data.labels, frames, truth, files, deploy, Path(scratch)) as stand,
    ):
        tools = _tools(config, target, data, source, calibration, front, stand, on_step)
        found = search(tools, config.search == "thorough")
        assert found.best.core is not None  # the best is one that works
        for name, made in zip(("core", "model"), deploy(found.best.core), strict=True):
            onnx_graph.save(made, out_dir / f"{name}.int8.onnx")
        result = _result(config, target, train.task, stand, found, calibration, out_dir)
        if config.search == "thorough":
            on_step(Step("FP16 weights"))
            row = _half_row(stand, onnx_graph.load(files[1]), config.max_drop)
            result = result.model_copy(update={"candidates": (*result.candidates, row)})
    for row in result.candidates:
        on_step(Step("INT8", note=f"INT8 {row.verdict}: {row.name}: {row.reason}"))
    return result


def _front(data: DataResult, export: ExportResult) -> Front:
    """Colour frames straight into the first convolution, where there is one; else normalized as FP32 has them."""
    core, pre = (onnx_graph.load(export.folder / name) for name in (export.core, export.pre))
    found = straight(core, pre, data.mean, data.std) if data.colour == "rgb" else None
    return found or Front(core, partial(preprocessed, data), pre)


def _source(front: Front, calibration: Calibration, file: str) -> Source:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        onnx_graph.save(front.core, path)
        name = onnx_graph.input_names(front.core)[0]
        return prepared(path, batch_readers(name, front.feed(calibration.frames)), known=front.ranges)


def _tools(
    config: QuantizeConfig,
    target: str,
    data: DataResult,
    source: Source,
    calibration: Calibration,
    front: Front,
    stand: Stand,
    on_step: OnStep,
) -> Tools:
    fp32 = {name: reference.metric for name, reference in stand.fp32.items()}
    train_frames = load_frames(data, "train")

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
        picked = np.sort(rng.choice(len(train_frames), min(n, len(train_frames)), replace=False))
        return front.feed(train_frames[picked])

    def fine_tune(int8: ModelProto, recipe: Recipe) -> ModelProto:
        return fine_tuned(int8, source.model, draw, seed=config.seed, reduce_range=recipe.reduce_range, on_step=on_step)

    return Tools(
        source=source,
        measure=partial(measured, stand),
        inaccurate=lambda row: verdict.inaccurate(row, fp32, config.max_drop, len(stand.truth)),
        slow=(lambda row: "") if target != host_target() else verdict.slow,
        loss=lambda row: verdict.loss(row, fp32),
        calibration=front.feed(calibration.frames),
        val=front.feed(stand.few),
        fine_tune=fine_tune,
        reduce_range=reduce_range(target),
        on_step=on_step,
        pointless=at_chance(stand),
    )


def _half_row(stand: Stand, core: ModelProto, max_drop: float) -> Candidate:
    """What 16-bit storage of the weights would give; shown for comparison, it does not ship."""
    name = "FP32 with weights stored in FP16"
    try:
        row = measured(stand, name, halved(core))
    except Error as error:
        return Candidate(name=name, verdict="rejected", reason=error.message)
    fp32 = {runtime: reference.metric for runtime, reference in stand.fp32.items()}
    against = verdict.inaccurate(row, fp32, max_drop, len(stand.truth))
    if not against and row.size_bytes > HALVED * stand.fp32_bytes:
        against = f"does not halve the file ({stand.fp32_bytes:,} to {row.size_bytes:,} bytes)"
    if against:
        return row.model_copy(update={"reason": against})
    reason = f"holds its accuracy in {row.size_bytes:,} of {stand.fp32_bytes:,} bytes, but computes in FP32"
    return row.model_copy(update={"verdict": "not needed", "reason": reason})


def deployed(
    core: ModelProto, export: ExportResult, task: str, front: Front | None = None
) -> tuple[ModelProto, ModelProto]:
    """A bare network from `frames` to its raw outputs, and with the FP32 post graph and metadata, as it ships.

    Args:
        core: Takes a normalized batch; or what `front` feeds it, if it was made from that one's.
        export: Pre and post graphs.
        task: For the names of the outputs.
        front: What the network was made from, if not from `export`.
    """
    pre, post, model = (onnx_graph.load(export.folder / name) for name in (export.pre, export.post, export.model))
    if front is not None and onnx_graph.input_names(core) == onnx_graph.input_names(front.core):
        pre, core = front.pre, front.behind(core)
    metadata = {item.key: item.value for item in model.metadata_props}
    return onnx_graph.joined(pre, core), onnx_graph.composed(pre, core, post, TASKS[task].outputs, metadata)


def _result(
    config: QuantizeConfig, target: str, task: str, stand: Stand, found: Found, calibration: Calibration, out_dir: Path
) -> QuantizeResult:
    row = found.best.row
    fp32 = {name: reference.metric for name, reference in stand.fp32.items()}
    drop, passed = verdict.drop(row, fp32), not found.best.inaccurate
    baseline = reference_row(stand)
    if found.chosen is None:
        baseline = baseline.model_copy(update={"verdict": "chosen", "reason": found.reason})
    metric = tasks.TASKS[task].metric
    return QuantizeResult(
        folder=out_dir,
        metric=metric,
        val_fp32=fp32,
        val_int8=row.metric,
        n=len(stand.truth),
        paired=row.paired,
        drop=drop,
        max_drop=config.max_drop,
        passed=passed,
        sqnr_db=row.sqnr_db or 0.0,
        agreement=row.agreement,
        fused=row.fused,
        size_bytes=row.size_bytes,
        calibration={"method": found.best.recipe.method, "recipe": row.name, **calibration.facts},
        search=config.search,
        target=target,
        chosen=row.name if found.chosen else "FP32",
        reason=f"{found.reason}{caveat(target, host_target())}",
        candidates=(baseline, *found.rows),
        sensitivity=found.sensitivity,
        gates=(_gate(config, metric, drop, passed, len(stand.truth)),) if config.required else (),
    )


def _gate(config: QuantizeConfig, metric: str, drop: float, passed: bool, n: int) -> Gate:
    return Gate(
        name="quantize.max_drop",
        value=drop,
        limit=config.max_drop,
        passed=passed,
        stop=True,
        message=f"INT8 loses {100 * drop:.2f} points of {metric} on val, limit {100 * config.max_drop:.2f}, n = {n}",
    )
