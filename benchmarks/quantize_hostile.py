"""What plain quantization breaks: `python benchmarks/quantize_hostile.py [--seeds K] [--epochs E] [--out FILE.json]`.

Per seed a hostile network (see `hostile.py`) is trained on the embedded digits; then, on the test split: plain INT8
(every operator, minmax), with bias correction, after quantization-aware training started from plain INT8, and what the
search ends with, once judged by accuracy and speed on this host and once by accuracy alone; and what then ships, for
`evaluate` turns down what loses too much on test.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnxruntime
from hostile import trained
from numpy.typing import NDArray
from onnx import ModelProto

from stages import data as data_stage
from stages import export, quantize
from stages.arrays import load_frames, load_truth, to_bgr
from stages.evaluate import recommend
from stages.quantize.bias import corrected
from stages.quantize.calibration import collect, preprocessed
from stages.quantize.fine_tune import fine_tuned
from stages.quantize.recipes import Recipe, batch_readers, prepared, quantized
from stages.quantize.target import host_target
from stages.spec import (
    DataConfig,
    DataResult,
    EvaluateConfig,
    ExportConfig,
    ExportResult,
    QuantizeConfig,
    QuantizeResult,
    TrainResult,
)
from stages.statistics import mcnemar, wilson


def measure(seed: int, epochs: int, folder: Path) -> dict[str, Any]:
    """One seed: every figure on the whole test split, in ONNX Runtime."""
    for name in ("data", "train", "export", "host", "other"):
        (folder / name).mkdir()
    data = data_stage.run(DataConfig(test_set="auto", seed=seed), out_dir=folder / "data", on_step=lambda step: None)
    data = data.model_copy(update={"folder": folder / "data"})
    train = trained(data, folder / "train", seed=seed, epochs=epochs)
    exported = export.run(ExportConfig(parity_images=64), data, train, out_dir=folder / "export")
    test, truth = np.array(load_frames(data, "test")), load_truth(data, "test")
    taken: dict[str, NDArray[Any]] = {"batch": preprocessed(data, test), "frames": to_bgr(test)}  # by the input's name

    def right(model: ModelProto) -> NDArray[np.bool_]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        parts = [session.run(["logits"], {name: taken[name][at : at + 250]})[0] for at in range(0, len(test), 250)]
        return np.equal(np.concatenate(parts).argmax(axis=1), truth)

    calibration = collect(QuantizeConfig(seed=seed), data)
    source = prepared(exported.folder / exported.core, batch_readers("batch", calibration.batch))
    plain = quantized(source, Recipe())
    frames = load_frames(data, "train")

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
        return preprocessed(data, frames[np.sort(rng.choice(len(frames), n, replace=False))])

    tuned = fine_tuned(plain, source.model, draw, seed=seed, reduce_range=False, on_step=lambda step: None)
    fp32 = right(source.model)
    rows = {
        "FP32": fp32,
        "plain INT8": right(plain),
        "bias corrected": right(corrected(plain, source.model, calibration.batch)),
        "fine-tuned (QAT)": right(tuned),
    }
    other = "arm64" if host_target() != "arm64" else "x86-vnni"
    searches = {
        "search, this host": search("auto", seed, data, train, exported, folder / "host"),
        "search, accuracy alone": search(other, seed, data, train, exported, folder / "other"),
    }
    ships = {}
    for name, (found, model) in searches.items():
        row = rows[f"{name}: {found.chosen}"] = fp32 if model is None else right(model)
        drop = {"onnxruntime": float(fp32.mean() - row.mean())}
        limit = EvaluateConfig().max_int8_drop
        ships[name] = " because ".join(recommend(found, drop, limit, found.metric, len(truth)))
        print(f"seed {seed}: {name}: {ships[name]}", flush=True)
    return {
        "seed": seed,
        "n": len(truth),
        "rows": {name: described(fp32, found) for name, found in rows.items()},
        "ships": ships,
        "recovered": 1 - (fp32.mean() - rows["fine-tuned (QAT)"].mean()) / (fp32.mean() - rows["plain INT8"].mean()),
    }


def search(
    target: Any, seed: int, data: DataResult, train: TrainResult, exported: ExportResult, folder: Path
) -> tuple[QuantizeResult, ModelProto | None]:
    """What the stage finds, and the chosen network; None where FP32 is kept."""
    from stages.onnx_graph import load

    found = quantize.run(QuantizeConfig(target=target, seed=seed), data, train, exported, out_dir=folder)
    return found, None if found.chosen == "FP32" else load(folder / found.core)


def described(fp32: NDArray[np.bool_], found: NDArray[np.bool_]) -> dict[str, Any]:
    """Accuracy with its interval, the drop in points, and the paired test."""
    lost, won = int((fp32 & ~found).sum()), int((~fp32 & found).sum())
    return {
        "accuracy": float(found.mean()),
        "ci95": wilson(float(found.sum()), len(found)),
        "drop_points": 100 * float(fp32.mean() - found.mean()),
        "paired": (lost, won),
        "p": mcnemar(lost, won),
    }


def shown(seeds: Sequence[dict[str, Any]]) -> str:
    """The table over all seeds, and one row per seed for what QAT recovers."""
    lines = []
    for seed in seeds:
        for name, row in seed["rows"].items():
            low, high = row["ci95"]
            cells = (
                f"{100 * row['accuracy']:.2f} %",
                f"{100 * low:.2f} to {100 * high:.2f}",
                f"{row['drop_points']:.2f}",
            )
            lines.append([f"seed {seed['seed']}: {name}", *cells, f"{row['paired'][0]} / {row['paired'][1]}"])
        lines.append([f"seed {seed['seed']}: loss recovered by QAT", f"{100 * seed['recovered']:.0f} %", "", "", ""])
        for name, text in seed["ships"].items():
            lines.append([f"seed {seed['seed']}: {name}, ships", text.split(" because ")[0].upper(), "", "", ""])
    return common.table(["network", f"accuracy, n = {seeds[0]['n']:,}", "95 %", "drop", "items lost / won"], lines)


def main() -> None:
    """Run the seeds."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to K - 1")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of the FP32 training")
    options = parser.parse_args()
    document = common.begin("quantize_hostile")
    document["seeds"] = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            document["seeds"].append(measure(seed, options.epochs, Path(folder)))
    common.end(document, [shown(document["seeds"])], options.out)


if __name__ == "__main__":
    main()
