"""Ours against others: `python benchmarks/quantize_compare.py [PRESET ...] [--set a.b=v] [--runs DIR] [--data DIR]`.

For each preset one `pipeline train`, or with `--trained` the network that is in the run folder, however old; then
export and quantize, and the same bare FP32 network and the same calibration images through ONNX
Runtime's `quantize_static` and through NNCF, each with its default arguments. All files get the same pre- and
postprocessing and are measured on the whole test split and, in turn with FP32, on speed, in both runtimes. OpenVINO's
own bf16 is in the table where the CPU has it. NNCF (`pip install nncf`) is left out where it is not installed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edge_demo.errors import Error
from edge_demo.runtime import open_runtime
from pipeline.config import load_config
from stages import export, onnx_graph, quantize
from stages.arrays import load_frames, load_truth
from stages.other_run import read_other_run
from stages.quantize import deployed
from stages.quantize.calibration import Reader, collect
from stages.quantize.comparison import RUNTIMES, Stand, bind_one, measured, open_stand
from stages.quantize.speed import paired_speed
from stages.spec import Candidate, DataResult, ExportResult, QuantizeConfig, QuantizeResult, TrainResult


def run(preset: str, sets: Sequence[str], data: Path | None, folder: Path, *, trained: bool) -> dict[str, Any]:
    """One preset: train, export, quantize with the product, then every other tool on the same files."""
    if not trained:
        flags = [word for key in sets for word in ("--set", key)]
        common.pipeline("train", "--preset", preset, "--run", str(folder), *flags, env=common.environment(data))
    found = read_other_run(str(folder), "--runs")
    config = load_config(None, preset, sets)
    with tempfile.TemporaryDirectory() as scratch:
        places = {name: Path(scratch) / name for name in ("export", "quantize", "others")}
        for place in places.values():
            place.mkdir()
        exported = export.run(config.export, found.data, found.train, out_dir=places["export"])
        started, cpu_started = time.perf_counter(), time.process_time()
        ours = quantize.run(config.quantize, found.data, found.train, exported, out_dir=places["quantize"])
        took = {"quantize_seconds": time.perf_counter() - started, "quantize_cpu_s": time.process_time() - cpu_started}
        return {"preset": preset, **took, **compared(found.data, found.train, exported, ours, places["others"])}


def compared(
    data: DataResult, train: TrainResult, exported: ExportResult, ours: QuantizeResult, folder: Path
) -> dict[str, Any]:
    """Every file on the whole test split."""
    batch = collect(QuantizeConfig(), data).batch
    core = exported.folder / exported.core
    makers = {
        f"ours: {ours.calibration['recipe']}": lambda: onnx_graph.load(ours.folder / ours.core),
        "quantize_static, default arguments": lambda: static_default(core, batch, folder),
        "NNCF, default arguments": lambda: nncf_default(core, batch),
    }
    files = exported.folder / exported.pre, core, exported.folder / exported.model
    frames, truth = load_frames(data, "test"), list(load_truth(data, "test"))

    def deploy(core: ModelProto) -> tuple[ModelProto, ModelProto]:
        """Ours as it was written, the others between the FP32 pre and post graphs."""
        if onnx_graph.input_names(core) == ["frames"]:
            return core, onnx_graph.load(ours.folder / ours.model)
        return deployed(core, exported, train.task)

    rows: list[Candidate] = []
    with open_stand(train.task, data.labels, frames, truth, files, deploy, folder) as stand:
        for name, make in makers.items():
            rows.append(tried(stand, name, make))
            print(rows[-1].name, rows[-1].reason or "measured", flush=True)
        bf16 = bf16_speed(stand, exported)
        fp32 = {name: reference.metric for name, reference in stand.fp32.items()}
    return {
        "n": len(truth),
        "fp32": fp32,
        "fp32_bytes": files[2].stat().st_size,
        "chosen": ours.chosen,
        "reason": ours.reason,
        "rows": [row.model_dump(mode="json") for row in rows],
        "openvino_bf16_speed": bf16,
    }


def tried(stand: Stand, name: str, make: Any) -> Candidate:
    """A row, with the reason where a tool or a runtime gave up."""
    try:
        return measured(stand, name, make())
    except (Error, ModuleNotFoundError) as error:
        return Candidate(name=name, verdict="rejected", reason=str(error))


def static_default(core: Path, batch: NDArray[np.float32], folder: Path) -> ModelProto:
    """ONNX Runtime's own defaults: QDQ, signed activations, signed weights per tensor, minmax."""
    ready, made = folder / "ready.onnx", folder / "static.onnx"
    quant_pre_process(core, ready, skip_symbolic_shape=True)
    quantize_static(ready, made, Reader("batch", batch))
    return onnx_graph.clean(onnx_graph.load(made))


def nncf_default(core: Path, batch: NDArray[np.float32]) -> ModelProto:
    """NNCF's defaults on the ONNX model."""
    import nncf

    images = nncf.Dataset([{"batch": batch[at : at + 1]} for at in range(len(batch))])
    made: ModelProto = nncf.quantize(onnx_graph.load(core), images, subset_size=len(batch))
    return onnx_graph.clean(made)


def bf16_speed(stand: Stand, exported: ExportResult) -> tuple[float, float, float] | None:
    """FP32's file in OpenVINO's default precision, where that is bf16, against f32."""
    with closing(open_runtime("openvino", exported.folder / exported.model, precision="default", batch=1)) as runtime:
        if runtime.effective["precision"] != "bf16":
            return None
        one = bind_one(runtime, stand.frames)
        return paired_speed(stand.fp32["openvino"].bound.run, one.run)


def shown(found: dict[str, Any]) -> str:
    """One row per file, both runtimes in a cell."""
    lines = [["FP32", both(found["fp32"], found["n"]), "", "1", f"{found['fp32_bytes'] / 1e3:.0f}", ""]]
    for row in found["rows"]:
        if not row["metric"]:
            lines.append([row["name"], row["reason"], "", "", "", ""])
            continue
        speed = " / ".join(f"{m:.2f} [{low:.2f}, {high:.2f}]" for m, low, high in row["speed"].values())
        lost = " / ".join(f"{lost}, {won}" for lost, won in row["paired"].values())
        int8 = " / ".join(text.split(" convolutions")[0] for text in row["fused"].values())
        kb = f"{row['size_bytes'] / 1e3:.0f}"
        lines.append([row["name"], both(row["metric"], found["n"]), lost, speed, kb, int8])
    if found["openvino_bf16_speed"]:
        median, low, high = found["openvino_bf16_speed"]
        lines.append(["FP32 in OpenVINO's bf16", "", "", f"- / {median:.2f} [{low:.2f}, {high:.2f}]", "", ""])
    head = [f"{found['preset']}: {' / '.join(RUNTIMES)}", f"accuracy, n = {found['n']:,}", "items lost, won"]
    return common.table([*head, "speed against FP32, 95 %", "kB", "convolutions INT8"], lines)


def both(metric: dict[str, float], n: int) -> str:
    """Accuracy in both runtimes."""
    return " / ".join(f"{100 * value:.{2 if n >= 1000 else 1}f} %" for value in metric.values())


def main() -> None:
    """Run the presets asked for."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--data", type=Path, help="folder of the standard sets (default: PIPELINE_DATA)")
    parser.add_argument("presets", nargs="*", default=["digits"])
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v", help="for every preset")
    parser.add_argument("--runs", type=Path, help="keep the run folders here, and go on from what is there")
    parser.add_argument("--trained", action="store_true", help="take the networks in --runs as they are")
    options = parser.parse_args()
    document, tables = common.begin("quantize_compare"), []
    document["presets"] = []
    for preset in options.presets:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (options.runs or Path(scratch)) / preset
            found = run(preset, options.set, options.data, folder, trained=options.trained)
        document["presets"].append(found)
        took = f"{found['quantize_seconds']:.1f} s, {found['quantize_cpu_s']:.1f} s of CPU"
        told = f"{preset} {' '.join(options.set)}".strip()
        tables.append(f"{told}: quantize took {took}\n\n{shown(found)}")
    common.end(document, tables, options.out)


if __name__ == "__main__":
    main()
