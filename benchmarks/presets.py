"""Presets, from data to report: `python benchmarks/presets.py [PRESET ...] [--seeds K] [--data DIR] [--out FILE.json]`.

Each seed is one `pipeline all --preset PRESET` in a fresh run folder with `train.seed` and `data.seed` set to it, then
the same command again twice: everything must come from the cache. Accuracy is that of the whole test split, which
nothing but the final evaluation reads.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common


def measure(preset: str, seed: int, env: Mapping[str, str]) -> dict[str, Any]:
    """One seed: what run.json says, and the times of the process as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        command = (
            "all",
            "--preset",
            preset,
            "--run",
            "run",
            "--set",
            f"train.seed={seed}",
            "--set",
            f"data.seed={seed}",
        )
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
    options = parser.parse_args()
    document, env, tables = common.begin("presets"), common.environment(options.data), []
    document["presets"] = {}
    for preset in options.presets:
        seeds = [measure(preset, seed, env) for seed in range(options.seeds)]
        document["presets"][preset] = seeds
        tables += [accuracy_table(preset, seeds), cost_table(preset, seeds)]
    common.end(document, tables, options.out)


if __name__ == "__main__":
    main()
