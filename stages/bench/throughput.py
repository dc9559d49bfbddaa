"""The `throughput` body: as many inferences at a time as pays. Runs in a worker only.

OpenVINO: its own queue of requests over streams. ONNX Runtime has no queue; the like of it is K threads that call one
session with one internal thread each (`Run` gives up the GIL). How many at a time is best differs by model: it is
swept before the first round and then fixed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edge_demo.errors import InputError
from edge_demo.runtime import Bound, import_openvino, open_runtime, ov_spec
from stages.bench.inputs import Samples
from stages.bench.subject import Request, Subject, Timed, choose_samples

MULTIPLES = (1, 2, 4)  # of the streams, or of the CPUs
WINDOWS = 3
Saturate = Callable[[float, int], Timed]
"""(seconds, fewest runs) -> how many were done, at the number of jobs it was made for."""


def load_throughput(request: Request) -> tuple[Subject, float, float]:
    """As `stages.bench.subject.load_subject`; `request["jobs"]` fixes how many at a time, null: sweep."""
    start = time.perf_counter()
    make, bound, samples, effective = LOADERS[request["runtime"]](request)
    first = time.perf_counter()
    bound.run()
    ran = time.perf_counter()
    counts = [effective["streams"] * multiple for multiple in MULTIPLES]
    chosen: dict[str, Any] = {}

    def use(jobs: int) -> None:
        chosen["body"] = make(jobs)
        effective["jobs"] = jobs

    def sweep(window_s: float) -> dict[str, Any]:
        bodies = {jobs: make(jobs) for jobs in counts}
        rates: dict[int, list[float]] = {jobs: [] for jobs in counts}
        for body in bodies.values():
            body(window_s / 2, 1)
        for _ in range(WINDOWS):
            for jobs, body in bodies.items():
                timed = body(window_s, 1)
                rates[jobs].append(timed.n / timed.wall_ns * 1e9)
        found = {jobs: median(values) for jobs, values in rates.items()}
        use(max(found, key=lambda jobs: found[jobs]))
        return {"jobs": effective["jobs"], "jobs_sweep": {str(jobs): rate for jobs, rate in found.items()}}

    if request["jobs"] is not None:
        use(request["jobs"])

    def body(seconds: float, min_runs: int) -> Timed:
        timed: Timed = chosen["body"](seconds, min_runs)
        return timed

    subject = Subject(bound, samples, body, body, effective, sweep if request["jobs"] is None else None)
    return subject, (first - start) * 1e3, (ran - first) * 1e3


def _openvino(request: Request) -> tuple[Callable[[int], Saturate], Bound, Samples, dict[str, Any]]:
    ov = import_openvino()
    core = ov.Core()
    graph = core.read_model(Path(request["model"]))
    specs, results = (tuple(ov_spec(port) for port in ports) for ports in (graph.inputs, graph.outputs))
    samples = choose_samples(specs, request)
    feeds = samples.at(0)
    graph.reshape({port: list(feeds[spec.name].shape) for port, spec in enumerate(specs)})
    compiled = core.compile_model(
        graph,
        "CPU",
        {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": request["threads"],
            "INFERENCE_PRECISION_HINT": request["precision"],
            "ENABLE_CPU_PINNING": False,
        },
    )
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != request["precision"]:
        raise InputError(f"openvino uses precision {precision} on this CPU, not {request['precision']}")
    effective = {
        "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
        "precision": precision,
        "streams": compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"),
        "spinning": False,
        "version": ov.__version__,
        "device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
    }

    def request_with_input(made: Any) -> dict[str, Any]:
        arrays = {name: array.copy() for name, array in feeds.items()}
        for port, spec in enumerate(specs):
            made.set_input_tensor(port, ov.Tensor(arrays[spec.name], shared_memory=True))
        return arrays

    def make(jobs: int) -> Saturate:
        queue = ov.AsyncInferQueue(compiled, jobs)
        # A shared tensor does not keep the array it shares alive: the body has to.
        return partial(_fill, queue, [request_with_input(made) for made in queue])

    single = compiled.create_infer_request()
    inputs = request_with_input(single)
    single.infer()
    outputs = {}
    for port, tensor in enumerate(single.output_tensors):
        outputs[results[port].name] = np.zeros(tensor.shape, results[port].dtype)
        single.set_output_tensor(port, ov.Tensor(outputs[results[port].name], shared_memory=True))
    return make, Bound(inputs, outputs, partial(single.infer, share_outputs=True)), samples, effective


def _fill(queue: Any, inputs: list[dict[str, Any]], seconds: float, min_runs: int) -> Timed:
    """Keep the queue full until the time is over, then let it run dry: every inference counted is done.

    Each request runs equally often, as in `benchmark_app`: streams that run out of work at different moments would cost
    a short slice of a slow model some percent. `inputs` are the buffers the queue's requests read from.
    """
    clock, start_async = time.perf_counter_ns, queue.start_async
    n, start = 0, time.perf_counter_ns()
    end = start + int(seconds * 1e9)
    while n < min_runs or n % len(inputs) or clock() < end:
        start_async()
        n += 1
    queue.wait_all()
    return Timed(n, clock() - start, None)


def _onnxruntime(request: Request) -> tuple[Callable[[int], Saturate], Bound, Samples, dict[str, Any]]:
    runtime = open_runtime(
        "onnxruntime", Path(request["model"]), threads=1, precision=request["precision"], spinning=request["spinning"]
    )
    samples = choose_samples(runtime.inputs, request)

    def bind() -> Bound:
        return runtime.bind({name: array.copy() for name, array in samples.at(0).items()})

    def make(jobs: int) -> Saturate:
        return partial(_call, [bind() for _ in range(jobs)])

    return make, bind(), samples, {**runtime.effective, "threads": request["threads"], "streams": request["threads"]}


def _call(bounds: list[Bound], seconds: float, min_runs: int) -> Timed:
    """One thread per binding, each calling until the time is over.

    The rate is the sum of the callers' own: that some wait at the end for the last one is no throughput lost.
    """
    rates, counts = [0.0] * len(bounds), [0] * len(bounds)
    failures: list[BaseException] = []
    start = time.perf_counter_ns()
    end = start + int(seconds * 1e9)

    def loop(which: int) -> None:
        clock, run, n = time.perf_counter_ns, bounds[which].run, 0
        try:
            while clock() < end or n * len(bounds) < min_runs:
                run()
                n += 1
        except Exception as error:  # noqa: BLE001 - raised again in the calling thread
            failures.append(error)
        counts[which], rates[which] = n, n / (clock() - start)

    threads = [threading.Thread(target=loop, args=(which,)) for which in range(1, len(bounds))]
    for thread in threads:
        thread.start()
    loop(0)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return Timed(sum(counts), round(sum(counts) / sum(rates)), None)


LOADERS = {"openvino": _openvino, "onnxruntime": _onnxruntime}
