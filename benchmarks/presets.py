"""Presets, from data to report: `python benchmarks/presets.py [PRESET ...] [--seeds K] [--until train] [--out FILE]`.

Each seed is one `pipeline all --preset PRESET` in a fresh run folder with `train.seed` and `data.seed` set to it, then
the same command again twice: everything must come from the cache. Accuracy is that of the whole test split, which
nothing but the final evaluation reads. With `--until train` each seed is one `pipeline train`, and the kept weights are
scored on test once, in float32 by torch: training alone, for the time that takes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common


def typed(preset: str, seed: int, sets: Sequence[str]) -> list[str]:
    """The arguments behind `pipeline all` or `pipeline train`."""
    keys = (*sets, f"train.seed={seed}", f"data.seed={seed}")
    return ["--preset", preset, "--run", "run", *(word for key in keys for word in ("--set", key))]


def measure(preset: str, seed: int, sets: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """One seed: what run.json says, and the times of the process as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["all", *typed(preset, seed, sets)]
        first = common.pipeline(*command, env=env, cwd=Path(folder))
        document = read_run(Path(folder))
        cached = [common.pipeline(*command, env=env, cwd=Path(folder)) for _ in range(2)]
        again = read_run(Path(folder))
    results = {stage["name"]: stage["result"] for stage in document["stages"]}
    return {
        "seed": seed,
        "exit_code": first.exit_code,
        "missed_gates": [gate["name"] for gate in document["gates"] if not gate["passed"]],
        "wall_s": first.wall_s,
        "cpu_s": first.cpu_s,
        "peak_rss_mb": first.peak_rss_mb,
        "stage_seconds": {stage["name"]: stage["seconds"] for stage in document["stages"]},
        "cached_wall_s": [done.wall_s for done in cached],
        "all_cached": all(stage["status"] == "cached" for stage in again["stages"]),
        "counts": results["data"]["counts"],
        "train": {name: results["train"][name] for name in ("cpu_seconds", "seconds", "val", "train", "precision")},
        "parameters": results["train"]["parameters"],
        "parity": results["export"]["parity"],
        "metric": results["evaluate"]["metric"],
        "rows": results["evaluate"]["rows"],
        "int8_drop": results["evaluate"]["int8_drop"],
        "recommended": results["evaluate"]["recommended"],
        "bench": {row["id"]: row["ratio"] for row in results["bench"]["rows"]},
        "bench_status": results["bench"]["status"],
    }


def measure_training(preset: str, seed: int, sets: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """One seed of the training alone: what the stage says, and the test metric of the weights it kept."""
    began = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        common.pipeline("train", *typed(preset, seed, sets), env=env, cwd=Path(folder))
        stages = {stage["name"]: stage["result"] for stage in read_run(Path(folder))["stages"]}
        scored = common.run([sys.executable, __file__, "--score", str(Path(folder) / "run")], env=env)
    names = ("cpu_seconds", "seconds", "val", "train", "epochs", "best_epoch", "parameters", "precision", "metric")
    load = [round(began, 2), round(os.getloadavg()[0], 2)]
    found = {"seed": seed, "load_average": load, **json.loads(scored.stdout)}
    found |= {name: stages["train"][name] for name in names}
    print(preset, json.dumps(found), file=sys.stderr, flush=True)  # a later seed may be interrupted
    return found


def score(run: Path) -> None:
    """Prints the metric of a run's kept weights on its test split, as JSON; in a process of its own, torch is large."""
    import torch
    from safetensors.torch import load_file

    from stages.spec import DataResult, TrainConfig
    from stages.train.epoch import evaluate
    from stages.train.examples import load_examples
    from stages.train.stage import make_fabric, make_learner

    stages = {stage["name"]: stage["result"] for stage in read_run(run.parent)["stages"]}
    data = DataResult.model_validate_json(json.dumps(stages["data"])).model_copy(update={"folder": run / "data"})
    config = TrainConfig.model_validate_json((run / "train" / "config.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    fabric = make_fabric("cpu", "32-true")
    config = config.model_copy(update={"ema": 0.0})  # what was kept is the average already
    learner = make_learner(config, data, fabric, {})
    learner.core.load_state_dict(load_file(run / "train" / stages["train"]["weights"]))
    test = load_examples(data, "test", fabric.device)
    print(json.dumps({"test": evaluate(learner, test).metric, "n": len(test)}))


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of the run in `folder`."""
    document: dict[str, Any] = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    return document


def accuracy_table(preset: str, seeds: list[dict[str, Any]]) -> str:
    """Per engine: the test metric, agreement with PyTorch and the largest difference of logits, over all seeds."""
    rows = []
    for engine in dict.fromkeys((row["runtime"], row["precision"]) for seed in seeds for row in seed["rows"]):
        found = [row for seed in seeds for row in seed["rows"] if (row["runtime"], row["precision"]) == engine]
        metric = seeds[0]["metric"]
        rows.append([
            f"{preset}: {engine[0]} {engine[1]}",
            common.spread([100 * row["metrics"][metric] for row in found], 2, " %"),
            " / ".join(sorted({f"{row['n']:,}" for row in found})),
            f"{100 * min(row['agreement'] for row in found):.3f} %",
            f"{max(row['max_abs_logits'] for row in found):.2g}",
        ])  # fmt: skip
    n = f"mean [min, max] of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]['seed']}"
    return common.table(
        [f"engine ({n})", seeds[0]["metric"], "test items", "agreement with torch, lowest", "largest logit difference"],
        rows,
    )


def training_table(preset: str, seeds: list[dict[str, Any]]) -> str:
    """Accuracy and cost of the training alone."""
    loads = [load for seed in seeds for load in seed["load_average"]]
    row = [
        f"`{preset}`, {seeds[0]['parameters']:,} parameters, {seeds[0]['precision']}, n = {len(seeds)} seeds",
        common.spread([100 * seed["test"] for seed in seeds], 2, " %"),
        f"{seeds[0]['n']:,}",
        common.spread([100 * seed["val"] for seed in seeds], 2, " %"),
        common.spread([seed["cpu_seconds"] for seed in seeds], 1),
        f"{min(loads):.1f}-{max(loads):.1f}",
    ]
    return common.table(["training", f"test {seeds[0]['metric']}", "items", "val", "CPU-s", "load"], [row])


def cost_table(preset: str, seeds: list[dict[str, Any]]) -> str:
    """Training cost, INT8 drop, parity, stage times and the cached second run."""
    drops = [100 * drop for seed in seeds for drop in seed["int8_drop"].values()]
    parity = [row for seed in seeds for row in seed["parity"]]
    rows = [
        ["training, CPU seconds", common.spread([seed["train"]["cpu_seconds"] for seed in seeds], 1)],
        ["training, wall seconds", common.spread([seed["train"]["seconds"] for seed in seeds], 1)],
        ["parameters", f"{seeds[0]['parameters']:,}"],
        ["INT8 drop on test, points (every runtime)", common.spread(drops)],
        [
            "parity: lowest agreement",
            f"{100 * min(row['agreement'] for row in parity):.3f} % (n >= {min(row['n'] for row in parity)})",
        ],
        ["parity: largest difference of logits", f"{max(row['max_abs'] for row in parity):.2g}"],
        ["recommended", ", ".join(sorted({seed["recommended"] for seed in seeds}))],
        ["whole run, wall seconds", common.spread([seed["wall_s"] for seed in seeds], 1)],
        *(
            [f"stage {name}, seconds", common.spread([seed["stage_seconds"][name] for seed in seeds], 1)]
            for name in seeds[0]["stage_seconds"]
        ),
        ["second run, wall seconds", common.spread([wall for seed in seeds for wall in seed["cached_wall_s"]])],
        ["second run, every stage cached", "yes" if all(seed["all_cached"] for seed in seeds) else "NO"],
        ["peak RSS, MB", common.spread([seed["peak_rss_mb"] for seed in seeds], 0)],
        ["missed gates", ", ".join(sorted({gate for seed in seeds for gate in seed["missed_gates"]})) or "none"],
    ]
    return common.table([preset, f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"], rows)


def main(default_presets: tuple[str, ...] = ("mnist", "fashion", "keras-convnet"), default_seeds: int = 1) -> None:
    """Run the presets asked for."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--data", type=Path, help="folder of the standard sets (default: PIPELINE_DATA)")
    parser.add_argument("presets", nargs="*", default=list(default_presets))
    parser.add_argument("--seeds", type=int, default=default_seeds, help="seeds 0 to K - 1")
    parser.add_argument("--until", choices=["all", "train"], default="all", help="train: no later stage")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v", dest="sets", help="for every preset")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        score(options.score)
        return
    document, env, tables = common.begin("presets"), common.environment(options.data), []
    document |= {"sets": options.sets, "presets": {}}
    for preset in options.presets:
        one = measure if options.until == "all" else measure_training
        seeds = [one(preset, seed, options.sets, env) for seed in range(options.seeds)]
        document["presets"][preset] = seeds
        if options.until == "all":
            tables += [accuracy_table(preset, seeds), cost_table(preset, seeds)]
        else:
            tables.append(training_table(preset, seeds))
    common.end(document, tables, options.out)


if __name__ == "__main__":
    main()
