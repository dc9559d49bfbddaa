"""What the live benchmarks share: a demo run on a stand-in model of known speed, without a bundle."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "edge_demo"))  # the loopback cameras of the tests

from edge_demo.app import DemoOptions, DemoSummary, Parts, run_demo  # noqa: E402
from edge_demo.manifest import InputContract  # noqa: E402
from edge_demo.runtime import Bound  # noqa: E402

SIZE_WH = (28, 28)


class StandIn:
    """A model on an accelerator: the CPU waits `delay_s` for its answer."""

    name, effective = "onnxruntime", {}

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    def bind(self, feeds: Mapping[str, Any]) -> Bound:
        """Buffers of ten classes."""
        outputs = {"scores": np.full((1, 10), 0.1, np.float32), "embedding": np.ones((1, 4), np.float32)}
        return Bound(dict(feeds), outputs, lambda: time.sleep(self.delay_s))

    def close(self) -> None:
        """Nothing to free."""


CONTRACT = InputContract(size_wh=SIZE_WH, colour="gray", mean=(0.0,), std=(1.0,))
MANIFEST = SimpleNamespace(
    task="classify",
    name="stand-in",
    version="1",
    labels=tuple("0123456789"),
    decode={"roi": 0.5},
    recommended="fp32",
    variants=(SimpleNamespace(precision="fp32"),),
    input=CONTRACT,
)


def demo(
    options: Mapping[str, Any],
    delay_s: float,
    screen: Any = None,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> DemoSummary:
    """`run_demo` with the stand-in model, and a window that is `screen`."""
    bundle: Any = SimpleNamespace(manifest=MANIFEST, model_bytes=lambda precision: b"")
    runtime: Any = StandIn(delay_s)
    parts = Parts(
        open_bundle=lambda path: bundle,
        open_runtime=lambda *given: runtime,
        why_no_window=lambda: "" if screen else "none here",
        open_window=lambda: screen,
        say=say,
    )
    return run_demo(DemoOptions(bundle=Path("stand-in"), **options), stop=stop, parts=parts)
