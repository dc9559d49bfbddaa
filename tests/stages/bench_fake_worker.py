"""A worker that measures nothing: fault and times are written in the model's file name, `FAULT-COST_US.onnx`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from array import array
from pathlib import Path

N = 200


def answer(request: dict, fault: str, cost_us: float, slices: int, scenario: str) -> dict:
    if request["do"] == "census":
        if fault == "refused":
            return {"error": "InputError", "message": "m.onnx: not a model", "hint": "is it one?"}
        if fault == "nocensus":
            return {"error": "Error", "message": "no profile", "hint": ""}
        return {"executed": {"Conv:float": 2, "Relu:float": 1}}
    if request["do"] == "load":
        facts = dict.fromkeys(("import_ms", "load_ms", "first_ms", "cpu_ms"), 1.0)
        return {
            **facts,
            "run_delay_ms": 0.0,
            "energy_source": "rapl" if fault == "hot" else None,
            "rss_base": 1,
            "rss_ready": 2,
            "effective": {},
            "inputs": {},
            "notes": ["made up"],
        }
    if request["do"] == "warm":
        swept = {"jobs": 4, "jobs_sweep": {"2": 1.0, "4": 2.0}} if scenario == "throughput" else {}
        return {"s": 0.1, "converged": True, **swept}
    if request["do"] == "memory":
        return {"vmhwm": 3_000_000}
    if request["do"] == "outputs":
        import numpy as np

        np.save(Path(request["folder"]) / "0.npy", np.arange(8, dtype=np.float32).reshape(4, 1, 2))
        return {"names": ["y"], "n": 4}
    return fail(fault) if slices == 3 and fault in FAULTS else measured(request, fault, cost_us, slices, scenario)


FAULTS = ("crash", "killed", "hang", "error")


def fail(fault: str) -> dict:
    if fault == "crash":
        sys.stderr.write("Traceback:\nthe last words\n")
        sys.stderr.flush()
        os._exit(7)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(600)
    return {"error": "Error", "message": "RuntimeError: bad kernel", "hint": ""}


def measured(request: dict, fault: str, cost_us: float, slices: int, scenario: str) -> dict:
    if scenario != "throughput":
        with Path(request["latencies"]).open("ab") as file:
            array("q", [int(cost_us * 1000)] * N).tofile(file)
    more = {
        "camera": {"frames": N, "missed": N // 10, "mean_us": cost_us},
        "e2e": {"stage_us": {"decode": cost_us / 2, "infer": cost_us / 2}},
    }.get(scenario, {})
    if fault == "hot":
        more |= {"throttled": 1, "temp_c": 91.0, "energy_j": 2.0}
    if fault == "drift":
        cost_us *= 1.02**slices
    wall = N * cost_us / 1e6
    waited = 0.5 * wall if fault == "busy" else 0.0
    times = {"wall_s": wall + waited, "cpu_s": wall, "run_delay_s": waited}
    p50 = None if scenario == "throughput" else cost_us
    return {"n": N, **times, "nivcsw": 0, "p50_us": p50, "freq_mhz": None, **more}


def main() -> None:
    fault, cost_us, slices, scenario = "", 0.0, 0, "single"
    for line in sys.stdin:
        request = json.loads(line)
        if "model" in request:
            fault, _, cost = Path(request["model"]).stem.partition("-")
            cost_us = float(cost)
        scenario = request.get("scenario", scenario)
        slices += request["do"] == "slice"
        if slices == 3 and fault == "garbage":
            sys.stdout.write("Segmentation faul\n")
        else:
            sys.stdout.write(json.dumps(answer(request, fault, cost_us, slices, scenario)) + "\n")
        sys.stdout.flush()


main()
