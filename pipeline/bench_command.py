"""`pipeline bench`: measure FPS, latency, memory and accuracy of every variant on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edge_demo.errors import GateError, InputError

if TYPE_CHECKING:
    from stages.bench.document import BenchDocument
    from stages.bench.stage import Demands

SCENARIOS = "single, throughput, camera, cold, e2e, accuracy or sustain; repeatable; default: single."


def bench(
    targets: Annotated[
        list[Path] | None, typer.Argument(metavar="TARGET...", help="Bundle, run folder, .onnx or .xml.")
    ] = None,
    runtime: Annotated[list[str] | None, typer.Option("--runtime", help="onnxruntime or openvino; repeatable.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, bf16, f16 or int8; repeatable.")] = None,
    threads: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="CPU threads of one inference; default: 1.")
    ] = None,
    preset: Annotated[Literal["quick", "standard", "thorough"], typer.Option(help="How long to measure.")] = "quick",
    scenario: Annotated[list[str] | None, typer.Option(help=SCENARIOS)] = None,
    fps: Annotated[float | None, typer.Option(help="Frame rate of the camera scenario; default: 30.")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long sustain runs each variant; default: 10.")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]1x3x224x224", help="Input shape of a plain model; repeatable.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Picture or folder to run a plain model on; default: random.")
    ] = None,
    spinning: Annotated[
        bool, typer.Option("--spinning", help="Let ONNX Runtime's idle threads burn CPU while they wait.")
    ] = False,
    compare: Annotated[
        Path | None, typer.Option(metavar="BASE.json", help="Compare with an earlier run, by ratios.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="OLD", help="Measure another bundle or model in the same rounds and compare.")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="p50>+5%, fps<-5%, cpu, load, rss, size or accuracy<-0.5pp; repeatable."),
    ] = None,
    target_fps: Annotated[float | None, typer.Option(min=0, help="Recommend only what reaches it.")] = None,
    max_rss: Annotated[float | None, typer.Option(min=0, metavar="MB", help="Recommend only what stays below.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(min=0, max=1, help="Recommend only what reaches it.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write bench.json; - is stdout.")
    ] = None,
    md: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as a page with charts.")] = None,
    system: Annotated[bool, typer.Option("--system", help="Print what is known of this host, and end.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure FPS, latency, memory and accuracy of every variant on this machine."""
    if system:
        _host(targets)
        return
    from pipeline.bundles import bench_config
    from pipeline.console import steps
    from stages.bench import bench_target
    from stages.bench.recommend import Limits
    from stages.bench.stage import Demands

    if not targets:
        raise InputError("bench needs a TARGET: a bundle, run folder, .onnx or .xml", "type: pipeline bench --help")
    extra = {
        "scenarios": scenario,
        "fps": fps,
        "minutes": minutes,
        "shapes": shape,
        "spinning": spinning or None,
    }
    config = bench_config(runtime, precision, threads or "1", preset, extra)
    if threads is not None and set(config.scenarios) == {"throughput"}:
        raise InputError("--threads has no effect on throughput, which uses every usable CPU", "leave it off")
    for name, value, needed in (("fps", fps, "camera"), ("minutes", minutes, "sustain")):
        if value is not None and needed not in config.scenarios:
            raise InputError(f"--{name} has no effect without --scenario {needed}", f"add --scenario {needed}")
    demands = Demands(
        base=compare,
        against=_target(against) if against else None,
        fail_if=tuple(fail_if or ()),
        limits=Limits(target_fps, max_rss, min_accuracy),
    )
    pages = {"--md": md, "--html": html}
    for option, file in pages.items():
        if file is not None and not file.parent.is_dir():
            raise InputError(f"{option} {file}: no such folder {file.parent}", "make it first, or write elsewhere")
    to_stdout = json_file == Path("-")
    with steps("bench") as on_step:
        document = bench_target(
            [_target(target) for target in targets],
            config,
            json_file=None if to_stdout else json_file,
            on_step=on_step,
            demands=demands,
            images=images,
        )
    _write_pages(document, md, html)
    _show(document, to_stdout)
    _gate(document, demands)


def _target(path: Path) -> Path:
    """A run folder's bundle, anything else as it is: the bench says itself what it cannot measure."""
    from pipeline.bundles import bundle_of

    return bundle_of(path) if (path / "run.json").is_file() else path


def _show(document: BenchDocument, to_stdout: bool) -> None:
    from pipeline.console import say, show
    from stages.bench import table, to_json
    from stages.bench.render import notes

    if not to_stdout:
        show(table(document), stdout=True)
        return
    typer.echo(to_json(document), nl=False)
    for note in notes(document):
        say(note)


def _write_pages(document: BenchDocument, md: Path | None, html: Path | None) -> None:
    from stages.bench import pages

    for file, make in ((md, pages.markdown), (html, pages.html)):
        if file is None:
            continue
        try:
            file.write_text(make(document), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{file}: cannot be written ({error.strerror})", "write elsewhere") from None


def _gate(document: BenchDocument, demands: Demands) -> None:
    """Exit code 3 when a gate failed or nothing meets the limits; an inconclusive gate is told, and no failure."""
    found = document.comparison
    failed = [gate for gate in found.gates if gate.outcome == "failed"] if found else []
    if failed:
        first, more = failed[0], f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise GateError(f"--fail-if: {first.variant}: {first.reason}{more}", "the table says which variant to look at")
    if document.recommended.met is False:
        raise GateError(document.recommended.reason, "relax a limit, or try another model, precision or thread count")


def _host(targets: list[Path] | None) -> None:
    from pipeline.console import show
    from stages.bench.system import host_table

    if targets:
        raise InputError(f"--system measures nothing, not even {targets[0]}", "leave the target off")
    show(host_table(), stdout=True)
