"""`python -m stages.bench.worker`: one model in one fresh process, told what to do by JSON lines.

One request per line on stdin, one answer per line on what was stdout at the start. Between requests it sleeps in
`read`, so workers that wait cost nothing. Its start is the cold-start measurement, its memory the variant's memory:
nothing is imported here that a device would not need.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import Error, InputError
from edge_demo.runtime import Bound, Runtime, import_openvino, open_runtime
from stages.bench import proc
from stages.bench.inputs import Samples, frame_samples, random_samples

Request = dict[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model under test: its runtime, the bound call path, and the inputs it is run on."""

    runtime: Runtime
    bound: Bound
    samples: Samples


def load(request: Request) -> tuple[Loaded, Answer]:
    """Import the library, load and bind the model, run it once; the answer holds what each step took.

    Request: `runtime`, `model` (path), `precision` (hint), `threads`, `seed`, `frames` (npy of real frames, or null).
    """
    rss_base, cpu = proc.process_memory("VmRSS"), time.process_time()
    start = time.perf_counter()
    import_library(request["runtime"])
    imported = time.perf_counter()
    runtime = open_runtime(
        request["runtime"],
        Path(request["model"]),
        threads=request["threads"],
        precision=request["precision"],
        batch=1,
    )
    loaded = time.perf_counter()
    samples = choose_samples(runtime, request)
    feeds = samples.at(0)
    binding = time.perf_counter()
    bound = runtime.bind(feeds)
    bound_at = time.perf_counter()
    bound.run()
    ran = time.perf_counter()
    answer = {
        "import_ms": (imported - start) * 1e3,
        "load_ms": (loaded - imported + bound_at - binding) * 1e3,
        "first_ms": (ran - bound_at) * 1e3,
        "cpu_ms": (time.process_time() - cpu) * 1e3,
        "rss_base": rss_base,
        "rss_ready": proc.process_memory("VmRSS"),
        "effective": runtime.effective,
        "inputs": {name: [str(array.dtype), *array.shape] for name, array in bound.inputs.items()},
        "notes": samples.notes,
    }
    gc.collect()
    gc.freeze()
    gc.disable()
    return Loaded(runtime, bound, samples), answer


def import_library(name: str) -> None:
    """Import the runtime's library, so that its time is known apart from the model's."""
    if name == "openvino":
        import_openvino()
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{name} is not installed", f"type: pip install {name}") from error


def choose_samples(runtime: Runtime, request: Request) -> Samples:
    """Real frames where the target has them, else random inputs, the same for every variant."""
    if request["frames"] is None:
        return random_samples(runtime.inputs, request["seed"])
    return frame_samples(runtime.inputs[0].name, Path(request["frames"]))


def put(loaded: Loaded, index: int) -> None:
    """Copy one sample into the bound input buffers."""
    for name, array in loaded.samples.at(index).items():
        loaded.bound.inputs[name][...] = array


def laps(run: Callable[[], None], seconds: float, min_runs: int) -> NDArray[np.int64]:
    """Nanoseconds of each run, back to back for at least `seconds` and at least `min_runs` runs.

    One clock reading ends a lap and starts the next: the sum of the laps is the elapsed time, loop overhead included.
    """
    clock = time.perf_counter_ns
    times: list[int] = []
    before = clock()
    end = before + int(seconds * 1e9)
    while before < end or len(times) < min_runs:
        run()
        now = clock()
        times.append(now - before)
        before = now
    return np.array(times, dtype=np.int64)


def warm(loaded: Loaded, request: Request) -> Answer:
    """Run in windows until the last three medians agree within 2 %, or until `cap_s`."""
    medians: list[float] = []
    start = time.perf_counter()
    converged = False
    while not converged and time.perf_counter() - start < request["cap_s"]:
        medians.append(float(np.median(laps(loaded.bound.run, request["window_s"], 1))))
        last = medians[-3:]
        converged = len(last) == 3 and max(last) <= 1.02 * min(last)
    return {"s": time.perf_counter() - start, "converged": converged}


def timed_slice(loaded: Loaded, request: Request) -> Answer:
    """One recorded slice, after a short one that is not: another worker just had the caches.

    Request: `sample`, `seconds`, `min_runs`, `rewarm_s`, `latencies` (file the laps are appended to, int64 ns).
    """
    put(loaded, request["sample"])
    laps(loaded.bound.run, request["rewarm_s"], 1)
    delay, switches, cpu = proc.run_delay_ns(), _switches(), time.process_time_ns()
    times = laps(loaded.bound.run, request["seconds"], request["min_runs"])
    cpu = time.process_time_ns() - cpu
    switches, delay_after = _switches() - switches, proc.run_delay_ns()
    with Path(request["latencies"]).open("ab") as file:
        times.tofile(file)
    return {
        "n": len(times),
        "wall_s": float(times.sum()) / 1e9,
        "cpu_s": cpu / 1e9,
        "run_delay_s": None if delay is None or delay_after is None else (delay_after - delay) / 1e9,
        "nivcsw": switches,
        "p50_us": float(np.median(times)) / 1e3,
        "freq_mhz": proc.freq_mhz(),
    }


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def outputs(loaded: Loaded, request: Request) -> Answer:
    """Run every sample through the timed object and keep the raw outputs.

    Writes `<folder>/<i>.npy`, one per graph output, shape (samples, *output shape); the answer names them in order.
    """
    names, count = list(loaded.bound.outputs), loaded.samples.count
    files = [
        np.lib.format.open_memmap(
            Path(request["folder"]) / f"{i}.npy", mode="w+", dtype=array.dtype, shape=(count, *array.shape)
        )
        for i, array in enumerate(loaded.bound.outputs.values())
    ]
    for index in range(count):
        put(loaded, index)
        loaded.bound.run()
        for file, name in zip(files, names, strict=True):
            file[index] = loaded.bound.outputs[name]
    for file in files:
        file.flush()
    return {"names": names, "n": count}


def census(request: Request) -> Answer:
    """Which operators run in which precision; only in a worker that times nothing."""
    from stages.bench.census import executed

    runtime = open_runtime(
        request["runtime"],
        Path(request["model"]),
        threads=request["threads"],
        precision=request["precision"],
        batch=1,
    )
    feeds = choose_samples(runtime, request).at(0)
    runtime.close()
    return {"executed": executed(request["runtime"], Path(request["model"]), request["precision"], feeds)}


def memory(loaded: Loaded, request: Request) -> Answer:
    """The high-water mark of resident memory so far, in bytes."""
    return {"vmhwm": proc.process_memory("VmHWM")}


COMMANDS: dict[str, Callable[[Loaded, Request], Answer]] = {
    "warm": warm,
    "slice": timed_slice,
    "outputs": outputs,
    "memory": memory,
}


def serve() -> None:
    """Answer requests until stdin ends; an error is an answer, too."""
    loaded: Loaded | None = None
    # Libraries print to stdout; the protocol gets a descriptor of its own and stdout becomes stderr.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as protocol:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if request["do"] == "load":
                    loaded, answer = load(request)
                elif request["do"] == "census":
                    answer = census(request)
                else:
                    assert loaded is not None, "load comes first"
                    answer = COMMANDS[request["do"]](loaded, request)
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
