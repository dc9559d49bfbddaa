"""Start-up of `pipeline --help` against `import torch`: `python benchmarks/startup.py [--out FILE.json]`.

The commands alternate, so that a busy moment hits all of them alike; the ratio is taken within each round, and its
median is quoted. A third command, an empty Python, shows the floor.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import common

COMMANDS = {
    "pipeline --help": [str(Path(sys.executable).parent / "pipeline"), "--help"],
    'python -c "import torch"': [sys.executable, "-c", "import torch"],
    "python -c pass": [sys.executable, "-c", "pass"],
}
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "cv2", "matplotlib")


def loaded_heavy() -> list[str]:
    """Which of the heavy libraries `pipeline --help` imports, as `python -X importtime` lists them."""
    done = common.run([sys.executable, "-X", "importtime", "-m", "pipeline", "--help"])
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return sorted(set(HEAVY) & modules)


def main() -> None:
    """Measure, print, write."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    document = common.begin("startup")
    for command in COMMANDS.values():
        common.run(command)  # once unmeasured: byte code and disk cache
    rounds = [{name: common.run(command) for name, command in COMMANDS.items()} for _ in range(options.rounds)]
    ours, theirs, _ = COMMANDS
    ratios = [done[ours].wall_s / done[theirs].wall_s for done in rounds]
    document |= {
        "rounds": [{name: {"wall_s": d.wall_s, "cpu_s": d.cpu_s} for name, d in done.items()} for done in rounds],
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "n": len(ratios)},
        "heavy_libraries_loaded": loaded_heavy(),
    }
    rows = [
        [
            f"`{name}`",
            f"{1e3 * statistics.median(done[name].wall_s for done in rounds):.0f}",
            f"{1e3 * statistics.median(done[name].cpu_s for done in rounds):.0f}",
            f"{statistics.median(done[name].wall_s / done[theirs].wall_s for done in rounds):.3f}",
        ]
        for name in COMMANDS
    ]
    head = [f"command (median of {len(rounds)})", "wall ms", "CPU ms", "of torch's import (paired)"]
    note = f"Ratio {ours} to torch: median {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]; "
    note += f"heavy libraries loaded by it: {', '.join(document['heavy_libraries_loaded']) or 'none'}."
    common.end(document, [common.table(head, rows), note], options.out)


if __name__ == "__main__":
    main()
