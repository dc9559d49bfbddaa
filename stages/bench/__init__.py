"""Benchmark: FPS, latency, memory and accuracy of every variant on this host. No runtime is imported in this process.

This file stays light: `python -m stages.bench.worker` imports it, and the worker's memory is what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from stages.bench.document import BenchDocument
    from stages.bench.stage import Demands
    from stages.spec import BenchConfig, BenchResult, BundleResult, OnStep


def run(config: BenchConfig, bundle: BundleResult, *, out_dir: Path, on_step: OnStep) -> BenchResult:
    """The stage; see `stages.bench.stage.run`."""
    from stages.bench import stage

    return stage.run(config, bundle, out_dir=out_dir, on_step=on_step)


def bench_target(
    target: Path | Sequence[Path],
    config: BenchConfig,
    *,
    json_file: Path | None = None,
    on_step: OnStep | None = None,
    demands: Demands | None = None,
    images: Path | None = None,
) -> BenchDocument:
    """Measure bundles, run folders, .onnx or .xml files; see `stages.bench.stage.bench_target`."""
    from stages.bench import stage
    from stages.spec import ignore

    return stage.bench_target(
        target,
        config,
        json_file=json_file,
        on_step=on_step or ignore,
        demands=demands or stage.Demands(),
        images=images,
    )


def table(document: BenchDocument) -> Table:
    """A document as a rich table; see `stages.bench.render.table`."""
    from stages.bench import render

    return render.table(document)


def to_json(document: BenchDocument) -> str:
    """A document as the text of `bench.json`."""
    from stages.bench import document as module

    return module.to_json(document)
