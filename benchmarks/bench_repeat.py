"""Does the benchmark agree with itself? `python benchmarks/bench_repeat.py TARGET [--runs N] [--out FILE.json]`.

1. Two complete `standard` runs: how far apart are the ratios, and how far absolute FPS and p50.
2. A/A: in how many runs does the interval of the baseline against its own duplicate contain 1.
3. A planted slow-down: a worker that spins 10 % longer after each inference; in how many runs is it called slower.
4. The same artifact compared with itself by `--compare`: how many gates fail.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import median
from typing import Any

COMMAND = (sys.executable, str(Path(__file__).resolve()), "--worker")
SLOWER = 0.10
GATES = ("p50>+5%", "fps<-5%", "cpu>+5%", "rss>+10%", "accuracy<-0.5pp")


# --- the worker with a planted slow-down -----------------------------------------------------------------------------


def serve() -> None:
    """Our worker; a runtime called `NAME:slow` spins `SLOWER` longer after every inference."""
    from dataclasses import replace

    from stages.bench import worker
    from stages.bench.subject import back_to_back

    ours, its_census = worker.load, worker.census

    def load(request: dict[str, Any]) -> Any:
        runtime, _, slow = request["runtime"].partition(":")
        subject, answer = ours({**request, "runtime": runtime})
        if not slow:
            return subject, answer
        clock, run = time.perf_counter_ns, subject.bound.run

        def run_longer() -> None:
            start = clock()
            run()
            end = clock()
            end += round((end - start) * SLOWER)
            while clock() < end:
                pass

        body = back_to_back(run_longer)
        return replace(subject, body=body, warm=body), answer

    worker.load = load  # type: ignore[assignment]
    worker.census = lambda request: its_census({**request, "runtime": request["runtime"].partition(":")[0]})
    worker.serve()


# --- the parent ------------------------------------------------------------------------------------------------------


def planted(target: Path, runs: int) -> list[dict[str, Any]]:
    """Runs of FP32 on ONNX Runtime against the same with the slow-down: verdict and ratio by the headline metric."""
    from stages.bench import rows
    from stages.bench.method import PLANS, Lab, measure
    from stages.bench.target import open_targets
    from stages.bench.variants import Variant
    from stages.spec import ignore

    plan, found = PLANS["standard"], []
    for number in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            model = open_targets([target], Path(folder))[0].models["fp32"]
            arms = [Variant(runtime.replace(":", "-"), runtime, "fp32", "f32", 1, model)
                    for runtime in ("onnxruntime", "onnxruntime:slow")]  # fmt: skip
            records, duplicate = measure(arms, Lab(Path(folder), number, plan, ignore, COMMAND))
            base, slow = records.values()
            same = rows.duplicate_ratios(duplicate, base, plan.launches, number)
            host = rows.judge_host([base, slow], same, number)
            row = rows.row(slow, base, plan.launches, host)
            if row.ratio is None or same is None:
                sys.exit(f"run {number}: {row.reason}")
            aa = rows.same_model(same, base.variant, host)
            found.append({"verdict": row.ratio.verdict, "ratio": row.ratio.headline, "metric": row.ratio.metric,
                          "aa": aa.ci95, "floor": aa.noise_floor, "interference": host.interference})  # fmt: skip
            print(f"planted {number + 1} of {runs}: {found[-1]}", file=sys.stderr, flush=True)
    return found


def against_itself(target: Path, runs: int) -> tuple[list[dict[str, Any]], int, int]:
    """`runs` + 1 quick runs, each compared with the one before: (A/A of each, gates that failed, inconclusive ones)."""
    from stages.bench import bench_target
    from stages.bench.compare import compare
    from stages.bench.gates import parse
    from stages.spec import BenchConfig

    documents = []
    for seed in range(runs + 1):
        documents.append(bench_target(target, BenchConfig(runtimes=("onnxruntime",), seed=seed)))
        print(f"quick {seed + 1} of {runs + 1}: {documents[-1].aa}", file=sys.stderr, flush=True)
    gates = [parse(expression) for expression in GATES]
    compared = [compare(new, old, "base.json", gates) for old, new in pairwise(documents)]
    outcomes = [gate.outcome for one in compared for gate in one.gates]
    same = [{"aa": document.aa.ci95, "floor": document.aa.noise_floor} for document in documents]
    failed_runs = sum(one.outcome == "failed" for one in compared)
    return same, failed_runs, outcomes.count("inconclusive")


def twice(target: Path) -> dict[str, Any]:
    """Two complete standard runs: absolute log difference of every number that both have."""
    from stages.bench import bench_target
    from stages.spec import BenchConfig

    first, second = (bench_target(target, BenchConfig(preset="standard", seed=seed)) for seed in (0, 1))
    apart: dict[str, list[float]] = {"wall ratio": [], "p50 ratio": [], "CPU ratio": [], "p50": [], "FPS": []}
    for old in first.variants:
        new = second.row(old.id)
        if not (old.ratio and new.ratio and old.latency_us and new.latency_us):
            continue
        apart["p50"].append(abs(log(new.latency_us.p50 / old.latency_us.p50)))
        if old.fps and new.fps and old.fps.median and new.fps.median:
            apart["FPS"].append(abs(log(new.fps.median / old.fps.median)))
        if old.id == first.baseline:
            continue
        pairs = {"wall ratio": (old.ratio.wall, new.ratio.wall), "CPU ratio": (old.ratio.cpu, new.ratio.cpu)}
        if old.ratio.p50 and new.ratio.p50:
            pairs["p50 ratio"] = (old.ratio.p50, new.ratio.p50)
        for name, (a, b) in pairs.items():
            apart[name].append(abs(log(b[0] / a[0])))
    return {
        "seconds": [first.seconds, second.seconds],
        "status": [first.status, second.status],
        "interference": [first.interference, second.interference],
        "aa": [first.aa.ci95, second.aa.ci95],
        "apart": apart,
    }


def main() -> None:
    """Measure, print, write."""
    # Not above: a worker is this file, too, and has no path to its neighbours.
    import common

    parser = common.parser(__doc__ or "")
    parser.add_argument("target", type=Path, help="a bundle")
    parser.add_argument("--runs", type=int, default=20, help="of the planted slow-down and of the self-comparison")
    arguments = parser.parse_args()
    document = common.begin("bench_repeat")
    document["standard"] = both = twice(arguments.target)
    document["planted"] = slow = planted(arguments.target, arguments.runs)
    same, failed, inconclusive = against_itself(arguments.target, arguments.runs)
    document["itself"] = {"aa": same, "failed_runs": failed, "inconclusive_gates": inconclusive}
    intervals = [*both["aa"], *(run["aa"] for run in slow), *(run["aa"] for run in same)]
    held = sum(low <= 1.0 <= high for low, high in intervals)
    lines = [
        (name, str(len(values)), f"{100 * median(values):.1f} %", f"{100 * max(values):.1f} %")
        for name, values in both["apart"].items()
        if values
    ]
    found = sum(run["verdict"] == "slower" for run in slow)
    checks = [
        ("a standard run takes", " and ".join(f"{seconds:.0f} s" for seconds in both["seconds"])),
        ("host, interference", ", ".join(f"{status} {100 * (share or 0):.1f} %" for status, share in
                                         zip(both["status"], both["interference"], strict=True))),
        ("A/A interval contains 1", f"{held} of {len(intervals)}"),
        ("planted 10 % slow-down called slower", f"{found} of {len(slow)}"),
        ("runs failed by gates against themselves", f"{failed} of {arguments.runs}"),
        ("gates inconclusive there", str(inconclusive)),
    ]  # fmt: skip
    head = ("two standard runs, difference of", "n", "median", "worst")
    common.end(document, [common.table(head, lines), common.table(("check", "result"), checks)], arguments.out)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        serve()
    else:
        main()
