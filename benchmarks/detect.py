"""Detection on BCCD: `python benchmarks/detect.py --bccd DIR [--seeds K] [--set KEY=VALUE] [--run DIR] [--out FILE]`.

`pipeline init --data DIR`, then `pipeline all` with what it wrote and upside-down flips, which blood cells allow. Val
over the CPU time of training, test in every engine, the speed of every variant, and the time that decoding takes beside
inference. `--run` keeps the runs there, and goes on with what is in it.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common

MARKS_CPU_S = (250.0, 590.0, 1380.0)
"""CPU seconds at which the peer, YOLO11n trained from scratch on the same files and one thread, reached `PEER_MAP50` on
val: one run, on another machine."""
PEER_MAP50 = (0.52, 0.85, 0.89)
FRAMES = 300  # decoded, for the share of decoding in the time of a frame


def measure(folder: Path, bccd: Path, seed: int, sets: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """One seed: what run.json and the training curve say, and the time of decoding."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "bccd.toml"
    if not config.exists():
        common.pipeline("init", "--data", str(bccd.resolve()), "--out", str(config), env=env)
    changes = ["train.augment.flip_vertical=0.5", f"train.seed={seed}", *sets]
    flags = [part for change in changes for part in ("--set", change)]
    done = common.pipeline("all", str(config), "--run", str(folder / "run"), *flags, env=env)
    document = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    results = {stage["name"]: stage["result"] for stage in document["stages"]}
    decoded = common.run([sys.executable, __file__, "--decode", str(folder / "run" / "bundle")], env=env)
    return {
        "seed": seed,
        "config": document["config"],
        "wall_s": done.wall_s,
        "cpu_s": done.cpu_s,
        "train": {name: results["train"][name] for name in ("cpu_seconds", "val", "parameters", "macs", "precision")},
        "curve": read_curve(folder / "run" / "train" / "curves.csv"),
        "quantize": {name: results["quantize"][name] for name in ("chosen", "drop", "reason")},
        "rows": results["evaluate"]["rows"],
        "int8_drop": results["evaluate"]["int8_drop"],
        "bench": results["bench"]["rows"],
        "bench_status": results["bench"]["status"],
        "decode": json.loads(decoded.stdout),
    }


def read_curve(file: Path) -> list[dict[str, float]]:
    """Per epoch the CPU seconds so far, measuring val included, and what val says."""
    rows, spent = [], 0.0
    with file.open(newline="", encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            spent += float(row["cpu_seconds"])
            rows.append({"cpu_s": spent, "map50": float(row["val_map50"]), "map50_95": float(row["val_map50_95"])})
    return rows


def at(curve: Sequence[Mapping[str, float]], cpu_s: float) -> Mapping[str, float] | None:
    """The last epoch that was over by then."""
    done = [row for row in curve if row["cpu_s"] <= cpu_s]
    return done[-1] if done else None


def decode_times(bundle_folder: Path) -> dict[str, float]:
    """Milliseconds of inference (median) and of decoding (median, 95 %) of the sample's frames, one thread."""
    import numpy as np

    from edge_demo.bundle import open_bundle
    from edge_demo.runtime import open_runtime
    from edge_demo.tasks import TASKS

    bundle = open_bundle(bundle_folder)
    row = TASKS[bundle.manifest.task]
    variant = next(v for v in bundle.manifest.variants if v.precision == bundle.manifest.recommended)
    runtime = open_runtime("onnxruntime", bundle.model_bytes(variant.precision), threads=1)
    frames, _ = bundle.eval_sample()
    infer_ms, decode_ms = [], []
    for index in range(FRAMES):
        frame = frames[index % len(frames)][None]
        start = time.perf_counter()
        raw = runtime.infer({"frames": frame})
        middle = time.perf_counter()
        row.decode(raw, bundle.params)
        infer_ms.append(1e3 * (middle - start))
        decode_ms.append(1e3 * (time.perf_counter() - middle))
    return {
        "n": FRAMES,
        "infer_p50_ms": float(np.median(infer_ms)),
        "decode_p50_ms": float(np.median(decode_ms)),
        "decode_p95_ms": float(np.quantile(decode_ms, 0.95)),
    }


def curve_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Val at the marks and at the end of training."""
    rows = []
    for mark, peer in zip(MARKS_CPU_S, PEER_MAP50, strict=True):
        found = [row for seed in seeds if (row := at(seed["curve"], mark))]
        ended = sum(seed["curve"][-1]["cpu_s"] <= mark for seed in seeds)
        rows.append([
            f"{mark:g} CPU-s{' (training was over)' if ended == len(seeds) else ''}",
            common.spread([row["map50"] for row in found], 3), f"{peer:.2f}",
            common.spread([row["map50_95"] for row in found], 3),
        ])  # fmt: skip
    spent = common.spread([seed["train"]["cpu_seconds"] for seed in seeds], 0, " CPU-s")
    last = [seed["curve"][-1] for seed in seeds]
    rows.append([f"end, {spent}", *(common.spread([row[k] for row in last], 3) for k in ("map50",)), "",
                 common.spread([row["map50_95"] for row in last], 3)])  # fmt: skip
    return common.table(["val", "mAP50", "peer's mAP50", "mAP50-95"], rows)


def test_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Test, in every engine."""
    rows = []
    for engine in dict.fromkeys((row["runtime"], row["precision"]) for seed in seeds for row in seed["rows"]):
        found = [row for seed in seeds for row in seed["rows"] if (row["runtime"], row["precision"]) == engine]
        values = [common.spread([row["metrics"][name] for row in found], 4) for name in ("map50", "map50_95")]
        rows.append([" ".join(engine), *values, str(found[0]["n"])])
    return common.table(["test", "mAP50", "mAP50-95", "n"], rows)


def speed_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Bench rows of the last seed, and decoding."""
    rows = [
        [row["id"], f"{row['p50_ms']:.2f}" if row["p50_ms"] else "", f"{row['ratio'][0]:.2f}" if row["ratio"] else "",
         row["effective"], row["status"]]
        for row in seeds[-1]["bench"]
    ]  # fmt: skip
    found = seeds[-1]["decode"]
    share = 100 * found["decode_p95_ms"] / found["infer_p50_ms"]
    note = (
        f"Decoding takes {found['decode_p50_ms']:.3f} ms, {found['decode_p95_ms']:.3f} ms at 95 %: {share:.1f} % of "
        f"the {found['infer_p50_ms']:.2f} ms of an inference (n = {found['n']})."
    )
    return f"{common.table(['variant', 'p50 ms', 'speed', 'computes in', 'host'], rows)}\n\n{note}"


def main() -> None:
    """See above."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--bccd", type=Path, help="the VOC folder")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--run", type=Path, help="keep the runs in this folder")
    parser.add_argument("--decode", type=Path, metavar="BUNDLE", help="only time the decoding of a bundle")
    arguments = parser.parse_args()
    if arguments.decode:
        print(json.dumps(decode_times(arguments.decode)))
        return
    if arguments.bccd is None:
        parser.error("--bccd DIR is missing")
    document = common.begin("detect")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.run or Path(scratch)
        env = common.environment(None)
        seeds = [measure(folder / str(k), arguments.bccd, k, arguments.sets, env) for k in range(arguments.seeds)]
    document["seeds"] = seeds
    common.end(document, [curve_table(seeds), test_table(seeds), speed_table(seeds)], arguments.out)


if __name__ == "__main__":
    main()
