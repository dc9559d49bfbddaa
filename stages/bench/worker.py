"""`python -m stages.bench.worker`: one model in one fresh process, told what to do by JSON lines.

One request per line on stdin, one answer per line on what was stdout at the start. Between requests it sleeps in
`read`, so workers that wait cost nothing. Its start is the cold-start measurement, its memory the variant's memory:
nothing is imported here that a device would not need.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_demo.errors import Error, InputError
from edge_demo.runtime import import_openvino, open_runtime
from stages.bench import power, proc
from stages.bench.subject import Request, Subject, choose_samples, load_subject, put, settle

Answer = dict[str, Any]


def load(request: Request) -> tuple[Subject, Answer]:
    """Import the library, load and bind the model, run it once; the answer holds what each step took."""
    rss_base, cpu, delay = proc.process_memory("VmRSS"), time.process_time(), proc.run_delay_ns()
    start = time.perf_counter()
    import_library(request["runtime"])
    imported = time.perf_counter()
    if request["scenario"] == "throughput":
        from stages.bench.throughput import load_throughput

        subject, load_ms, first_ms = load_throughput(request)
    else:
        subject, load_ms, first_ms = load_subject(request)
    cpu, delay_after = time.process_time() - cpu, proc.run_delay_ns()
    shapes = {name: [str(array.dtype), *array.shape] for name, array in subject.bound.inputs.items()}
    answer = {
        "import_ms": (imported - start) * 1e3,
        "load_ms": load_ms,
        "first_ms": first_ms,
        "cpu_ms": cpu * 1e3,
        "energy_source": drawn.source if (drawn := power.power()) else None,
        "run_delay_ms": None if delay is None or delay_after is None else (delay_after - delay) / 1e6,
        "rss_base": rss_base,
        "rss_ready": proc.process_memory("VmRSS"),
        "effective": subject.effective,
        "inputs": shapes,
        "notes": subject.samples.notes,
    }
    settle()
    return subject, answer


def import_library(name: str) -> None:
    """Import the runtime's library, so that its time is known apart from the model's."""
    if name == "openvino":
        import_openvino()
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{name} is not installed", f"type: pip install {name}") from error


def warm(subject: Subject, request: Request) -> Answer:
    """Run in windows until the last three times per inference agree within 2 %, or until `cap_s`.

    Where several inferences run at a time, how many is settled here, too.
    """
    start = time.perf_counter()
    swept = subject.sweep(4 * request["window_s"]) if subject.sweep else {}
    costs: list[float] = []
    converged = False
    while not converged and time.perf_counter() - start < request["cap_s"]:
        timed = subject.warm(request["window_s"], 1)
        costs.append(timed.wall_ns / timed.n if timed.laps is None else float(np.median(timed.laps)))
        last = costs[-3:]
        converged = len(last) == 3 and max(last) <= 1.02 * min(last)
    return {"s": time.perf_counter() - start, "converged": converged, **swept}


def timed_slice(subject: Subject, request: Request) -> Answer:
    """One recorded slice, after a short one that is not: another worker just had the caches.

    Request: `sample`, `seconds`, `min_runs`, `rewarm_s`, `latencies` (file the laps are appended to, int64 ns).
    """
    put(subject.bound, subject.samples, request["sample"])
    subject.warm(request["rewarm_s"], 1)
    energy, throttled = power.power(), proc.throttle_count()
    delay, switches, cpu = proc.run_delay_ns(), _switches(), time.process_time_ns()
    timed = subject.body(request["seconds"], request["min_runs"])
    cpu = time.process_time_ns() - cpu
    switches, delay_after = _switches() - switches, proc.run_delay_ns()
    if timed.laps is not None:
        with Path(request["latencies"]).open("ab") as file:
            timed.laps.tofile(file)
    return {
        "n": timed.n,
        "wall_s": timed.wall_ns / 1e9,
        "cpu_s": cpu / 1e9,
        "run_delay_s": None if delay is None or delay_after is None else (delay_after - delay) / 1e9,
        "nivcsw": switches,
        "p50_us": None if timed.laps is None else float(np.median(timed.laps)) / 1e3,
        "freq_mhz": proc.freq_mhz(),
        "temp_c": proc.temp_c(),
        "throttled": _since(throttled, proc.throttle_count()),
        "energy_j": power.energy_between(energy, power.power(), timed.wall_ns / 1e9),
        **timed.more,
    }


def _since(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def outputs(subject: Subject, request: Request) -> Answer:
    """Run every sample through the timed object and keep the raw outputs.

    Writes `<folder>/<i>.npy`, one per graph output, shape (samples, *output shape); the answer names them in order.
    """
    names, count = list(subject.bound.outputs), subject.samples.count
    files = [
        np.lib.format.open_memmap(
            Path(request["folder"]) / f"{i}.npy", mode="w+", dtype=array.dtype, shape=(count, *array.shape)
        )
        for i, array in enumerate(subject.bound.outputs.values())
    ]
    for index in range(count):
        put(subject.bound, subject.samples, index)
        subject.bound.run()
        for file, name in zip(files, names, strict=True):
            file[index] = subject.bound.outputs[name]
    for file in files:
        file.flush()
    return {"names": names, "n": count}


def census(request: Request) -> Answer:
    """Which operators run in which precision; only in a worker that times nothing."""
    from stages.bench.census import executed

    runtime = open_runtime(
        request["runtime"],
        Path(request["model"]),
        threads=1,
        precision=request["precision"],
        batch=1,
    )
    feeds = choose_samples(runtime.inputs, request).at(0)
    runtime.close()
    return {"executed": executed(request["runtime"], Path(request["model"]), request["precision"], feeds)}


def memory(subject: Subject, request: Request) -> Answer:
    """The high-water mark of resident memory so far, in bytes."""
    return {"vmhwm": proc.process_memory("VmHWM")}


COMMANDS: dict[str, Callable[[Subject, Request], Answer]] = {
    "warm": warm,
    "slice": timed_slice,
    "outputs": outputs,
    "memory": memory,
}


def serve() -> None:
    """Answer requests until stdin ends; an error is an answer, too."""
    subject: Subject | None = None
    # Libraries print to stdout; the protocol gets a descriptor of its own and stdout becomes stderr.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as protocol:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if request["do"] == "load":
                    subject, answer = load(request)
                elif request["do"] == "census":
                    answer = census(request)
                else:
                    assert subject is not None, "load comes first"
                    answer = COMMANDS[request["do"]](subject, request)
            except Error as error:
                answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
            except Exception as error:  # noqa: BLE001  whatever a runtime throws belongs into this variant's row
                answer = {"error": "Error", "message": _one_line(error), "hint": ""}
            protocol.write(json.dumps(answer) + "\n")
            protocol.flush()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; closing stdin ends this process
    serve()
