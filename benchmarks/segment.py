"""Segmentation: `python benchmarks/segment.py [scenes] [pets] [readers] [--pets DIR] [--seeds K] [--out FILE]`.

`scenes`: `pipeline all --preset scenes-segment`. `pets`: `pipeline init --data DIR`, then `pipeline all` with what it
wrote. Of both: val over the CPU time of training, test in every engine and class, INT8's drop, the bench rows.
`readers`: frames per CPU second that scenes are composed at, or read from the stage's arrays, over what training takes.
`--run` keeps the runs there, and goes on with what is in it.
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

WANTED = {"scenes": 0.90, "pets": 0.60}  # test mIoU
WANTED_DROP = 0.01
WANTED_RATIO = 4.0
MARKS = (0.125, 0.25, 0.5, 0.75, 1.0)  # shares of a training's CPU time at which the curve is told
READ = 512  # frames of a reader's measurement
READERS = ("scenes-segment", "scenes-detect")


def measure(
    folder: Path, words: Sequence[str], seed: int, sets: Sequence[str], env: Mapping[str, str]
) -> dict[str, Any]:
    """One seed of `pipeline all`: what run.json and the training curve say."""
    changes = [f"train.seed={seed}", *sets]
    flags = [part for change in changes for part in ("--set", change)]
    done = common.pipeline("all", *words, "--run", str(folder), *flags, env=env)
    document = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    results = {stage["name"]: stage["result"] for stage in document["stages"]}
    return {
        "seed": seed,
        "config": document["config"],
        "wall_s": done.wall_s,
        "cpu_s": done.cpu_s,
        "labels": results["data"]["labels"],
        "train": {name: results["train"][name] for name in ("cpu_seconds", "val", "parameters", "macs", "precision")},
        "curve": read_curve(folder / "train" / "curves.csv"),
        "quantize": {name: results["quantize"][name] for name in ("chosen", "drop", "reason")},
        "rows": results["evaluate"]["rows"],
        "int8_drop": results["evaluate"]["int8_drop"],
        "recommended": results["evaluate"]["recommended"],
        "bench": results["bench"]["rows"],
        "bench_status": results["bench"]["status"],
    }


def read_curve(file: Path) -> list[dict[str, float]]:
    """Per epoch the CPU seconds so far, measuring val included, and val's mIoU."""
    rows, spent = [], 0.0
    with file.open(newline="", encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            spent += float(row["cpu_seconds"])
            rows.append({"cpu_s": spent, "miou": float(row["val_miou"])})
    return rows


def at(curve: Sequence[Mapping[str, float]], cpu_s: float) -> Mapping[str, float] | None:
    """The last epoch that was over by then."""
    done = [row for row in curve if row["cpu_s"] <= cpu_s * (1 + 1e-9)]
    return done[-1] if done else None


def curve_table(name: str, seeds: Sequence[Mapping[str, Any]]) -> str:
    """Val over the CPU time of training: of one annealed training, not what shorter ones would reach."""
    rows = []
    for mark in MARKS:
        found = [row for seed in seeds if (row := at(seed["curve"], mark * seed["curve"][-1]["cpu_s"]))]
        if found:
            cpu_s, miou = (common.spread([row[key] for row in found], n) for key, n in (("cpu_s", 0), ("miou", 3)))
            rows.append([f"{mark:.0%} of the training", cpu_s, miou])
    return common.table([f"{name}, val", "CPU-s", "mIoU"], rows)


def test_table(name: str, seeds: Sequence[Mapping[str, Any]]) -> str:
    """Test in every engine, then the classes of FP32 in ONNX Runtime."""
    rows = []
    for engine in dict.fromkeys((row["runtime"], row["precision"]) for seed in seeds for row in seed["rows"]):
        found = [row for seed in seeds for row in seed["rows"] if (row["runtime"], row["precision"]) == engine]
        interval = f"{found[0]['ci95'][0]:.4f} to {found[0]['ci95'][1]:.4f}"
        rows.append([" ".join(engine), *(common.spread([row["metrics"][key] for row in found], 4)
                     for key in ("miou", "pixel_accuracy")), interval, str(found[0]["n"])])  # fmt: skip
        if engine == ("onnxruntime", "fp32"):
            for index, label in enumerate(seeds[0]["labels"]):
                values = [row["metrics"][f"iou.{index}"] for row in found if f"iou.{index}" in row["metrics"]]
                rows.append([f"... IoU of {label}", common.spread(values, 4), "", "", ""])
    return common.table([f"{name}, test", "mIoU", "pixels right", "95 % interval, seed 0", "n"], rows)


def verdict(name: str, seeds: Sequence[Mapping[str, Any]]) -> str:
    """Against what is wanted, by the worst seed and engine."""
    fp32 = min(row["metrics"]["miou"] for seed in seeds for row in seed["rows"] if row["precision"] == "fp32")
    drop = max(value for seed in seeds for value in seed["int8_drop"].values())
    spent = max(seed["train"]["cpu_seconds"] for seed in seeds)
    return (
        f"{name}: test mIoU {fp32:.4f} (wanted {WANTED[name]}), INT8 loses {drop:.4f} (at most {WANTED_DROP}), "
        f"{spent:.0f} CPU-s of training, n = {len(seeds)} seeds; INT8: {seeds[-1]['quantize']['reason']}."
    )


def speed_table(name: str, seeds: Sequence[Mapping[str, Any]]) -> str:
    """Bench rows of the last seed."""
    rows = [
        [row["id"], f"{row['p50_ms']:.2f}" if row["p50_ms"] else "", f"{row['ratio'][0]:.2f}" if row["ratio"] else "",
         row["effective"], row["status"]]
        for row in seeds[-1]["bench"]
    ]  # fmt: skip
    return common.table([f"{name}, variant", "p50 ms", "speed", "computes in", "host"], rows)


def readers(folder: Path, pets: Path | None, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """Frames per CPU second of each reader and of training, one thread each."""
    small = ["data.scenes.train_frames=640", "data.scenes.val_frames=32", "data.scenes.test_frames=32"]
    jobs = [(name, ["--preset", name], small) for name in READERS]
    if pets is not None:
        config = folder / "pets.toml"
        common.pipeline("init", "--data", str(pets.resolve()), "--out", str(config), env=env)
        jobs.append(("pets", [str(config)], []))
    found = []
    for name, words, sets in jobs:
        flags = [part for change in [*sets, "train.epochs=2"] for part in ("--set", change)]
        common.pipeline("train", *words, "--run", str(folder / f"readers-{name}"), *flags, env=env)
        spent = common.run([sys.executable, __file__, "--read", str(folder / f"readers-{name}")], env=env)
        found.append({"name": name, **json.loads(spent.stdout)})
    return found


def read(run: Path) -> dict[str, float]:
    """Frames per CPU second: composed anew, or decoded and brought to size; read from the arrays; and trained on."""
    import torch

    from stages.scenes import fresh_scenes, load_composer
    from stages.spec import DataResult
    from stages.train.examples import load_examples

    document = json.loads((run / "run.json").read_text(encoding="utf-8"))
    results = {stage["name"]: stage["result"] for stage in document["stages"]}
    data = DataResult.model_validate(results["data"]).model_copy(update={"folder": run / "data"})
    torch.set_num_threads(1)
    with (run / "train" / "curves.csv").open(newline="", encoding="utf-8") as opened:
        epoch = list(csv.DictReader(opened))[-1]
    seen = data.counts["train"] + data.counts["val"] / 3  # val goes through the network as well, but one way only
    rates = {"trained": seen / float(epoch["cpu_seconds"])}
    if data.scenes is not None:
        composer = load_composer(data)
        fresh_scenes(composer, 0, 0, 8)
        began = time.process_time()
        fresh_scenes(composer, 0, 1, READ)
        rates["composed"] = READ / (time.process_time() - began)
    examples = load_examples(data, "train", torch.device("cpu"), 1)  # 1 MB: stays on disk, is mapped
    picked = [torch.randperm(len(examples))[:16] for _ in range(READ // 16)]
    examples.batch(picked[0])
    began = time.process_time()
    for some in picked:
        examples.batch(some)
    rates["cached"] = 16 * len(picked) / max(time.process_time() - began, 1e-6)
    return rates


def reader_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Each reader over training."""
    rows = []
    for one in found:
        for kind, what in (("composed", "composed anew"), ("cached", "from the stage's arrays")):
            if kind in one:
                ratio = one[kind] / one["trained"]
                rows.append([f"{one['name']}, {what}", f"{one[kind]:,.0f}", f"{one['trained']:,.0f}", f"{ratio:.1f}"])
    note = f"At least {WANTED_RATIO:g} times is wanted."
    return common.table(["reader", "frames per CPU-s", "training", "times"], rows) + f"\n\n{note}"


def main() -> None:
    """See above."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("parts", nargs="*", default=["scenes", "readers"], help="scenes, pets, readers")
    parser.add_argument("--pets", type=Path, help="a VOC folder with masks")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--run", type=Path, help="keep the runs in this folder")
    parser.add_argument("--read", type=Path, metavar="RUN", help="only time the readers of a run")
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(arguments.read)))
        return
    if "pets" in arguments.parts and arguments.pets is None:
        parser.error("--pets DIR is missing")
    document, env, tables = common.begin("segment"), common.environment(None), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.run or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for part in [part for part in arguments.parts if part != "readers"]:
            words = ["--preset", "scenes-segment"]
            if part == "pets":
                words = [str(folder / "pets.toml")]
                if not Path(words[0]).exists():
                    common.pipeline("init", "--data", str(arguments.pets.resolve()), "--out", words[0], env=env)
            runs = [(folder / f"{part}-{seed}", seed) for seed in range(arguments.seeds)]
            seeds = [measure(run, words, seed, arguments.sets, env) for run, seed in runs]
            document[part] = seeds
            tables += [
                curve_table(part, seeds),
                test_table(part, seeds),
                speed_table(part, seeds),
                verdict(part, seeds),
            ]
        if "readers" in arguments.parts:
            document["readers"] = readers(folder, arguments.pets, env)
            tables.append(reader_table(document["readers"]))
    common.end(document, tables, arguments.out)


if __name__ == "__main__":
    main()
