"""Where results go besides the window: JSON lines to a file or standard output, in their own thread."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from edge_demo.channel import Channel
from edge_demo.errors import Error, InputError

CAPACITY = 256  # lines; about eight seconds of a 30 FPS camera


class JsonLines:
    """Writes each line as it comes, in its own thread, so that a slow reader cannot hold up the camera.

    Args:
        target: File name (replaced when it exists), or `-` for standard output.
        lossy: A reader that is too slow costs the oldest lines (live); otherwise `put` waits (files: every line).
        stop: Set when the reader has gone or the disk is full: nobody is left to work for.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, target: str, *, lossy: bool, stop: threading.Event) -> None:
        self.failure: Error | None = None
        self.gone = False
        """The reader closed its end."""
        self._target = target
        self._stop = stop
        self._lines: Channel[str] = Channel(CAPACITY, newest_wins=lossy)
        self._descriptor = _open(target)
        self._thread = threading.Thread(target=self._write_all, name="jsonl", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines lost to a slow reader."""
        return self._lines.dropped

    def put(self, line: str) -> None:
        """Hand over one line that ends in a newline; ignored once the reader has gone."""
        self._lines.put(line)

    def close(self, timeout_s: float) -> int:
        """Write what is left, for at most `timeout_s`; returns how many lines could not be written."""
        self._lines.close()
        self._thread.join(timeout_s)
        return len(self._lines) + self._thread.is_alive()

    def abort(self) -> None:
        """Stop taking lines; wakes a `put` that waits for a reader."""
        self._lines.close()

    def _write_all(self) -> None:
        try:
            while not self._lines.ended:
                line = self._lines.get(1.0)
                if line is not None:
                    _write(self._descriptor, line.encode())
        except BrokenPipeError:
            self.gone = True  # `| head` has seen enough: an ordinary end
            self._stop.set()
        except OSError as error:
            self.failure = Error(
                f"{self._target}: cannot write ({error.strerror})", "free some space or name another file"
            )
            self._stop.set()
        finally:
            self._lines.close()
            while self._lines.get(0) is not None:
                pass
            os.close(self._descriptor)


def _open(target: str) -> int:
    """A descriptor of our own: closing it, or a thread blocked in it at exit, leaves sys.stdout alone."""
    if target == "-":
        sys.stdout.flush()
        return os.dup(sys.stdout.fileno())
    try:
        return os.open(Path(target), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        raise InputError(
            f"{target}: cannot write ({error.strerror})", "give --jsonl another file, or - for stdout"
        ) from error


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
