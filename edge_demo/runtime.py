"""ONNX Runtime and OpenVINO behind one Protocol. Libraries are imported when a runtime is opened, not before."""

from __future__ import annotations

import mmap
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import Error, InputError
from edge_demo.onnx_file import inspect

Array = NDArray[Any]
Model = Path | bytes
"""An ONNX (or OpenVINO .xml) file, or the bytes of an ONNX model whose digest was just checked."""

PRECISIONS = ("f32", "bf16", "f16", "default")
SILENT = 4  # ONNX Runtime's "fatal only": a failed load is an exception already, one line is enough


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output: name, numpy dtype, shape with -1 for a dynamic dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """A timed call path without copies: write into `inputs`, call `run`, read `outputs` before the next `run`."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    run: Callable[[], None]


class Runtime(Protocol):
    """A loaded model. One object is what the demo shows, the bench times and the evaluation scores."""

    name: str
    """`onnxruntime` or `openvino`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    effective: dict[str, Any]
    """What the runtime really uses: `threads`, `precision` (f32 | bf16 | f16), `spinning`, `version`, `device`, and
    `load_ms`, one entry per compiled shape (`dynamic`, or like `frames 1x28x28x3`)."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch of any size; the returned arrays belong to the caller."""
        ...

    def bind(self, feeds: Mapping[str, Array]) -> Bound:
        """Bind C-contiguous buffers of these shapes for repeated runs of that batch size."""
        ...

    def close(self) -> None:
        """Free the session."""
        ...


def open_runtime(
    name: str,
    model: Model,
    *,
    threads: int = 1,
    precision: str = "f32",
    spinning: bool = False,
    batch: int | None = None,
) -> Runtime:
    """Load a model and verify that the runtime really does what was asked.

    Args:
        name: Key of `RUNTIMES`.
        model: File, or bytes of an ONNX model.
        threads: CPU threads of one inference.
        precision: What float operations are computed in: `f32`, `bf16`, `f16`, or `default`, the runtime's own choice.
            Of an INT8 model it is the precision of the float rest. ONNX Runtime on CPU knows only f32.
        spinning: Let idle threads of ONNX Runtime burn CPU while they wait for the next call.
        batch: Load for this batch size at once (OpenVINO compiles per shape); other sizes compile when first used.

    Raises:
        InputError: unknown name or precision; a setting this runtime or CPU does not have; a file that is missing, no
            model, or not supported by the runtime.
    """
    if name not in RUNTIMES:
        raise InputError(f"runtime {name!r} is unknown", f"known: {', '.join(RUNTIMES)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown", f"known: {', '.join(PRECISIONS)}")
    if threads < 1:
        raise InputError(f"threads: {threads} is not a positive number")
    _check_model(model)
    return RUNTIMES[name](model, threads=threads, precision=precision, spinning=spinning, batch=batch)


def import_openvino() -> Any:
    """The openvino module, imported without its telemetry.

    `import openvino` alone reports the import to a server when the package openvino-telemetry is there; a `None` in
    `sys.modules` makes that package look absent, so openvino takes the stub it brings for that case.
    Source: openvino/tools/ovc/__init__.py of 2026.4, `telemetry.send_event("ov", "import", ...)`.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    before = {key: sys.modules.pop(key) for key in list(sys.modules) if key.startswith("openvino_telemetry")}
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise InputError("openvino is not installed", "type: pip install openvino") from error
    finally:
        del sys.modules["openvino_telemetry"]
        sys.modules.update(before)
    return openvino


class OnnxRuntime:
    """A session on the CPU provider, one inference at a time."""

    name = "onnxruntime"

    def __init__(self, model: Model, *, threads: int, precision: str, spinning: bool, batch: int | None) -> None:
        """See `open_runtime`; one session serves every batch size, so `batch` changes nothing here."""
        if precision not in ("f32", "default"):
            raise InputError(f"onnxruntime computes in f32 on CPU, not {precision}", "use openvino for it, or f32")
        if isinstance(model, Path) and model.suffix == ".xml":
            raise InputError(f"{model}: onnxruntime reads .onnx, not OpenVINO .xml", "use openvino for it")
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise InputError("onnxruntime is not installed", "type: pip install onnxruntime") from error
        started = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = SILENT
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        source = model if isinstance(model, bytes) else str(model)
        try:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except _onnxruntime_errors() as error:
            raise _refused(model, self.name, error) from error
        if session.get_providers() != ["CPUExecutionProvider"]:
            raise Error(f"onnxruntime chose {session.get_providers()} where CPUExecutionProvider was asked for")
        self._library, self._session = onnxruntime, session
        self._symbols = {node.name: tuple(node.shape) for node in (*session.get_inputs(), *session.get_outputs())}
        self.inputs = tuple(_ort_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_ort_spec(node) for node in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self.effective: dict[str, Any] = {
            "threads": session.get_session_options().intra_op_num_threads,
            "precision": "f32",
            "spinning": spinning,
            "version": onnxruntime.__version__,
            "device": "CPU",
            "load_ms": {"dynamic": _ms_since(started)},
        }

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch of any size; the returned arrays belong to the caller."""
        _check_feeds(self.inputs, feeds)
        return dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))

    def bind(self, feeds: Mapping[str, Array]) -> Bound:
        """Bind C-contiguous buffers of these shapes; the arrays must outlive the returned `Bound`'s use."""
        _check_feeds(self.inputs, feeds, contiguous=True)
        shapes = self._output_shapes(feeds)
        outputs = {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in self.outputs}
        binding = self._session.io_binding()
        for name, buffer in feeds.items():
            binding.bind_cpu_input(name, buffer)
        # Of an output whose file declares another number of dimensions the runtime refuses the right buffer, too.
        misdeclared = [name for name, buffer in outputs.items() if buffer.ndim != len(self._symbols[name])]
        for name, buffer in outputs.items():
            if name not in misdeclared:
                binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        run = partial(self._session.run_with_iobinding, binding)
        if not misdeclared:
            return Bound(dict(feeds), outputs, run)

        def run_and_copy() -> None:
            # Each time anew: what one run allocated would be the refused buffer of the next.
            for name in misdeclared:
                binding.bind_output(name, "cpu")
            run()
            # In the order they were bound first.
            for name, value in zip(misdeclared, binding.get_outputs()[-len(misdeclared) :], strict=True):
                outputs[name][...] = value.numpy()

        return Bound(dict(feeds), outputs, run_and_copy)

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _output_shapes(self, feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        """Shapes the outputs will have: by the model's symbols (`N`), else as one run gives them."""
        sizes = {
            symbol: size
            for spec in self.inputs
            for symbol, size in zip(self._symbols[spec.name], feeds[spec.name].shape, strict=True)
            if isinstance(symbol, str)
        }
        shapes = {
            name: [sizes.get(dim) if isinstance(dim, str) else dim for dim in self._symbols[name]]
            for name in self._names
        }
        # No dimensions at all is what ONNX Runtime tells of a scalar, and where the file contradicts itself.
        if any(not shape or None in shape for shape in shapes.values()):
            return {name: array.shape for name, array in self.infer(feeds).items()}
        return {name: tuple(dim for dim in shape if dim is not None) for name, shape in shapes.items()}


class OpenVino:
    """A model compiled for the CPU: once for any batch size, and once more for each batch size that is bound."""

    name = "openvino"

    def __init__(self, model: Model, *, threads: int, precision: str, spinning: bool, batch: int | None) -> None:
        """See `open_runtime`."""
        if spinning:
            raise InputError("openvino has no spinning to switch on", "leave it off, or use onnxruntime")
        ov = import_openvino()
        started = time.perf_counter()
        self._ov, self._core = ov, ov.Core()
        self._properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        if precision != "default":
            self._properties["INFERENCE_PRECISION_HINT"] = precision
        try:
            self._model = self._core.read_model(model)
            self.inputs = tuple(ov_spec(port) for port in self._model.inputs)
            self.outputs = tuple(ov_spec(port) for port in self._model.outputs)
            self._compiled: dict[str, Any] = {}
            self.effective: dict[str, Any] = {"load_ms": {}}
            shapes = self._fixed(batch) if batch else {}
            compiled = self._compile(shapes, started)
        except (RuntimeError, ValueError, TypeError) as error:
            raise _refused(model, self.name, error) from error
        self.effective |= {
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "spinning": False,
            "version": ov.__version__,
            "device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
        }
        for key, asked in (("threads", threads), ("precision", precision)):
            got = self.effective[key]
            if asked not in (got, "default"):
                raise InputError(f"openvino uses {key} {got} on this CPU, not {asked}", f"ask for {got}")

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch of any size; the returned arrays belong to the caller."""
        _check_feeds(self.inputs, feeds)
        shapes = {spec.name: feeds[spec.name].shape for spec in self.inputs}
        compiled = self._compile(shapes if _shape_key(shapes) in self._compiled else {})
        results = compiled({i: np.ascontiguousarray(feeds[spec.name]) for i, spec in enumerate(self.inputs)})
        return {spec.name: np.array(results[i]) for i, spec in enumerate(self.outputs)}

    def bind(self, feeds: Mapping[str, Array]) -> Bound:
        """Bind C-contiguous buffers of these shapes; compiles for them first, unless that was done when opening."""
        _check_feeds(self.inputs, feeds, contiguous=True)
        compiled = self._compile({spec.name: feeds[spec.name].shape for spec in self.inputs})
        request = compiled.create_infer_request()
        for port, spec in enumerate(self.inputs):
            request.set_input_tensor(port, self._ov.Tensor(feeds[spec.name], shared_memory=True))
        if any(port.get_partial_shape().is_dynamic for port in compiled.outputs):
            request.infer()
        outputs: dict[str, Array] = {}
        for port, spec in enumerate(self.outputs):
            outputs[spec.name] = np.zeros(request.get_output_tensor(port).shape, spec.dtype)
            request.set_output_tensor(port, self._ov.Tensor(outputs[spec.name], shared_memory=True))
        return Bound(dict(feeds), outputs, partial(request.infer, share_outputs=True))

    def close(self) -> None:
        """Free the compiled models."""
        self._compiled = {}

    def _fixed(self, batch: int) -> dict[str, tuple[int, ...]]:
        # A scalar has no dimension that could be the batch.
        return {spec.name: (batch, *spec.shape[1:]) if spec.shape[:1] == (-1,) else spec.shape for spec in self.inputs}

    def _compile(self, shapes: Mapping[str, tuple[int, ...]], started: float | None = None) -> Any:
        """The model compiled for these input shapes; {} for the shapes as they are in the file."""
        declared = {spec.name: spec.shape for spec in self.inputs}
        wanted = {**declared, **shapes}
        key = _shape_key({} if wanted == declared else wanted)
        if key not in self._compiled:
            started = time.perf_counter() if started is None else started
            model = self._model
            if wanted != declared:
                model = model.clone()
                model.reshape({port: list(wanted[spec.name]) for port, spec in enumerate(self.inputs)})
            self._compiled[key] = self._core.compile_model(model, "CPU", self._properties)
            self.effective["load_ms"][key] = _ms_since(started)
        return self._compiled[key]


RUNTIMES: dict[str, Callable[..., Runtime]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def _check_model(model: Model) -> None:
    """Refuse what is no ONNX model before a runtime sees it: OpenVINO would try every other format it knows, loudly."""
    data: bytes | mmap.mmap
    if isinstance(model, bytes):
        where, data = f"model of {len(model)} bytes", model
    else:
        where = str(model)
        if not model.is_file():
            raise InputError(f"{model}: no such model file", "check the path")
        if model.suffix == ".xml":
            return
        try:
            with model.open("rb") as file:
                # Mapped, so that weights do not count as memory this process needed.
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if model.stat().st_size else b""
        except OSError as error:
            raise InputError(f"{model}: cannot be read ({error.strerror})", "check its permissions") from error
    try:
        inspect(data)
    except ValueError as error:
        raise InputError(f"{where}: not an ONNX model ({error})", "name a whole .onnx file") from error


def _check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Array], *, contiguous: bool = False) -> None:
    """Both runtimes refuse the same feeds in the same words.

    Raises:
        InputError: an input missing or unknown, of the wrong dtype or shape.
        ValueError: a buffer to bind is not C-contiguous and writeable; ONNX Runtime would silently bind a copy of it,
            and every later run would see the first frame.
    """
    if set(feeds) != {spec.name for spec in specs}:
        raise InputError(f"the model takes {[spec.name for spec in specs]}, not {sorted(feeds)}")
    for spec in specs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != spec.dtype:
            given, takes = f"{array.dtype} {list(array.shape)}", f"{spec.dtype} {list(spec.shape)}"
            raise InputError(f"input {spec.name}: {given} given, the model takes {takes}")
        if contiguous and not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError(f"input {spec.name}: only a C-contiguous, writeable buffer can be bound")


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def _ort_spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64", "float16": "float16"}.get(kind, kind))
    return TensorSpec(node.name, dtype, tuple(dim if isinstance(dim, int) else -1 for dim in node.shape))


def ov_spec(port: Any) -> TensorSpec:
    """Name, dtype and shape of an OpenVINO model's input or output."""
    # A tensor may carry several names after OpenVINO's clean-up; the node's is the one from the file.
    names = port.get_names()
    own = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    name = own if own in names or not names else min(names)
    shape = tuple(-1 if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape())
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()), shape)


def _shape_key(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()) or "dynamic"


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3


def _refused(model: Model, runtime: str, error: Exception) -> InputError:
    """One line about a model the runtime does not take: its own reason, without source lines of its C++."""
    where = str(model) if isinstance(model, Path) else f"model of {len(model)} bytes"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", (told or lines or [type(error).__name__])[0])[:200]
    hint = "is the model whole, and supported by this version?"
    return InputError(f"{where}: {runtime} does not load it: {reason.rstrip('. ')}", hint)
