"""What the training loop costs beside a bare one: `python benchmarks/train_overhead.py [--preset NAME] [--out FILE]`.

`pipeline train`, with its progress bar on a terminal, against the loop one would write by hand for the same network,
frames, batch, augmentation, optimizer, schedule and precision, which keeps no account of anything. Two processes on one
core take turns, one epoch each, in the order A B, B A, A B, ...; the ratio is taken within each pair. An epoch of ours
counts everything from one to the next: sums of loss and accuracy, callbacks, bar, curves, checkpoint. To keep
validation out, `data.val_fraction` is set so low that it is a few pictures; their cost stays with us.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common

LIMIT = 1.03


# --- the two sides, each in a process of its own ---------------------------------------------------------------------


class Turns:
    """CPU-seconds of this process between two turns; each turn is a line out and a line in."""

    def __init__(self) -> None:
        self.began = 0.0

    def over(self) -> None:
        """Ends an epoch, and waits until the next may begin."""
        spent = time.process_time() - self.began
        # sys.stdout is the progress bar's while it is shown: rich prints such lines above the bar, on stderr.
        print(json.dumps(spent), file=sys.__stdout__, flush=True)
        sys.stdin.readline()
        self.began = time.process_time()


def ours(preset: str, sets: list[str], folder: Path) -> None:
    """The run engine up to train, watched as the command line watches it."""
    from pipeline.config import load_config
    from pipeline.console import console, watching
    from pipeline.run import Event, run_pipeline

    if not console.is_terminal:
        sys.exit("the progress bar is part of what is measured, and stderr is no terminal")
    turns = Turns()
    with watching() as watch:

        def watch_epochs(event: Event) -> None:
            watch(event)
            if event.stage == "train" and event.step and any(name.startswith("val_") for name in event.step.values):
                turns.over()

        run_pipeline(load_config(None, preset, sets), folder, until="train", watch=watch_epochs)


def bare(preset: str, sets: list[str], folder: Path) -> None:
    """The loop by hand; parts that are no loop (network, augmentation, loss, optimizer) are the product's."""
    import torch

    from pipeline.config import load_config
    from pipeline.run import run_pipeline
    from stages.arrays import load_frames, load_truth
    from stages.augment import Draws
    from stages.graph import Preprocess
    from stages.models import build
    from stages.spec import DataResult
    from stages.tasks import TASKS
    from stages.train.device import choose_precision, keep_freed_memory
    from stages.train.optim import lr_factor, make_optimizer

    document = run_pipeline(load_config(None, preset, sets), folder, until="data")
    data = DataResult.model_validate_json(json.dumps(document.stages[0].result))
    data = data.model_copy(update={"folder": folder / "data"})
    config = load_config(None, preset, sets).train
    task, mixed = TASKS[config.task], choose_precision(config, "cpu") == "bf16-mixed"
    torch.set_num_threads(config.threads)
    keep_freed_memory()  # else the product's loop would be the cheaper one
    torch.manual_seed(config.seed)
    frames, targets = (torch.from_numpy(load(data, "train").copy()) for load in (load_frames, load_truth))
    pre = Preprocess(data.colour, data.mean, data.std)
    model = build(config.model, pre.scale.shape[1], data.size_wh, len(data.labels)).to(
        memory_format=torch.channels_last
    )
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    turns, step, steps = Turns(), 0, len(frames) // config.batch_size
    model.train()
    for _ in range(config.epochs):
        order = torch.randperm(len(frames), generator=generator)
        for picked in order[: steps * config.batch_size].split(config.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(config.schedule, step, steps * config.epochs)
            batch, truth = task.augment(
                frames[picked], targets[picked], config.augment, Draws(generator, len(picked)), len(data.labels)
            )
            batch = pre(batch).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                raw = model(batch)
            loss = task.loss(raw, truth, config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        turns.over()


SIDES = {"ours": ours, "bare": bare}


# --- taking turns ----------------------------------------------------------------------------------------------------


class Side:
    """A worker process that waits for its turns."""

    def __init__(self, name: str, arguments: list[str], folder: Path, stderr: int) -> None:
        command = [sys.executable, __file__, "--side", name, "--folder", str(folder), *arguments]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
        pipe = subprocess.PIPE
        self.name = name
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, env=env, text=True)

    def finish_epoch(self) -> float:
        """CPU-seconds of the epoch under way."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: ended early with exit code {self.process.wait()}")
        return float(json.loads(line))

    def start_epoch(self) -> None:
        """Lets the next one begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@contextmanager
def terminal(log: bytearray) -> Iterator[int]:
    """A pseudo terminal to write to; what is written goes to `log`."""
    master, slave = pty.openpty()

    def drain() -> None:
        try:
            while part := os.read(master, 65536):
                log.extend(part)
        except OSError:  # Linux reports the last writer's leaving as EIO
            return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield slave
    finally:
        os.close(slave)
        thread.join(timeout=5)
        os.close(master)


def measure(arguments: list[str], pairs: int) -> list[dict[str, float]]:
    """CPU-seconds of each side's epochs 2, 3, ...; the first epoch is warm-up."""
    log = bytearray()
    with tempfile.TemporaryDirectory() as folder, terminal(log) as stderr:
        sides = [Side(name, arguments, Path(folder) / name, stderr) for name in SIDES]
        try:
            for side in sides:
                side.finish_epoch()
            found = []
            for pair in range(pairs):
                spent = {}
                for side in sides if pair % 2 == 0 else reversed(sides):
                    side.start_epoch()
                    spent[side.name] = side.finish_epoch()
                found.append({**spent, "load_average": os.getloadavg()[0]})
        except SystemExit as stop:
            sys.exit(f"{stop.code}\n{log.decode(errors='replace')[-2000:]}")
        finally:
            for side in sides:
                side.process.kill()
                side.process.wait()
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """At least 95 % interval of the median, from order statistics; the range when there are too few values.

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.
    """
    ranked, n = sorted(values), len(values)
    below, rank = 0.5**n, 0
    while below <= 0.025 and rank < n // 2:
        rank += 1
        below += math.comb(n, rank) * 0.5**n
    rank = max(rank - 1, 0)
    return ranked[rank], ranked[n - 1 - rank]


def verdict(low: float, high: float) -> str:
    """Whether the limit holds, as far as the noise lets one tell."""
    if high <= LIMIT:
        return "met"
    return "NOT met" if low > LIMIT else "undecided at this noise: use more pairs or a quieter machine"


def main() -> None:
    """Measure, print, write; exit code 1 when the overhead is above the limit beyond the noise."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--data", type=Path, help="folder of the standard sets (default: PIPELINE_DATA)")
    parser.add_argument("--limit", type=int, default=0, help="training images, to shorten a large set; 0: all")
    parser.add_argument("--pairs", type=int, default=20, help="measured epochs of each side")
    parser.add_argument("--core", type=int, help="core that both run on (default: the first one usable)")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # One epoch more than is measured: the worker must still be training when its last turn ends.
    sets = [f"train.epochs={options.pairs + 2}", "train.accelerator=cpu", "data.val_fraction=0.002"]
    sets += [f"data.limit={options.limit}"] if options.limit else []
    os.environ.update(common.environment(options.data))
    if options.side:
        SIDES[options.side](options.preset, sets, options.folder)
        return
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this system cannot pin a process to a core; use Linux")
    document = common.begin("train_overhead")
    core = min(os.sched_getaffinity(0)) if options.core is None else options.core
    os.sched_setaffinity(0, {core})
    arguments = ["--preset", options.preset, "--pairs", str(options.pairs), "--limit", str(options.limit)]
    found = measure(arguments, options.pairs)
    ratios = [pair["ours"] / pair["bare"] for pair in found]
    low, high = median_interval(ratios)
    quietest = min(pair["ours"] for pair in found) / min(pair["bare"] for pair in found)
    summary: dict[str, Any] = {"median": statistics.median(ratios), "ci95": [low, high], "n": len(ratios)}
    summary |= {"quietest": quietest, "limit": LIMIT, "verdict": verdict(low, high)}
    document |= {"preset": options.preset, "sets": sets, "core": core, "pairs": found, "ratio": summary}
    loads = [pair["load_average"] for pair in found]
    rows = [
        [
            f"`{options.preset}`{f', {options.limit} images' if options.limit else ''}, n = {len(found)} pairs",
            *(common.spread([pair[name] for pair in found]) for name in SIDES),
            f"{summary['median']:.3f} [{low:.3f}, {high:.3f}]",
            f"{quietest:.3f}",
            f"{min(loads):.1f}-{max(loads):.1f}",
        ]
    ]
    head = ["CPU-seconds of an epoch", "ours", "bare loop", "median ratio of pairs [95 %]", "quietest epochs", "load"]
    note = f"At most {LIMIT:.2f} wanted (median of pairs): {summary['verdict']}."
    common.end(document, [common.table(head, rows), note], options.out)
    sys.exit(summary["verdict"] == "NOT met")


if __name__ == "__main__":
    main()
