"""Is the input path ever the bottleneck: `python benchmarks/input_path.py [--preset NAME]... [--out FILE]`.

Two short stretches of training steps take turns in one process: the real input path (picking, random changes, both as
`pipeline train` has them), and the same network fed with one constant batch, already picked and changed, that is passed
through. What the second saves is what the input path costs; at most 5 % are wanted. A third stretch has the frames
streamed from disk. CPU-seconds on a CPU; seconds, with the device waited for, on a GPU.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

LIMIT = 0.05
PRESETS = ("digits", "mnist", "cifar10")


def stretches(preset: str, limit: int, steps: int, folder: Path) -> tuple[dict[str, Callable[[], None]], int]:
    """Name -> `steps` training steps on its input; and the pictures of one stretch."""
    import torch

    from pipeline.config import load_config
    from pipeline.run import run_pipeline
    from stages.augment import Draws
    from stages.spec import AugmentConfig, DataResult
    from stages.train.device import choose_accelerator, choose_precision
    from stages.train.examples import Examples, load_examples
    from stages.train.stage import make_fabric, make_learner
    from stages.train.step import train_step
    from stages.train.stream import Feed

    loaded = load_config(None, preset, [f"data.limit={limit}"] if limit else [])
    document = run_pipeline(loaded, folder, until="data")
    data = DataResult.model_validate_json(json.dumps(document.stages[0].result))
    data = data.model_copy(update={"folder": folder / "data"})
    config, accelerator = loaded.train, choose_accelerator(loaded.train)
    torch.set_num_threads(config.threads)
    fabric = make_fabric(accelerator, choose_precision(config, accelerator))
    learner = make_learner(config, data, fabric, {})
    constant = make_learner(config.model_copy(update={"augment": AugmentConfig()}), data, fabric, {})
    size = config.batch_size * config.accumulate
    generator = torch.Generator(fabric.device).manual_seed(0)

    def resident() -> Examples:
        return load_examples(data, "train", fabric.device, 1_000_000)

    def mapped() -> Examples:
        """From disk, however small it is."""
        frames = torch.from_numpy(np_frames(data.folder))
        return Examples(frames, examples.targets, examples.truth, is_streamed=True)

    examples = resident()
    order = torch.randperm(len(examples), generator=generator, device=examples.device)
    steps = min(steps, len(examples) // size)
    if steps < 1:
        sys.exit(f"{preset}: {len(examples)} pictures are no batch of {size}; raise --limit")
    picked = examples.batch(order[:size])
    fixed = learner.task.augment(*picked, config.augment, Draws(generator, size), len(data.labels))

    def real(source: Examples) -> None:
        learner.model.train()
        feed = Feed(source, order, size)
        for index in range(steps):
            train_step(learner, *feed(index), 1e-4, generator, 0)
        settle()

    def still() -> None:
        constant.model.train()
        for _ in range(steps):
            train_step(constant, *fixed, 1e-4, generator, 0)
        settle()

    def settle() -> None:
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    streamed = mapped()
    found = {"input": lambda: real(examples), "constant": still, "streamed": lambda: real(streamed)}
    return found, steps * size


def np_frames(folder: Path) -> Any:
    """The training frames, mapped; torch warns of read-only arrays, so copied on a write that nobody does."""
    import numpy as np

    return np.load(folder / "train.frames.npy", mmap_mode="c")


def measure(preset: str, limit: int, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of each stretch in each round, in turning order; the first round is warm-up."""
    import torch

    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        sides, pictures = stretches(preset, limit, steps, Path(folder))
        spent: dict[str, list[float]] = {name: [] for name in sides}
        walls: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(rounds + 1):
            names = list(sides)[turn % 3 :] + list(sides)[: turn % 3]
            for name in names:
                began, wall = clock(), time.perf_counter()
                sides[name]()
                if turn:
                    spent[name].append(clock() - began)
                    walls[name].append(time.perf_counter() - wall)
    pairs = zip(spent["input"], spent["constant"], strict=True)
    gains = [1 - still / real for real, still in pairs]
    ratio = [a / b for a, b in zip(spent["streamed"], spent["input"], strict=True)]
    return {
        "preset": preset,
        "pictures": pictures,
        "seconds": spent,
        "wall_seconds": walls,
        "gain": {"median": statistics.median(gains), "all": gains, "n": len(gains), "limit": LIMIT},
        "streamed_over_resident": {"median": statistics.median(ratio), "all": ratio},
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print, write."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--preset", action="append", help=f"default: {', '.join(PRESETS)}")
    parser.add_argument("--data", type=Path, help="folder of the standard sets (default: PIPELINE_DATA)")
    parser.add_argument("--limit", type=int, default=4000, help="training images; 0: all")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a stretch")
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds")
    options = parser.parse_args()
    os.environ.update(common.environment(options.data))
    document = common.begin("input_path")
    found = [measure(name, options.limit, options.steps, options.rounds) for name in options.preset or list(PRESETS)]
    document["presets"] = found
    rows = [
        [
            f"`{one['preset']}`, {one['pictures']} pictures, n = {one['gain']['n']}",
            *(common.spread(one["seconds"][name]) for name in ("input", "constant", "streamed")),
            f"{100 * one['gain']['median']:.1f} %",
            f"{one['streamed_over_resident']['median']:.3f}",
            f"{one['load_average']:.1f}",
        ]
        for one in found
    ]
    head = ["seconds", "input path", "constant batch", "streamed", "median gain", "streamed / resident", "load"]
    note = f"A gain below {100 * LIMIT:.0f} % is wanted."
    common.end(document, [common.table(head, rows), note], options.out)


if __name__ == "__main__":
    main()
