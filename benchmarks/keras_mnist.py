"""MNIST against the published Keras example: `python benchmarks/keras_mnist.py --data DIR [--seeds K] [--out FILE]`.

Per seed, one after the other on the same single core: the Keras example as written (`keras_example.py`, TensorFlow on
one thread, in a virtual environment that this script makes), then `pipeline train --preset mnist` cut short
(`--quick`), then the preset as it is. Both sides' seconds are user + system time of the epochs with their validation;
imports, loading and every test are outside. Finished runs are kept in `--cells`, so an interrupted benchmark goes on.

Keras's time to a target ends at the first epoch at or above it on *test*: chosen with hindsight, which is generous to
Keras. Ours is a whole run, fixed beforehand and tested once. Ratio of packages of choices, not of frameworks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import common

from pipeline.config import load_config
from pipeline.keys import code_digest

PINS = {"tensorflow-cpu": "2.21.0", "keras": "3.15.1", "numpy": "2.4.6"}
EXAMPLE = Path(__file__).with_name("keras_example.py")
EPOCHS = 15
TARGET, BEST_TARGET = 0.990, 0.995
RATIO_WANTED = 12.0
BEST_CPU_S = 60.0
SEEDS_TO_JUDGE = 3
# One epoch; a network that sees each digit once needs no changed ones.
QUICK = ("train.epochs=1", "train.augment.rotate_deg=0", "train.augment.scale=0")

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The preset with some keys set, one of our two rows."""

    name: str
    preset: str
    sets: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """As typed after `pipeline train`."""
        return ["--preset", self.preset, *(word for key in self.sets for word in ("--set", key))]

    @property
    def config(self) -> dict[str, Any]:
        """What is in force for data and training, seeds aside."""
        config = load_config(None, self.preset, self.sets)
        return {name: getattr(config, name).model_dump(mode="json") for name in ("data", "train")}


# --- the peer's environment ------------------------------------------------------------------------------------------


def peer_python(folder: Path) -> Path:
    """Python of the environment with the pinned packages, made now if it is not there."""
    python = folder.absolute() / "bin" / "python"
    if installed(python) != PINS:
        print(f"installs {', '.join(PINS)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        wanted = [f"{name}=={number}" for name, number in PINS.items()]
        common.run([str(python), "-m", "pip", "install", "--quiet", *wanted])
    if installed(python) != PINS:
        sys.exit(f"{folder}: does not hold {PINS} after pip install; delete the folder and type the command again")
    return python


def installed(python: Path) -> dict[str, str]:
    """Versions of the pinned packages there; empty when one is missing."""
    if not python.is_file():
        return {}
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = common.run([str(python), "-c", code, *PINS], may_exit=(1,))
    return dict(zip(PINS, done.stdout.split(), strict=True)) if done.exit_code == 0 else {}


# --- one run of each kind --------------------------------------------------------------------------------------------


def keras_cell(python: Path, data: Path, epochs: int, seed: int) -> Cell:
    """One run of the example."""
    env = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": "1"}
    arguments = ["--data", str(data / "mnist"), "--epochs", str(epochs), "--seed", str(seed)]
    done = common.run([str(python), str(EXAMPLE), *arguments], env=env)
    return {**json.loads(done.stdout), "wall_s": done.wall_s, "peak_rss_mb": done.peak_rss_mb}


def our_cell(recipe: Recipe, data: Path, seed: int) -> Cell:
    """`pipeline train`, timed; then `pipeline bundle`, whose evaluate stage reads the test split for the first time."""
    seeds = ["--set", f"train.seed={seed}", "--set", f"data.seed={seed}"]
    env = {**common.environment(data), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [*recipe.arguments, *seeds, "--run", "run"]
        trained = common.pipeline("train", *command, env=env, cwd=Path(folder))
        common.pipeline("bundle", *command, env=env, cwd=Path(folder))
        document = json.loads((Path(folder) / "run" / "run.json").read_text(encoding="utf-8"))
    results = {stage["name"]: stage["result"] for stage in document["stages"]}
    train, test = results["train"], {}
    for row in results["evaluate"]["rows"]:
        test[f"{row['runtime']} {row['precision']}"] = row["metrics"][results["evaluate"]["metric"]]
    kept = ("cpu_seconds", "seconds", "val", "epochs", "best_epoch", "parameters", "precision", "accelerator")
    return {
        "train": {name: train[name] for name in kept},
        "counts": results["data"]["counts"],
        "test": test,
        "process_cpu_s": trained.cpu_s,
        "wall_s": trained.wall_s,
        "peak_rss_mb": trained.peak_rss_mb,
    }


def cell(file: Path, facts: Mapping[str, Any], measure: Callable[[], Cell]) -> Cell:
    """The kept run with exactly these facts, else a new one; kept at once, with the time and the load around it."""
    kept: dict[str, Cell] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    if key not in kept:
        print(f"{datetime.now(UTC):%H:%M:%S} {facts['kind']}, seed {facts['seed']}", file=sys.stderr, flush=True)
        began, before = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()[0]
        found = measure()
        around = {"began": began, "load_average": [round(before, 2), round(os.getloadavg()[0], 2)]}
        kept[key] = {"facts": dict(facts), **around, **found}
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".part")
        beside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        beside.replace(file)
    return kept[key]


# --- what the runs say -----------------------------------------------------------------------------------------------


def crossing(epochs: Sequence[Mapping[str, float]], target: float) -> tuple[int, float] | None:
    """(epoch, CPU-seconds up to its end) of the first epoch at or above `target` on test; None: never."""
    for number, epoch in enumerate(epochs, 1):
        if epoch["test"] >= target:
            return number, sum(earlier["cpu_s"] for earlier in epochs[:number])
    return None


def ratios(peers: Sequence[Cell], ours: Sequence[Cell], target: float) -> list[float | None]:
    """Keras's CPU-seconds to the target over ours, per seed; None where one of the two did not reach it."""
    found: list[float | None] = []
    for peer, our in zip(peers, ours, strict=True):
        reached, met = crossing(peer["epochs"], target), shipped(our) >= target
        found.append(reached[1] / our["train"]["cpu_seconds"] if reached and met else None)
    return found


def shipped(our: Cell) -> float:
    """Test accuracy of the exported FP32 model in ONNX Runtime."""
    return float(our["test"]["onnxruntime fp32"])


def verdicts(peers: Sequence[Cell], quick: Sequence[Cell], full: Sequence[Cell]) -> list[dict[str, Any]]:
    """The two claims; `met` is None while there are fewer seeds than a claim needs."""
    paired = ratios(peers, quick, TARGET)
    ratio = statistics.fmean(value for value in paired if value) if all(paired) else None
    accuracy = statistics.fmean(map(shipped, full))
    cpu_s = statistics.fmean(our["train"]["cpu_seconds"] for our in full)
    enough = len(peers) >= SEEDS_TO_JUDGE
    claims = [
        (f"{TARGET:.1%} by every seed, in at most 1/{RATIO_WANTED:.0f} of Keras's CPU-seconds in the mean",
         "not reached in every seed" if ratio is None else f"1/{ratio:.1f}",
         ratio is not None and ratio >= RATIO_WANTED),
        (f"mean of {BEST_TARGET:.1%} in at most {BEST_CPU_S:.0f} CPU-seconds",
         f"{accuracy:.3%} in {cpu_s:.1f}",
         accuracy >= BEST_TARGET and cpu_s <= BEST_CPU_S),
    ]  # fmt: skip
    return [{"claim": text, "found": found, "met": met if enough else None} for text, found, met in claims]


def load_of(cells: Sequence[Cell]) -> str:
    """Smallest and largest load average around these runs."""
    loads = [load for cell in cells for load in cell["load_average"]]
    return f"{min(loads):.1f}-{max(loads):.1f}"


def keras_row(name: str, peers: Sequence[Cell], epochs: Sequence[int | None]) -> list[str]:
    """A row of the table: the example stopped after these epochs, one per seed; None: that seed never got there."""
    there = [(peer["epochs"][:last], last) for peer, last in zip(peers, epochs, strict=True) if last]
    missing = len(peers) - len(there)
    label = f"{name}{f' (not reached in {missing} of {len(peers)} seeds)' if missing else ''}"
    if not there:
        return [label, "-", "-", "-", load_of(peers)]
    return [
        label,
        common.spread([last for _, last in there], 1),
        common.spread([sum(epoch["cpu_s"] for epoch in done) for done, _ in there], 1),
        common.spread([100 * done[-1]["test"] for done, _ in there], 2, " %"),
        load_of(peers),
    ]


def our_row(recipe: Recipe, ours: Sequence[Cell]) -> list[str]:
    """A row of the table: one of our recipes."""
    return [
        f"`{recipe.name}`, {ours[0]['train']['parameters']:,} parameters, {ours[0]['train']['precision']}",
        common.spread([our["train"]["epochs"] for our in ours], 1),
        common.spread([our["train"]["cpu_seconds"] for our in ours], 1),
        common.spread([100 * shipped(our) for our in ours], 2, " %"),
        load_of(ours),
    ]


def tables(recipes: Sequence[Recipe], peers: list[Cell], ours: list[list[Cell]]) -> list[str]:
    """Cost and accuracy; the test curve of Keras; ratios and claims."""
    last = max(len(peer["epochs"]) for peer in peers)

    def first(target: float) -> list[int | None]:
        found = [crossing(peer["epochs"], target) for peer in peers]
        return [crossed[0] if crossed else None for crossed in found]

    head = [f"1 core, 1 thread, n = {len(peers)} seeds, mean [min, max]", "epochs", "CPU-s", "test accuracy", "load"]
    rows = [
        keras_row(f"Keras example to the first {TARGET:.1%} on test", peers, first(TARGET)),
        keras_row(f"Keras example to the first {BEST_TARGET:.1%} on test", peers, first(BEST_TARGET)),
        keras_row("Keras example as published, 34,826 parameters, float32", peers, [last] * len(peers)),
        *(our_row(recipe, found) for recipe, found in zip(recipes, ours, strict=True)),
    ]
    curve = [
        [f"seed {peer['facts']['seed']}", *(f"{100 * epoch['test']:.2f}" for epoch in peer["epochs"]),
         common.spread([epoch["cpu_s"] for epoch in peer["epochs"]], 1)]
        for peer in peers
    ]  # fmt: skip
    shown = ["-" if value is None else f"{value:.1f}" for value in ratios(peers, ours[0], TARGET)]
    words = {True: "met", False: "NOT MET", None: f"not judged below {SEEDS_TO_JUDGE} seeds"}
    notes = [f"{v['claim']}: found {v['found']}; {words[v['met']]}." for v in verdicts(peers, *ours)]
    notes.append(f"Keras's CPU-seconds to {TARGET:.1%} over ours, per seed: {', '.join(shown)}.")
    notes.append("Keras's end is the first crossing on its test curve, chosen with hindsight: generous to Keras.")
    return [
        common.table(head, rows),
        common.table(
            ["Keras, test accuracy after epoch", *map(str, range(1, last + 1)), "CPU-s an epoch"], curve
        ),
        "\n".join(f"- {note}" for note in notes),
    ]  # fmt: skip


def options() -> argparse.Namespace:
    """Command line."""
    parser = common.parser(__doc__ or "")
    default_data = os.environ.get("PIPELINE_DATA")
    parser.add_argument("--data", type=Path, default=default_data, help="folder of the standard sets (PIPELINE_DATA)")
    parser.add_argument("--seeds", type=int, default=SEEDS_TO_JUDGE, help="seeds 0 to K - 1")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of the Keras example; published: 15")
    parser.add_argument("--preset", default="mnist")
    parser.add_argument(
        "--quick", action="append", metavar="a.b=v", help=f"keys of the quick recipe; default: {', '.join(QUICK)}"
    )
    parser.add_argument("--core", type=int, help="core that everything runs on (default: the first one usable)")
    parser.add_argument("--venv", type=Path, default=common.ROOT / ".venv-keras", help="environment of the peer")
    parser.add_argument("--cells", type=Path, default=common.ROOT / "build" / "keras_mnist.cells.json")
    chosen = parser.parse_args()
    if chosen.data is None or not (chosen.data / "mnist").is_dir():
        parser.error("--data: the folder that holds mnist/ is needed; to get it, type: pipeline data fetch mnist")
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this system cannot pin a process to a core; use Linux")
    if chosen.seeds < 1 or chosen.epochs < 1:
        parser.error("--seeds and --epochs: at least 1")
    return chosen


def main() -> None:
    """Run what is not kept yet, print, write; exit code 1 when a claim is not met."""
    chosen = options()
    document, data = common.begin("keras_mnist"), chosen.data.resolve()
    core = min(os.sched_getaffinity(0)) if chosen.core is None else chosen.core
    python = peer_python(chosen.venv)
    os.sched_setaffinity(0, {core})
    quick = tuple(chosen.quick or QUICK)
    recipes = [
        Recipe(f"{chosen.preset} with {', '.join(quick)}", chosen.preset, quick),
        Recipe(chosen.preset, chosen.preset, ()),
    ]
    shared = {"cpu": document["host"]["cpu"], "core": core}
    peer_facts = {**shared, "kind": "keras example", "epochs": chosen.epochs, "software": PINS}
    peer_facts["code"] = hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    code = {stage: code_digest(f"stages.{stage}") for stage in ("data", "train")}
    our_facts = [
        {**shared, "kind": recipe.name, "config": recipe.config, "software": document["software"], "code": code}
        for recipe in recipes
    ]
    peers: list[Cell] = []
    ours: list[list[Cell]] = [[] for _ in recipes]
    for seed in range(chosen.seeds):
        run_peer = partial(keras_cell, python, data, chosen.epochs, seed)
        peers.append(cell(chosen.cells, {**peer_facts, "seed": seed}, run_peer))
        for recipe, facts, found in zip(recipes, our_facts, ours, strict=True):
            found.append(cell(chosen.cells, {**facts, "seed": seed}, partial(our_cell, recipe, data, seed)))
    document |= {"core": core, "peer_software": PINS, "recipes": {recipe.name: recipe.config for recipe in recipes}}
    document |= {"keras": peers, "ours": dict(zip((recipe.name for recipe in recipes), ours, strict=True))}
    document["ratios"] = {f"{TARGET:.3f}": ratios(peers, ours[0], TARGET)}
    document["claims"] = verdicts(peers, *ours)
    common.end(document, tables(recipes, peers, ours), chosen.out)
    sys.exit(any(claim["met"] is False for claim in document["claims"]))


if __name__ == "__main__":
    main()
