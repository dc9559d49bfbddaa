"""What people type: one short function per command. Parse, call, print; stdout is the result, stderr everything else.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 a gate was missed, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer

from edge_demo.errors import Error, GateError, InputError
from pipeline import ranks
from pipeline.bench_command import bench
from pipeline.cli_data import data_app
from pipeline.demo_commands import print_cameras, service
from pipeline.find_lr_command import find_lr
from pipeline.init_command import init
from pipeline.options import BundlePath, ConfigFile, Debug, Devices, Json, Preset, RunFolder, Runtimes, Sets, echo_json
from pipeline.sweep_command import sweep

app = typer.Typer(
    name="pipeline",
    help="From a labelled image set to a model proven on the edge device.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
RUN_COMMANDS = ("all", "train", "export", "quantize", "bundle", "report")


# --- the run ---------------------------------------------------------------------------------------------------------


@app.command("all")
def all_(
    config: ConfigFile = None,
    preset: Preset = None,
    run: RunFolder = None,
    sets: Sets = None,
    devices: Devices = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run every stage: data, train, export, quantize, evaluate, bundle, bench, report."""
    _run("report", config, preset, run, sets, json, devices=devices)


@app.command()
def train(
    config: ConfigFile = None,
    preset: Preset = None,
    run: RunFolder = None,
    sets: Sets = None,
    devices: Devices = None,
    list_models: Annotated[
        bool, typer.Option("--list-models", help="Show the networks there are, what they cost, and leave.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Prepare the data and train; a killed training resumes."""
    if list_models:
        if config or preset or run or sets or devices:
            raise InputError("--list-models: takes no config, preset, run, --set or --devices", "leave them out")
        _list_models(json)
    else:
        _run("train", config, preset, run, sets, json, devices=devices)


def _list_models(json: bool) -> None:
    from pipeline.console import show
    from pipeline.models import model_cards, models_note, models_table

    cards = model_cards()
    if json:
        echo_json(cards)
        return
    show(models_table(cards), stdout=True)
    typer.echo(models_note())


@app.command()
def export(
    config: ConfigFile = None,
    preset: Preset = None,
    run: RunFolder = None,
    sets: Sets = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run what is needed up to the ONNX model, checked against torch."""
    _run("export", config, preset, run, sets, json)


@app.command()
def quantize(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.toml|MODEL.onnx]", help="The run's config, or any model.", show_default=False),
    ] = None,
    preset: Preset = None,
    run: RunFolder = None,
    sets: Sets = None,
    calib: Annotated[
        Path | None, typer.Option(metavar="DIR", help="MODEL.onnx: pictures, or .npy/.npz files of its inputs.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="MODEL.onnx: where to; default: MODEL.int8.onnx beside it.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="MODEL.onnx: how pictures are normalized, on the 0..1 scale.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="MODEL.onnx: likewise.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="MODEL.onnx: picture size, where the model leaves it open.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run what is needed up to the INT8 model, or make one from any ONNX model and examples of its input."""
    own = {"--calib": calib, "--output": output, "--mean": mean, "--std": std, "--size": size}
    if config is None or config.suffix != ".onnx":
        for option, value in own.items():
            if value is not None:
                raise InputError(f"{option}: only for a model file", "type: pipeline quantize MODEL.onnx --calib DIR")
        _run("quantize", config, preset, run, sets, json)
        return
    for option, given in (("--preset", preset), ("--run", run)):
        if given is not None:
            raise InputError(f"{option}: has no effect on a model file", "leave it out")
    from pipeline.console import say, show
    from pipeline.foreign import quantize_model, table

    result = quantize_model(config, calib, output, sets or (), mean, std, size)
    if json:
        echo_json(result.model_dump(mode="json"))
    else:
        show(table(result), stdout=True)
        typer.echo(f"{result.output or 'no INT8 file'}: {result.reason}")
    for note in result.notes:
        say(note)
    if not result.output:
        raise GateError(f"{config}: no INT8 file is worth having", result.reason)


@app.command()
def bundle(
    config: ConfigFile = None,
    preset: Preset = None,
    run: RunFolder = None,
    sets: Sets = None,
    pack: Annotated[Path | None, typer.Option(metavar="FILE.edge", help="Also write the bundle as one file.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run what is needed up to the bundle."""
    if pack is not None and pack.suffix != ".edge":
        raise InputError(f"--pack {pack}: a packed bundle's name ends in .edge", f"type: --pack {pack.stem}.edge")
    _run("bundle", config, preset, run, sets, json, pack)


@app.command()
def report(
    config: ConfigFile = None,
    preset: Preset = None,
    run: RunFolder = None,
    sets: Sets = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run what is needed up to the report; the same as all."""
    _run("report", config, preset, run, sets, json)


def _run(
    until: str,
    file: Path | None,
    preset: str | None,
    run: Path | None,
    sets: list[str] | None,
    json: bool,
    pack: Path | None = None,
    devices: int | None = None,
) -> None:
    sets = [*(sets or ()), *ranks.device_sets(devices)]
    if ranks.follows():
        raise typer.Exit(ranks.follow())
    with ranks.leading():
        _lead(until, file, preset, run, sets, json, pack)


def _lead(
    until: str,
    file: Path | None,
    preset: str | None,
    run: Path | None,
    sets: list[str],
    json: bool,
    pack: Path | None,
) -> None:
    from pipeline.config import load_config
    from pipeline.console import say, show, summary, watching
    from pipeline.run import run_pipeline

    config = load_config(file, preset, sets)
    folder = run or Path("runs") / config.name
    with watching() as watch:
        document = run_pipeline(config, folder, until=until, watch=watch)
    show(summary(document))
    stopped = any(gate.stop for gate in document.missed)
    if pack is not None and not stopped:
        from edge_demo.bundle import pack as pack_bundle

        pack_bundle(folder / "bundle", pack)
    if json:
        typer.echo(document.to_json(), nl=False)
    elif not stopped:
        _name_results(folder, until, pack)
    for gate in document.missed:
        say(f"gate missed: {gate.stage}: {gate.name}: {gate.message}")
    if document.missed:
        names = ", ".join(f"{gate.stage}: {gate.name}" for gate in document.missed)
        raise GateError(f"{len(document.missed)} gate(s) missed: {names}", f"see {folder / 'run.json'}, gates")


def _name_results(folder: Path, until: str, pack: Path | None) -> None:
    """What was made, and what to type next."""
    lines = {
        "train": [("weights", folder / "train"), ("next", f"pipeline export --run {folder}")],
        "export": [("model", folder / "export"), ("next", f"pipeline quantize --run {folder}")],
        "quantize": [("model", folder / "quantize"), ("next", f"pipeline bundle --run {folder}")],
        "bundle": [("bundle", pack or folder / "bundle"), ("next", f"pipeline verify {pack or folder / 'bundle'}")],
        "report": [
            ("bundle", folder / "bundle"),
            ("report", folder / "report" / "report.html"),
            ("next", f"pipeline demo {folder / 'bundle'} --source 0"),
        ],
    }
    for what, value in lines[until]:
        typer.echo(f"{what:<8} {value}")


# --- the bundle ------------------------------------------------------------------------------------------------------


app.command()(bench)
app.command()(sweep)
app.command()(init)
app.command("find-lr")(find_lr)


@app.command()
def demo(
    bundle: BundlePath,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Camera number, v4l2:..., URL, video, image, folder, %d pattern, synthetic; repeatable."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for a camera that is not there yet.")] = False,
    insecure_tls: Annotated[bool, typer.Option("--insecure-tls", help="Accept any certificate of a camera.")] = False,
    list_cameras: Annotated[
        bool,
        typer.Option("--list-cameras", is_eager=True, callback=print_cameras, help="Say which there are, and end."),
    ] = False,
    show: Annotated[Literal["auto", "window", "none"], typer.Option(help="Where to draw.")] = "auto",
    jsonl: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write one JSON line per frame; - is stdout.")
    ] = None,
    runtime: Annotated[
        Literal["auto", "onnxruntime", "openvino"], typer.Option(help="auto measures for two seconds at the start.")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "int8"],
        typer.Option(help="auto: what the bundle recommends, or the fastest that is as good."),
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all but one.")] = None,
    roi: Annotated[float | None, typer.Option(help="Side of the square read, as a share of the short side.")] = None,
    duration: Annotated[float | None, typer.Option(metavar="SECONDS", help="End after that time.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="End after that many frames.")] = None,
    policy: Annotated[
        Literal["auto", "latest", "every"], typer.Option(help="Newest frame wins, or every frame waits.")
    ] = "auto",
    display: Annotated[
        Literal["synced", "smooth"], typer.Option(help="The frame of the result, or each frame with the last result.")
    ] = "synced",
    track: Annotated[bool, typer.Option("--track/--no-track", help="Follow boxes from frame to frame.")] = True,
    expect_p95: Annotated[float | None, typer.Option(metavar="MS", help="Exit 3 when frames are older (p95).")] = None,
    expect_fps: Annotated[float | None, typer.Option(metavar="N", help="Exit 3 when fewer frames are done.")] = None,
    latency_test: Annotated[
        bool, typer.Option("--latency-test", help="Compare the reported age with the clock in the picture.")
    ] = False,
    teach: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Teach it classes while it runs; kept in this file.")
    ] = None,
    teach_label: Annotated[str | None, typer.Option(metavar="NAME", help="The class that the key t teaches.")] = None,
    web: Annotated[
        str | None, typer.Option(metavar="[HOST:PORT]", help="Show it on a web page; default 127.0.0.1:8080.")
    ] = None,
    web_token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Token that viewers need.")] = None,
    record: Annotated[Path | None, typer.Option(metavar="DIR", help="Record to a folder, a file a minute.")] = None,
    record_format: Annotated[
        Literal["avi", "webm"], typer.Option(help="avi survives a power cut, webm plays in browsers.")
    ] = "avi",
    record_cap_mb: Annotated[float, typer.Option(help="Delete the oldest recordings above this size.")] = 2000.0,
    mqtt: Annotated[str | None, typer.Option(metavar="URL", help="Publish to mqtt[s]://[USER@]HOST[/PREFIX].")] = None,
    mqtt_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The password; or set EDGE_MQTT_PASSWORD.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a bundle live: camera, stream, video, pictures or a synthetic source."""
    from edge_demo.app import DemoOptions, run_demo
    from pipeline.bundles import bundle_of

    run_demo(
        DemoOptions(
            bundle=bundle_of(bundle),
            source=(source or ["0"])[0],
            more_sources=tuple(source or ())[1:],
            wait=wait,
            insecure_tls=insecure_tls,
            show=show,
            jsonl=jsonl,
            runtime=runtime,
            precision=precision,
            threads=threads,
            roi=roi,
            duration_s=duration,
            max_frames=max_frames,
            policy=policy,
            display=display,
            track=track,
            expect_p95_ms=expect_p95,
            expect_fps=expect_fps,
            latency_test=latency_test,
            teach=teach,
            teach_label=teach_label,
            web=web,
            web_token_file=web_token_file,
            record=record,
            record_format=record_format,
            record_cap_mb=record_cap_mb,
            mqtt=mqtt,
            mqtt_password_file=mqtt_password_file,
        )
    )


app.command()(service)


@app.command()
def verify(bundle: BundlePath, runtime: Runtimes = None, json: Json = False, debug: Debug = False) -> None:
    """Check every byte of a bundle and run its golden frames; says where the first difference is."""
    from edge_demo.runtime import RUNTIMES
    from edge_demo.verify import verify as verify_bundle
    from pipeline.bundles import bundle_of, verify_table
    from pipeline.console import say, show

    report = verify_bundle(bundle_of(bundle), runtime or tuple(RUNTIMES))
    if json:
        echo_json(report.to_json())
    else:
        show(verify_table(report), stdout=True)
        typer.echo(f"{'verified' if report.ok else 'REFUSED'}: {report.name} {report.version}, {report.files} files")
    for failure in report.failures:
        say(failure)
    if not report.ok:
        raise Error(
            f"{bundle}: does not give the answers it was made with", f"make it again, or see: {report.failures[0]}"
        )


@app.command()
def info(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Bundle, .edge file, or run folder.")
    ] = None,
    schema: Annotated[str | None, typer.Option(metavar="NAME", help="Print the JSON Schema of a file format.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Describe a bundle, or print the JSON Schema of a file format."""
    from pipeline.bundles import bundle_of, info_table, schema_of
    from pipeline.console import show

    if (bundle is None) == (schema is None):
        raise InputError("info needs a BUNDLE or --schema NAME", "type: pipeline info --help")
    if schema is not None:
        echo_json(schema_of(schema))
    elif bundle is not None:
        from edge_demo.bundle import open_bundle

        manifest = open_bundle(bundle_of(bundle)).manifest
        if json:
            echo_json(manifest.model_dump(mode="json", by_alias=True))
        else:
            show(info_table(manifest), stdout=True)


@app.command()
def doctor(json: Json = False, debug: Debug = False) -> None:
    """Say what is installed and usable here, and what to type where it is not."""
    from pipeline.console import show
    from pipeline.doctor import examine, table

    findings = examine()
    if json:
        echo_json(
            {"ok": all(finding.status != "broken" for finding in findings), "findings": [f.to_json() for f in findings]}
        )
    else:
        show(table(findings), stdout=True)
    broken = [finding for finding in findings if finding.status == "broken"]
    if broken:
        raise Error(f"{broken[0].name}: {broken[0].found}", broken[0].hint)


# --- the program -----------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """The console script."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.exit(call(sys.argv[1:]))


def call(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; an error becomes one line on stderr."""
    try:
        code = int(app(args=_with_web_address(arguments), prog_name="pipeline", standalone_mode=False) or 0)
        # Newer versions of typer turn Ctrl-C into this code themselves, older ones into Abort.
        return _interrupted(arguments) if code == INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(arguments)
    except USAGE_ERROR as error:
        where = error.ctx.command_path if getattr(error, "ctx", None) else "pipeline"
        text = error.format_message().replace("\n", " ").rstrip(".")
        return _fail(f"error: {text}; type: {where} --help", 2, arguments)
    except Error as error:
        return _fail(f"error: {_one_line(error)}", error.exit_code, arguments)
    except BrokenPipeError:
        # Whoever read stdout has left; without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line instead of a traceback
        text = f"error: {type(error).__name__}: {_one_line(error)}; run again with --debug to see where"
        return _fail(text, 1, arguments)


# click's base of all usage errors, wherever this version of typer has its click.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def _with_web_address(arguments: Sequence[str]) -> list[str]:
    """`--web` alone means the default address: typer has no option with an optional value."""
    known = list(arguments)
    for at, argument in enumerate(known):
        following = known[at + 1] if at + 1 < len(known) else ""
        if argument == "--web" and not re.fullmatch(r"\d+|[^-/][^/]*:[^/]*", following):
            known[at] = "--web=127.0.0.1:8080"
    return known


def _interrupted(arguments: Sequence[str]) -> int:
    resumes = bool(arguments) and arguments[0] in (*RUN_COMMANDS, "sweep")
    return _fail("interrupted" + "; the same command goes on there" * resumes, INTERRUPTED, arguments)


def _fail(line: str, code: int, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        import traceback

        traceback.print_exc()
    typer.echo(line, err=True)
    return code


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the program as Ctrl-C does: what can resume is kept."""
    raise KeyboardInterrupt
