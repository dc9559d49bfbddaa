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


def answer(request: dict, fault: str, cost_us: float, slices: int) -> dict:
    if request["do"] == "census":
        if fault == "refused":
            return {"error": "InputError", "message": "m.onnx: not a model", "hint": "is it one?"}
        if fault == "nocensus":
            return {"error": "Error", "message": "no profile", "hint": ""}
        return {"executed": {"Conv:float": 2, "Relu:float": 1}}
    if request["do"] == "load":
        facts = dict.fromkeys(("import_ms", "load_ms", "first_ms", "cpu_ms"), 1.0)
        return {**facts, "rss_base": 1, "rss_ready": 2, "effective": {}, "inputs": {}, "notes": ["made up"]}
    if request["do"] == "warm":
        return {"s": 0.1, "converged": True}
    if request["do"] == "memory":
        return {"vmhwm": 3_000_000}
    if request["do"] == "outputs":
        import numpy as np

        np.save(Path(request["folder"]) / "0.npy", np.arange(8, dtype=np.float32).reshape(4, 1, 2))
        return {"names": ["y"], "n": 4}
    if slices == 3 and fault == "crash":
        sys.stderr.write("Traceback:\nthe last words\n")
        sys.stderr.flush()
        os._exit(7)
    if slices == 3 and fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if slices == 3 and fault == "hang":
        time.sleep(600)
    if slices == 3 and fault == "error":
        return {"error": "Error", "message": "RuntimeError: bad kernel", "hint": ""}
    with Path(request["latencies"]).open("ab") as file:
        array("q", [int(cost_us * 1000)] * N).tofile(file)
    wall = N * cost_us / 1e6
    waited = 0.5 * wall if fault == "busy" else 0.0
    times = {"wall_s": wall + waited, "cpu_s": wall, "run_delay_s": waited}
    return {"n": N, **times, "nivcsw": 0, "p50_us": cost_us, "freq_mhz": None}


def main() -> None:
    fault, cost_us, slices = "", 0.0, 0
    for line in sys.stdin:
        request = json.loads(line)
        if "model" in request:
            fault, _, cost = Path(request["model"]).stem.partition("-")
            cost_us = float(cost)
        slices += request["do"] == "slice"
        if slices == 3 and fault == "garbage":
            sys.stdout.write("Segmentation faul\n")
        else:
            sys.stdout.write(json.dumps(answer(request, fault, cost_us, slices)) + "\n")
        sys.stdout.flush()


main()
