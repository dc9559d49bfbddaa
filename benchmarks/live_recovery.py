"""How fast trouble is shown and over: `python benchmarks/live_recovery.py [--rounds 3] [--out FILE.json]`.

A loopback camera, over HTTP and over RTSP, is frozen for three seconds and six, killed and started again after five,
and absent at the start. Read from the pictures in the window: when the warning appears, and when a picture appears that
was taken after the camera was back.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import common
import live

STALE_S, THAW_S = 2.5, 1.0
BACK_S = 2.0 + 1.0  # the back-off's cap, and one second
FROZEN_S = (3.0, 6.0)
KILLED_S, ABSENT_S = 5.0, 3.0
PATIENCE_S = 20.0


def until(condition: Any) -> float:
    """Monotonic s when it became true; NaN when it did not."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        if condition():
            return time.monotonic()
        time.sleep(0.005)
    return float("nan")


def warned(shown: live.Shown) -> bool:
    """Whether the newest picture carries a warning, which makes it higher than the first one."""
    return bool(shown.pictures) and shown.pictures[-1][2] > shown.pictures[0][2]


def fresh(shown: live.Shown, since_s: float) -> bool:
    """Whether a picture is shown that was taken after `since_s`."""
    code = shown.pictures[-1][1] if shown.pictures else None
    return code is not None and code >= since_s * 1e3 and not warned(shown)


def trouble(camera: live.Camera, shown: live.Shown) -> dict[str, float]:
    """Freeze, thaw, kill and start, one after the other, in seconds."""
    times: dict[str, float] = {}
    until(lambda: fresh(shown, 0))
    for frozen_s in FROZEN_S:
        time.sleep(1.5)
        since_s = time.monotonic()
        camera.ask("stall")
        times[f"stale, frozen {frozen_s:g} s"] = until(lambda: warned(shown)) - since_s
        time.sleep(max(0.0, since_s + frozen_s - time.monotonic()))
        since_s = time.monotonic()
        camera.ask("run")
        times[f"fresh, frozen {frozen_s:g} s"] = until(lambda at=since_s: fresh(shown, at)) - since_s
    time.sleep(1.5)
    camera.ask("kill")
    time.sleep(KILLED_S)
    since_s = time.monotonic()
    camera.ask("start")
    times[f"fresh, killed {KILLED_S:g} s"] = until(lambda: fresh(shown, since_s)) - since_s
    return times


def late(camera: live.Camera, shown: live.Shown) -> dict[str, float]:
    """A camera that appears after the demo has started, in seconds."""
    time.sleep(ABSENT_S)
    since_s = time.monotonic()
    camera.ask("start")
    return {f"fresh, absent {ABSENT_S:g} s": until(lambda: fresh(shown, since_s)) - since_s}


def watched(kind: str, script: Any, *, there: bool) -> dict[str, float]:
    """Run the demo while `script` troubles its camera."""
    shown, stop, times = live.Shown(), threading.Event(), {}
    with live.camera(kind, there=there) as camera:

        def run() -> None:
            try:
                times.update(script(camera, shown))
            finally:
                stop.set()

        thread = threading.Thread(target=run)
        thread.start()
        live.demo({"source": camera.url, "wait": not there}, 0.003, shown, stop)
        thread.join()
    return times


def limit_s(name: str) -> float:
    """What each time has to keep."""
    what, _, how = name.partition(", ")
    return STALE_S if what == "stale" else THAW_S if how.startswith("frozen") else BACK_S


def main() -> None:
    """Measure, print, write; exit code 1 when a claim does not hold."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    document = common.begin("live_recovery")
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for kind in ("http", "rtsp"):
            got = watched(kind, trouble, there=True) | watched(kind, late, there=False)
            for name, seconds in got.items():
                times.setdefault((kind, name), []).append(seconds)
    rows, held = [], True
    for (kind, name), values in times.items():
        kept = all(value <= limit_s(name) for value in values)  # NaN, which is never, keeps nothing
        held &= kept
        shown = f"{min(values):.2f}", f"{max(values):.2f}", f"{limit_s(name):g}", "yes" if kept else "NO"
        rows.append((f"{kind}: {name}", str(len(values)), *shown))
    document |= {"seconds": {f"{kind}: {name}": values for (kind, name), values in times.items()}, "held": held}
    head = ("shown after", "n", "least s", "most s", "allowed s", "kept")
    common.end(document, [common.table(head, rows)], options.out)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
