"""Which rows to measure: every model file x runtime x precision x threads x scenario that can exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from edge_demo.errors import InputError
from stages.bench.model_file import ModelFile
from stages.bench.target import Target
from stages.spec import BenchConfig, Scenario

# precision of a row -> (precision of the file, precision the runtime computes float operations in)
PRECISIONS = {"fp32": ("fp32", "f32"), "bf16": ("fp32", "bf16"), "f16": ("fp32", "f16"), "int8": ("int8", "f32")}
ORDER = ("fp32", "fp16", "bf16", "f16", "int8")
SHORT = {"onnxruntime": "ort", "openvino": "ov"}
MAX_THREADS = 1024  # more is a typing error: no runtime starts that many


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: a model file on a runtime, at a precision, on so many threads, in a scenario."""

    id: str
    runtime: str
    precision: str
    hint: str
    """What the runtime computes float operations in."""
    threads: int
    model: ModelFile
    scenario: Scenario = "single"
    target: Target | None = None
    spinning: bool = False


def plan_variants(
    targets: Sequence[Target], config: BenchConfig, scenario: Scenario, cores: int
) -> tuple[list[Variant], list[str]]:
    """The rows of one scenario, and a sentence for each that was left out because it cannot exist.

    Args:
        targets: What to measure.
        config: What was asked for.
        scenario: Which scenario's rows.
        cores: Usable CPUs; `throughput` always has them all.

    Raises:
        InputError: nothing of what was asked for exists here.
    """
    if max(config.threads) > MAX_THREADS:
        raise InputError(f"threads: {max(config.threads)} is absurd", f"this host has {cores} usable CPUs")
    threads = (cores,) if scenario == "throughput" else tuple(dict.fromkeys(config.threads))
    variants: list[Variant] = []
    notes: list[str] = []
    for target in targets:
        if reason := _unfit(target, scenario):
            notes.append(f"{scenario} left out for {target.name}: {reason}")
            continue
        made, said = _of_target(target, config, scenario, threads)
        variants += made
        notes += said
    if not variants:
        names = ", ".join(target.name for target in targets)
        raise InputError(f"{names}: nothing to measure: {'; '.join(notes)}", "ask for another precision or runtime")
    return sorted(variants, key=lambda variant: _preference(variant, threads)), notes


def _unfit(target: Target, scenario: Scenario) -> str:
    if scenario not in ("e2e", "accuracy"):
        return ""
    if target.sample is None:
        return "a plain model says neither how to resize a picture nor what its outputs mean"
    return (
        ""
        if scenario == "accuracy" or find_spec("cv2")
        else "it needs OpenCV; type: pip install 'train-to-edge[headless]'"
    )


def _of_target(
    target: Target, config: BenchConfig, scenario: Scenario, threads: Sequence[int]
) -> tuple[list[Variant], list[str]]:
    variants: list[Variant] = []
    notes: list[str] = []
    for precision in config.precisions:
        file_precision, hint = PRECISIONS[precision]
        model = target.models.get(file_precision)
        # A file with float16 weights is what its maker calls the float model; its rows are named for what it is.
        model = target.models.get("fp16") if model is None and precision == "fp32" else model
        if model is None:
            notes.append(f"{precision} left out: {target.name} has only {', '.join(target.models)}")
            continue
        shown = model.precision if precision == "fp32" else precision
        for runtime in dict.fromkeys(config.runtimes):
            if reason := _refusal(runtime, hint, model, config.spinning):
                notes.append(f"{precision} on {runtime} left out: {reason}")
                continue
            variants += [
                Variant(
                    id="-".join(filter(None, (target.key, SHORT[runtime], shown, f"t{count}", _suffix(scenario)))),
                    runtime=runtime,
                    precision=shown,
                    hint=hint,
                    threads=count,
                    model=model,
                    scenario=scenario,
                    target=target,
                    spinning=config.spinning,
                )
                for count in threads
            ]
    return variants, notes


def _suffix(scenario: Scenario) -> str:
    return "" if scenario == "single" else scenario


def _refusal(runtime: str, hint: str, model: ModelFile, spinning: bool) -> str:
    """Why a runtime cannot have such a row at all; empty when it can."""
    if runtime != "onnxruntime":
        return "it has no spinning to switch on" if spinning else ""
    if model.path.suffix == ".xml":
        return "it does not read .xml files"
    return "" if hint == "f32" else f"on CPU it does not compute in {hint}"


def _preference(variant: Variant, threads: Sequence[int]) -> tuple[int, int, int]:
    """Order of the rows; the first that works is the baseline: FP32 first, ONNX Runtime first, threads as given."""
    return (
        ORDER.index(variant.precision),
        list(SHORT).index(variant.runtime),
        list(threads).index(variant.threads),
    )
