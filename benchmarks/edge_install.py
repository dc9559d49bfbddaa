"""What a device needs: `python benchmarks/edge_install.py BUNDLE [--out FILE.json]`.

Installs `.[headless]` with the pinned versions into a fresh virtual environment, then runs `pipeline verify`, `pipeline
bench` and `pipeline demo` on the bundle there. States the installed size and the peak RSS, and fails if torch is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

FORBIDDEN = ("torch", "onnx", "nncf", "lightning_fabric", "matplotlib")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", ".*_cache", "__pycache__", "tests")
PROBE = "import importlib.util, json, sys; print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n)]))"


def install(folder: Path) -> tuple[Path, float]:
    """(bin folder of a fresh environment with `.[headless]`, seconds it took)."""
    source, venv = folder / "source", folder / "venv"
    shutil.copytree(common.ROOT, source, ignore=LEFT_OUT)  # a build writes beside the sources
    made = common.run([sys.executable, "-m", "venv", str(venv)])
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    done = common.run([*pip, "--constraint", str(source / "constraints.txt"), f"{source}[headless]"])
    return venv / "bin", made.wall_s + done.wall_s


def sizes_mb(site: Path) -> dict[str, float]:
    """Top-level entry of site-packages -> MB of its files (apparent size; links not followed), largest first."""
    sizes = {
        entry.name: sum(
            file.stat().st_size for file in ([entry] if entry.is_file() else entry.rglob("*")) if file.is_file()
        ) / 1e6
        for entry in site.iterdir()
        if not entry.is_symlink()
    }  # fmt: skip
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def run_commands(bin_folder: Path, bundle: Path, folder: Path, frames: int) -> dict[str, common.Done]:
    """`verify`, `bench` and `demo` with the fresh environment's own `pipeline`."""
    pipeline = str(bin_folder / "pipeline")
    commands = {
        "verify": ["verify", str(bundle)],
        "bench": ["bench", str(bundle), "--preset", "quick", "--json", str(folder / "bench.json")],
        "demo": ["demo", str(bundle), "--source", "synthetic", "--show", "none", "--max-frames", str(frames),
                 "--jsonl", str(folder / "demo.jsonl")],
    }  # fmt: skip
    return {name: common.run([pipeline, *arguments], cwd=folder) for name, arguments in commands.items()}


def demo_results(file: Path) -> int:
    """How many frames the demo answered."""
    events = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sum(event["type"] == "result" for event in events)


def measure(bundle: Path, frames: int) -> dict[str, Any]:
    """Install, check, run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bin_folder, install_s = install(folder)
        python = str(bin_folder / "python")
        found = json.loads(common.run([python, "-c", PROBE, *FORBIDDEN], cwd=folder).stdout)
        if found:
            sys.exit(f"the edge install brought {', '.join(found)}")
        site = Path(common.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip())
        sizes = sizes_mb(site)
        done = run_commands(bin_folder, bundle, folder, frames)
        bench = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
        return {
            "install_s": install_s,
            "installed_mb": sum(sizes.values()),
            "largest_mb": dict(list(sizes.items())[:8]),
            "forbidden_found": found,
            "commands": {
                name: {"wall_s": d.wall_s, "cpu_s": d.cpu_s, "peak_rss_mb": d.peak_rss_mb} for name, d in done.items()
            },
            "demo_frames": demo_results(folder / "demo.jsonl"),
            "bench_status": bench["status"],
            "worker_peak_rss_mb": {
                row["id"]: row["memory"]["vmhwm"] / 1e6
                for row in bench["variants"]
                if row["memory"] and row["memory"]["vmhwm"]
            },
        }


def main() -> None:
    """Measure, print, write."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=100, help="frames of the demo")
    options: argparse.Namespace = parser.parse_args()
    document = common.begin("edge_install")
    document |= measure(options.bundle.resolve(), options.frames)
    large = ", ".join(f"{name} {size:.0f}" for name, size in document["largest_mb"].items())
    rows = [
        ["installed, MB", f"{document['installed_mb']:.0f} ({large})"],
        ["torch, onnx, matplotlib", "absent"],
        *(
            [f"`pipeline {name}`: wall s, peak RSS MB", f"{done['wall_s']:.1f}, {done['peak_rss_mb']:.0f}"]
            for name, done in document["commands"].items()
        ),
        *([f"worker {name}: peak RSS MB", f"{size:.0f}"] for name, size in document["worker_peak_rss_mb"].items()),
        ["frames answered by the demo", f"{document['demo_frames']} of {options.frames}"],
    ]
    common.end(document, [common.table(["edge install (n = 1)", ""], rows)], options.out)


if __name__ == "__main__":
    main()
