"""The timed bodies, one per scenario, around one loaded model. Runs in a worker only.

Every body runs the same loaded object; they differ in what surrounds an inference: nothing (`single`, `sustain`,
`cold`), a clock that says when the next frame is due (`camera`), decoding, resizing and reading the result (`e2e`).
`throughput` has its own file.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import Error, InputError
from edge_demo.runtime import Bound, TensorSpec, open_runtime
from stages.bench.inputs import Samples, frame_samples, picture_samples, random_samples

Request = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timed:
    """What one slice took: `n` inferences in `wall_ns`, each one's time where it is known, and more facts by name."""

    n: int
    wall_ns: int
    laps: NDArray[np.int64] | None
    """Nanoseconds of each inference; None where several run at a time."""
    more: dict[str, Any] = field(default_factory=dict)


Body = Callable[[float, int], Timed]
"""(seconds, fewest runs) -> what it took."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model under test: its call path, the inputs it is run on, and the scenario's timed body."""

    bound: Bound
    samples: Samples
    body: Body
    warm: Body
    """What warming up runs; a paced body would take forever to settle."""
    effective: dict[str, Any]
    sweep: Callable[[float], dict[str, Any]] | None = None
    """Finds and sets the best number of parallel inferences; None where there is only one."""


def put(bound: Bound, samples: Samples, index: int) -> None:
    """Copy one sample into the bound input buffers."""
    for name, array in samples.at(index).items():
        bound.inputs[name][...] = array


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


def back_to_back(run: Callable[[], None]) -> Body:
    """The body that does nothing else."""

    def body(seconds: float, min_runs: int) -> Timed:
        times = laps(run, seconds, min_runs)
        return Timed(len(times), int(times.sum()), times)

    return body


def paced(bound: Bound, samples: Samples, fps: float) -> Body:
    """One frame every 1 / fps seconds; latency from the moment it was due, so waiting in line counts.

    As the demo does with a camera, the newest frame wins: one whose successor is due before it could start is dropped.
    A frame is missed when it is dropped or done later than its successor is due.
    Source: G. Tene, "How NOT to Measure Latency" (coordinated omission).
    """
    period_ns = round(1e9 / fps)

    def body(seconds: float, min_runs: int) -> Timed:
        clock, sleep = time.perf_counter_ns, time.sleep
        frames = max(min_runs, round(seconds * fps))
        times: list[int] = []
        missed = 0
        start = clock()
        for number in range(frames):
            due = start + number * period_ns
            if (wait := due - clock()) > 0:
                sleep(wait / 1e9)
            if clock() >= due + period_ns:
                missed += 1
                continue
            put(bound, samples, number)
            bound.run()
            times.append(clock() - due)
            missed += times[-1] > period_ns
        end = start + frames * period_ns
        if (wait := end - clock()) > 0:
            sleep(wait / 1e9)
        done = np.array(times or [period_ns], dtype=np.int64)
        more = {"frames": frames, "missed": missed, "mean_us": float(done.mean()) / 1e3}
        return Timed(max(1, len(times)), clock() - start, done, more)

    return body


def load_subject(request: Request) -> tuple[Subject, float, float]:
    """Open, bind and prepare; also the ms of loading (compile and bind) and of the first inference.

    Request: `runtime`, `model` (path), `precision` (hint), `threads`, `spinning`, `seed`, `frames` (npy of real frames,
    or null), `pictures` (likewise, for a plain model), `shapes`, `scenario`, `fps`, `contract`, `task`, `params`.
    """
    start = time.perf_counter()
    runtime = open_runtime(
        request["runtime"],
        Path(request["model"]),
        threads=request["threads"],
        precision=request["precision"],
        spinning=request["spinning"],
        batch=1,
    )
    loaded = time.perf_counter()
    samples = choose_samples(runtime.inputs, request)
    feeds = samples.at(0)
    feeds = {name: array.copy() for name, array in feeds.items()}
    binding = time.perf_counter()
    with guessing(samples):
        bound = runtime.bind(feeds)
        bound_at = time.perf_counter()
        bound.run()
        ran = time.perf_counter()
    warm = body = back_to_back(bound.run)
    if request["scenario"] == "camera":
        body = paced(bound, samples, request["fps"])
    elif request["scenario"] == "e2e":
        from stages.bench.end_to_end import end_to_end

        body = warm = end_to_end(runtime, request)
    subject = Subject(bound, samples, body, warm, runtime.effective)
    return subject, (loaded - start + bound_at - binding) * 1e3, (ran - bound_at) * 1e3


@contextlib.contextmanager
def guessing(samples: Samples) -> Iterator[None]:
    """Say so where a model fails at a shape that its file left open and nobody asked for."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        if not samples.guessed:
            raise
        reason = " ".join(str(error).split())[:200]
        hint = f"its file leaves shapes open; choose them: --shape {next(iter(samples.guessed))}=..."
        raise InputError(f"{'; '.join(samples.guessed.values())}: {reason}", hint) from error


def choose_samples(inputs: Sequence[TensorSpec], request: Request) -> Samples:
    """The target's frames, else the pictures given, else random inputs; the same for every variant."""
    if request["frames"] is not None:
        return frame_samples(inputs[0].name, Path(request["frames"]))
    if request["pictures"] is not None:
        return picture_samples(inputs, Path(request["pictures"]), request["seed"], request["shapes"])
    return random_samples(inputs, request["seed"], request["shapes"])


def settle() -> None:
    """No garbage collection inside a slice: what exists now stays, and no new cycle is looked for."""
    gc.collect()
    gc.freeze()
    gc.disable()
