"""Our detector's speed against another maker's: `python benchmarks/detect_speed.py --bundle DIR --against FILE.onnx`.

Both at batch 1 on one thread, by the CPU time of one inference, every variant in turn in each round: ONNX Runtime, and
OpenVINO in f32 and in bf16 where the CPU has it; of ours also INT8, of theirs `--against-int8 FILE.onnx` where it is
given. Ours is the deployed model, from uint8 frame to boxes; theirs is what its file holds. Speed depends on the
network and not on what it has learned; accuracy is `detect.py`'s matter. `--against` needs an input of a fixed size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np

from edge_demo.bundle import open_bundle
from edge_demo.errors import InputError
from edge_demo.runtime import Bound, Runtime, open_runtime
from stages.statistics import median_interval

ROUNDS = 31
SLICE_NS = 100_000_000
VARIANTS = (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16"))
WANTED = 0.60
"""Our best time over theirs, in each runtime, at most."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A model in a runtime."""

    whose: str
    runtime: str
    precision: str
    bound: Bound
    """Kept whole: the runtime reads its buffers."""

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.whose}, {self.runtime} {self.precision}"


def opened(stack: ExitStack, whose: str, model: Path, int8: bool) -> list[Variant]:
    """A model in every runtime and precision that this CPU has."""
    found = []
    for runtime, precision in VARIANTS:
        try:
            loaded = stack.enter_context(closing(open_runtime(runtime, model, precision=precision, batch=1)))
        except InputError as error:
            print(f"{whose}, {runtime} {precision}: {error}", flush=True)
            continue
        found.append(
            Variant(whose, runtime, f"INT8, rest {precision}" if int8 else precision, loaded.bind(feeds(loaded)))
        )
    return found


def feeds(runtime: Runtime) -> dict[str, Any]:
    """Noise of the shape that the model takes, one picture."""
    rng = np.random.default_rng(0)
    made = {}
    for spec in runtime.inputs:
        shape = [1 if index == 0 and size < 1 else size for index, size in enumerate(spec.shape)]
        if min(shape) < 1:
            raise SystemExit(f"--against: input {spec.name} has the shape {shape}; export it with a fixed size")
        noise = rng.integers(0, 256, shape)
        made[spec.name] = noise.astype(np.uint8) if spec.dtype == np.uint8 else (noise / 255).astype(spec.dtype)
    return made


def timed_ms(run: Callable[[], object]) -> float:
    """CPU milliseconds of one call, over as many as fill a slice."""
    calls, started = 0, time.process_time_ns()
    while (taken := time.process_time_ns() - started) < SLICE_NS:
        run()
        calls += 1
    return taken / calls / 1e6


def measured(variants: list[Variant]) -> list[list[float]]:
    """Per variant the CPU milliseconds of every round; the order turns, so that a drift favours none."""
    for variant in variants:
        timed_ms(variant.bound.run)
    times: list[list[float]] = [[] for _ in variants]
    for number in range(ROUNDS):
        for place in range(len(variants)):
            index = (place + number) % len(variants)
            times[index].append(timed_ms(variants[index].bound.run))
    return times


def best(variants: list[Variant], times: list[list[float]], whose: str, runtime: str) -> int | None:
    """The index of the fastest variant of one maker in one runtime, by its median."""
    mine = [i for i, variant in enumerate(variants) if (variant.whose, variant.runtime) == (whose, runtime)]
    return min(mine, key=lambda index: statistics.median(times[index]), default=None)


def main() -> None:
    """Measure, print, write."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--bundle", type=Path, required=True, help="folder of our detector's bundle")
    parser.add_argument("--against", type=Path, required=True, help="the other detector, ONNX")
    parser.add_argument("--against-int8", type=Path, help="the same as INT8, ONNX")
    options = parser.parse_args()
    document = common.begin("detect_speed")
    bundle = open_bundle(options.bundle)
    with ExitStack() as stack:
        variants: list[Variant] = []
        for row in bundle.manifest.variants:
            variants += opened(stack, "ours", options.bundle / row.file, row.precision == "int8")
        variants += opened(stack, "theirs", options.against, int8=False)
        if options.against_int8:
            variants += opened(stack, "theirs", options.against_int8, int8=True)
        times = measured(variants)
    rows, document["rows"], document["best"] = [], {}, {}
    for variant, taken in zip(variants, times, strict=True):
        median, low, high = median_interval(taken)
        document["rows"][variant.name] = {"ms": median, "ci95": (low, high), "rounds": taken}
        rows.append([variant.name, f"{median:.2f} [{low:.2f}, {high:.2f}]"])
    said = []
    for runtime in ("onnxruntime", "openvino"):
        ours, theirs = (best(variants, times, whose, runtime) for whose in ("ours", "theirs"))
        if ours is not None and theirs is not None:
            ratio = median_interval([mine / other for mine, other in zip(times[ours], times[theirs], strict=True)])
            document["best"][runtime] = {"ours": variants[ours].name, "theirs": variants[theirs].name, "ratio": ratio}
            found = f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"
            pair = f"our best ({variants[ours].precision}) takes {found} of their best ({variants[theirs].precision})"
            said.append(f"- {runtime}: {pair}; at most {WANTED:.2f} wanted: {'' if ratio[0] <= WANTED else 'not '}met.")
    head = [f"one thread, batch 1, {ROUNDS} rounds in turn", "CPU ms of one inference, median, 95 %"]
    common.end(document, [common.table(head, rows), "\n".join(said)], options.out)


if __name__ == "__main__":
    main()
