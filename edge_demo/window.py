"""The window on this machine's screen, probed before it opens: OpenCV aborts the process when there is no display."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from edge_demo.image import Frame, load_cv2

TITLE = "train-to-edge demo"
PAINT_MS = 8
FONTS = "/usr/share/fonts"
QUIT_KEYS = frozenset({27, ord("q")})
# imshow ends the whole process (SIGABRT) when the display does not answer; a child process can be sacrificed.
PROBE = f"import cv2; cv2.namedWindow({TITLE!r}); cv2.waitKey(1); cv2.destroyAllWindows()"


def why_no_window() -> str:
    """The reason why no window can be shown here, as part of a sentence; empty when one can."""
    cv2 = load_cv2()
    if not cv2.currentUIFramework():
        return "this OpenCV has no window support (the headless wheel)"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display (DISPLAY is not set)"
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "the display does not answer"
    return "" if probe.returncode == 0 else "the display cannot be used"


@dataclass(slots=True)
class Window:
    """An open window; used by the main thread only."""

    cv2: Any
    pressed: str = ""
    painting: bool = False

    def show(self, frame: Frame | None) -> bool:
        """Show a new BGR frame (None: keep the last) and handle keys; False when the person closed it."""
        if frame is not None:
            self.cv2.imshow(TITLE, frame)
        # The toolkit paints only while it is waited for, and on a busy machine 1 ms is not enough (measured: black).
        # The next frame is the farthest away right after one, so the time is given then; later it would hold one up.
        code = self.cv2.waitKey(PAINT_MS if frame is None and self.painting else 1)
        self.painting = frame is not None
        if code >= 0 and code & 0xFF in QUIT_KEYS:
            return False
        if code >= 0 and chr(code & 0xFF).isprintable():
            self.pressed = chr(code & 0xFF)
        return bool(self.cv2.getWindowProperty(TITLE, self.cv2.WND_PROP_VISIBLE) >= 1)

    def key(self) -> str:
        """The key pressed since the last call, or empty."""
        key, self.pressed = self.pressed, ""
        return key

    def close(self) -> None:
        """Take it off the screen."""
        self.cv2.destroyAllWindows()


def open_window() -> Window:
    """A window sized to its picture. Call `why_no_window` first."""
    cv2 = load_cv2()
    if not os.path.isdir(os.environ.get("QT_QPA_FONTDIR", FONTS)):  # noqa: PTH112 - may be any text
        os.environ["QT_QPA_FONTDIR"] = FONTS  # the wheel names a folder it does not bring, and Qt complains of it
    cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)  # without Qt's tool bar
    return Window(cv2)
