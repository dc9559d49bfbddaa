"""Teacher and students: `python benchmarks/distill.py [--preset P] [--set a.b=v] [--student a.b=v] [--out JSON]`.

Per seed `pipeline all` five times: the preset as it is, the teacher; that network pruned by `--share` of its
multiply-accumulates, fine-tuned alone and with its teacher; and the same small shape from scratch, alone and with the
teacher. All see the same data, for the same epochs unless `--teacher` says otherwise. With `--student` there are three:
the teacher, and the network and recipe that `--student` says, alone and with the teacher. `--set` changes the preset
for all, `--teacher` for the teacher and `--taught` for those that learn from it. What counts is FP32 accuracy on test
in ONNX Runtime. `--runs` keeps the run folders, and goes on from what is there; `--picture FILE.png` draws accuracy
over multiply-accumulates.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common

from pipeline.sweep.picture import BLUE, GREY, ruled

TEACHER, ALONE, TAUGHT = "teacher", "student alone", "student with teacher"
PRUNED, PRUNED_TAUGHT = "teacher pruned", "teacher pruned, with teacher"
NAMES = (TEACHER, ALONE, TAUGHT, PRUNED, PRUNED_TAUGHT)


def measure(options: Any, seed: int, folder: Path) -> dict[str, Any]:
    """One seed: name -> what its run says."""
    rows: dict[str, Any] = {}
    preset, teacher = options.preset, folder / f"{seed}-teacher"
    taught = (f"train.teacher={teacher}", *options.taught)
    rows[TEACHER] = finished(preset, seed, teacher, (*options.set, *options.teacher))
    if options.student:
        student = (*options.set, *options.student)
        sets = {ALONE: student, TAUGHT: (*student, *taught)}
    else:
        prune = (*options.set, f"train.prune={teacher}", f"train.prune_share={options.share}")
        rows[PRUNED_TAUGHT] = finished(preset, seed, folder / f"{seed}-pruned-taught", (*prune, *taught))
        channels = list(rows[PRUNED_TAUGHT]["channels"])
        shape = (*options.set, f"train.model.channels={channels}")
        sets = {ALONE: shape, TAUGHT: (*shape, *taught), PRUNED: prune}
    for name in (name for name in sets if name not in options.without):
        place = folder / f"{seed}-{name.replace(' ', '-')}"
        rows[name] = finished(preset, seed, place, sets[name])
    return {"seed": seed, "rows": rows}


def finished(preset: str, seed: int, folder: Path, sets: Sequence[str]) -> dict[str, Any]:
    """One `pipeline all`, or what is left of an earlier one."""
    settings = [word for text in (f"train.seed={seed}", *sets) for word in ("--set", text)]
    done = common.pipeline("all", "--preset", preset, "--run", str(folder), *settings)
    document = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    results = {stage["name"]: stage["result"] for stage in document["stages"]}
    train, rows = results["train"], results["evaluate"]["rows"]
    print(f"{folder.name}: {done.wall_s:.0f} s", flush=True)
    found = {(row["runtime"], row["precision"]): row["metrics"][results["evaluate"]["metric"]] for row in rows}
    return {
        "test": found["onnxruntime", "fp32"],
        "test_int8": found["onnxruntime", "int8"],
        "n": rows[0]["n"],
        "val": train["val"],
        "macs": train["macs"],
        "parameters": train["parameters"],
        "channels": train["model"]["channels"],
        "cpu_seconds": train["cpu_seconds"],
        "speed": {row["id"]: row["ratio"] for row in results["bench"]["rows"]},
    }


def shown(seeds: Sequence[Mapping[str, Any]]) -> str:
    """One row per network: means over the seeds, and paired differences to the teacher and to the student alone."""
    lines = []
    for name in (name for name in NAMES if name in seeds[0]["rows"]):
        rows = [seed["rows"][name] for seed in seeds]
        apart = [
            common.spread([100 * (seed["rows"][name]["test"] - seed["rows"][other]["test"]) for seed in seeds])
            for other in (TEACHER, ALONE)
            if other in seeds[0]["rows"]
        ]
        share = statistics.fmean(seed["rows"][name]["macs"] / seed["rows"][TEACHER]["macs"] for seed in seeds)
        cells = [f"{rows[0]['macs'] / 1e6:.2f}", f"{share:.3f}", common.spread([100 * row["test"] for row in rows])]
        int8 = common.spread([100 * row["test_int8"] for row in rows])
        cpu = common.spread([row["cpu_seconds"] for row in rows], 0)
        lines.append([name, *cells, int8, *apart, cpu])
    head = ["network", "million MACs", "of teacher's", "test, %", "INT8, %", "minus teacher", "minus alone"]
    return common.table([*head, "training, CPU s"], lines)


def draw(file: Path, preset: str, seeds: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy on test over multiply-accumulates, every seed a point, the mean a ring."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name in (name for name in NAMES if name in seeds[0]["rows"]):
        rows = [seed["rows"][name] for seed in seeds]
        colour = BLUE if name in (TEACHER, PRUNED_TAUGHT) else GREY
        xs, ys = [row["macs"] / 1e6 for row in rows], [row["test"] for row in rows]
        axes.plot(xs, ys, "o", color=colour, markersize=4)
        place = statistics.fmean(xs), statistics.fmean(ys)
        axes.plot(*place, "o", color=colour, markersize=11, markerfacecolor="none")
        axes.annotate(name, place, xytext=(9, -3), textcoords="offset points", color=colour, fontsize=9)
    axes.set_xlabel("million multiply-accumulates of one picture (left is better)")
    axes.set_ylabel(f"accuracy on test, n = {rows[0]['n']:,} (up is better)")
    axes.set_title(f"{preset}: {len(seeds)} seed{'s' * (len(seeds) > 1)}, FP32", fontsize=10, loc="left")
    ruled(axes)
    axes.margins(0.3, 0.12)
    figure.savefig(file)


def main() -> None:
    """Run the seeds."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--preset", default="fashion")
    parser.add_argument("--share", type=float, default=0.75, help="of the multiply-accumulates to remove")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    for who in ("set", "teacher", "student", "taught"):
        parser.add_argument(f"--{who}", action="append", default=[], metavar="a.b=v", help="see above; repeatable")
    parser.add_argument("--without", nargs="*", default=[], choices=(TAUGHT, PRUNED), help="leave out, to save time")
    parser.add_argument("--runs", type=Path, help="keep the run folders here, and go on from what is there")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    document = common.begin("distill")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.runs or Path(scratch)).resolve()
        document["seeds"] = [measure(options, seed, folder) for seed in options.seeds]
    if options.picture:
        draw(options.picture, options.preset, document["seeds"])
    common.end(document, [shown(document["seeds"])], options.out)


if __name__ == "__main__":
    main()
