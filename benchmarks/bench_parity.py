"""Our call paths against OpenVINO's own loops: `python benchmarks/bench_parity.py [--out FILE.json]`.

`openvino.tools.benchmark` (what `benchmark_app` runs) is one more arm of the same interleaved rounds: same file, same
compile properties, inputs bound once. Ratios > 1: ours is faster. Then the cold start of our worker against a bare
ten-line script of the same runtime. Models are built with random weights.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

LOOPS = "benchmark_app"
COMMAND = (sys.executable, str(Path(__file__).resolve()), "--worker")
COLD_RUNS = 12
BARE = {
    "onnxruntime": """
import sys, time, numpy
start = time.perf_counter()  # numpy is there before, as in our worker
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = session.get_inputs()[0].shape
session.run(None, {"images": numpy.zeros(shape, numpy.float32)})
print(1e3 * (time.perf_counter() - start))
""",
    "openvino": """
import sys, time, numpy
start = time.perf_counter()  # numpy is there before, as in our worker
import openvino
core = openvino.Core()
compiled = core.compile_model(sys.argv[1], "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
request = compiled.create_infer_request()
request.infer({0: numpy.zeros(compiled.inputs[0].shape, numpy.float32)})
print(1e3 * (time.perf_counter() - start))
""",
}


# --- the worker: `openvino.tools.benchmark`'s loops behind our protocol ----------------------------------------------


def serve() -> None:
    """Our worker, which also knows `benchmark_app` and fixed numbers of jobs (`openvino:4`)."""
    from stages.bench import worker

    ours, its_census = worker.load, worker.census

    def load(request: dict[str, Any]) -> Any:
        runtime, _, jobs = request["runtime"].partition(":")
        plain = {**request, "runtime": "openvino", "jobs": int(jobs) if jobs else request["jobs"]}
        return _load_loops(plain) if runtime == LOOPS else ours(plain)

    worker.load = load  # type: ignore[assignment]
    worker.census = lambda request: its_census({**request, "runtime": "openvino"})
    worker.serve()


def _load_loops(request: dict[str, Any]) -> Any:
    from openvino.tools.benchmark.benchmark import Benchmark
    from openvino.tools.benchmark.utils.inputs_filling import DataQueue

    from edge_demo.runtime import import_openvino, ov_spec
    from stages.bench.subject import Subject, Timed, choose_samples, settle
    from stages.bench.throughput import Bound

    ov = import_openvino()
    sync = request["scenario"] == "single"
    core = ov.Core()
    graph = core.read_model(request["model"])
    samples = choose_samples([ov_spec(port) for port in graph.inputs], request)
    compiled = core.compile_model(graph, "CPU", {
        "PERFORMANCE_HINT": "LATENCY" if sync else "THROUGHPUT", "INFERENCE_NUM_THREADS": request["threads"],
        "INFERENCE_PRECISION_HINT": request["precision"], "ENABLE_CPU_PINNING": False,
        **({"NUM_STREAMS": 1} if sync else {}),
    })  # fmt: skip
    jobs = request["jobs"] or compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    loops = Benchmark("CPU", jobs, None, 1, "sync" if sync else "async", True)
    requests = loops.create_infer_requests(compiled)
    buffers = [samples.at(0)["images"].copy() for _ in range(len(requests))]
    for one, buffer in zip(requests, buffers, strict=True):
        one.set_input_tensor(0, ov.Tensor(buffer, shared_memory=True))
    queue = DataQueue({}, [1])

    # The default keeps the buffers alive: a shared tensor does not.
    def body(seconds: float, min_runs: int, kept: list[Any] = buffers) -> Timed:
        loops.duration_seconds = max(seconds, 1e-3)
        run = loops.sync_inference if sync else loops.async_inference_only
        start = time.perf_counter_ns()
        _, _, n = run(requests[0] if sync else requests, queue)
        return Timed(n, time.perf_counter_ns() - start, None)

    single = compiled.create_infer_request()
    single.set_input_tensor(0, ov.Tensor(buffers[0], shared_memory=True))
    single.infer()
    bound = Bound({"images": buffers[0]}, {"scores": single.get_output_tensor(0).data}, single.infer)
    facts = dict.fromkeys(("import_ms", "load_ms", "first_ms", "cpu_ms", "run_delay_ms"), 0.0)
    answer = {**facts, "rss_base": None, "rss_ready": None, "effective": {"jobs": jobs}, "notes": [],
              "inputs": {"images": ["float32", *buffers[0].shape]}}  # fmt: skip
    settle()
    return Subject(bound, samples, body, body, {"jobs": jobs}), answer


# --- the parent ------------------------------------------------------------------------------------------------------


def paired(model: Path, scenario: str, arms: list[str], cores: int) -> tuple[list[dict[str, Any]], float | None, float]:
    """Every arm's speed over `benchmark_app`'s; wall and CPU with 95 % intervals. Also interference and seconds."""
    from stages.bench import rows
    from stages.bench.method import Lab, Plan, measure
    from stages.bench.model_file import read_model_file
    from stages.bench.variants import Variant
    from stages.spec import ignore

    plan = Plan(launches=3, rounds=20, slice_s=0.1, rewarm_s=0.02, min_runs=4, warm_cap_s=0.5)
    file = read_model_file(model)
    threads = 1 if scenario == "single" else cores
    variants = [Variant(arm.replace(":", "-j"), arm, "fp32", "f32", threads, file, scenario) for arm in arms]  # type: ignore[arg-type]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        records, duplicate = measure(variants, Lab(Path(folder), 0, plan, ignore, COMMAND))
    base = next(iter(records.values()))
    found = []
    for name, record in [*records.items(), ("A/A", duplicate)]:
        if record is None or record.failure is not None or record is base:
            continue
        ratios = rows.speed_ratios(record, base, plan.launches, 0)
        found.append({"arm": name, "wall": ratios["wall"], "cpu": ratios["cpu"], "rounds": len(record.rounds)})
    for name, record in records.items():
        if record.failure is not None:
            sys.exit(f"{name}: {record.failure}")
    share = rows.shared_interference([entry for record in records.values() for entry in rows.rounds_of(record)])
    return found, share, time.monotonic() - start


def cold(model: Path) -> dict[str, dict[str, Any]]:
    """Import, load and first inference: our worker's sum over the bare script's, alternating; medians of ms."""
    from stages.bench.client import Worker

    found = {}
    empty = dict.fromkeys(("jobs", "frames", "pictures", "task", "params", "contract"))
    request = {**empty, "model": str(model), "precision": "f32", "threads": 1, "spinning": False, "scenario": "cold",
               "fps": 30, "shapes": [], "seed": 0}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for runtime, script in BARE.items():
            ours, theirs = [], []
            for _ in range(COLD_RUNS):
                with Worker(1, Path(folder) / "log") as worker:
                    answer = worker.ask(60, do="load", runtime=runtime, **request)
                ours.append(answer["import_ms"] + answer["load_ms"] + answer["first_ms"])
                done = subprocess.run([sys.executable, "-c", script, str(model)], capture_output=True, check=True)
                theirs.append(float(done.stdout))
            ratios = sorted(mine / bare for mine, bare in zip(ours, theirs, strict=True))
            found[runtime] = {
                "n": COLD_RUNS,
                "ours_ms": median(ours),
                "bare_ms": median(theirs),
                "ratio": median(ratios),
                "quartiles": [ratios[COLD_RUNS // 4], ratios[-COLD_RUNS // 4]],
            }
    return found


def main() -> None:
    """Measure, print, write."""
    # Not above: a worker is this file, too, and has no path to its neighbours.
    import bench_models
    import common

    parser = common.parser(__doc__ or "")
    parser.add_argument("--models", nargs="+", choices=("tiny", "mobilenet"), default=("tiny", "mobilenet"))
    arguments = parser.parse_args()
    from stages.bench.proc import cores_effective

    cores = cores_effective()
    document, lines = common.begin("bench_parity"), []
    with tempfile.TemporaryDirectory() as folder:
        made = {"tiny": bench_models.tiny(Path(folder) / "tiny.onnx"),
                  "mobilenet": bench_models.mobilenet(Path(folder) / "mobilenet.onnx")}  # fmt: skip
        models = {name: made[name] for name in arguments.models}
        for name, model in models.items():
            asynchronous = [
                LOOPS,
                *(f"openvino:{cores * k}" for k in (1, 2, 4)),
                *(f"{LOOPS}:{cores * k}" for k in (2, 4)),
            ]
            for scenario, arms in (("single", [LOOPS, "openvino"]), ("throughput", asynchronous)):
                found, share, seconds = paired(model, scenario, arms, cores)
                document[f"{name}.{scenario}"] = {"ratios": found, "interference": share, "seconds": seconds}
                for row in found:
                    shown = [f"{row[key][0]:.3f} [{row[key][1]:.3f}, {row[key][2]:.3f}]" for key in ("wall", "cpu")]
                    lines.append(
                        (name, scenario, row["arm"], *shown, str(row["rounds"]), f"{100 * (share or 0):.1f} %")
                    )
        document["cold"] = {name: cold(model) for name, model in models.items()}
    head = ("model", "scenario", "arm / benchmark_app", "wall", "CPU", "rounds", "interference")
    starts = [
        (name, runtime, f"{row['ours_ms']:.0f}", f"{row['bare_ms']:.0f}",
         f"{row['ratio']:.3f} [{row['quartiles'][0]:.3f}, {row['quartiles'][1]:.3f}]", str(row["n"]))
        for name, rows in document["cold"].items()
        for runtime, row in rows.items()
    ]  # fmt: skip
    colds = ("model", "runtime", "ours ms", "bare script ms", "ratio [quartiles]", "n")
    common.end(document, [common.table(head, lines), common.table(colds, starts)], arguments.out)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        serve()
    else:
        main()
